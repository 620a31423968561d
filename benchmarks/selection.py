"""What chosen labels are worth beside random ones, judged on training patients outside the choice.

python benchmarks/selection.py data=KERMANY manifest=KERMANY/manifest.csv encoder=RUN [share=0.01] [draws=8]
    [only=by-class,typical]

A fifth of the training split's groups judges; each method of ``select`` chooses as many images of the rest as ``share``
of them, and a linear probe is fitted on their labels. ``by-class`` is the stratified draw of curves, which knows the
classes before it draws. Mean and standard deviation over draws; the same with a probe that also trained itself on the
rest (``unlabeled=true`` of ``finetune``), and what that gained on average, with its standard error; how many classes a
choice missed at most.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from jigsawssl.checkpoint import resolve_encoder
from jigsawssl.data import cross_validation_folds, holdout_split, label_fraction, open_archive
from jigsawssl.data.budget import FOLDS
from jigsawssl.data.loading import LabelledSet, PixelDataset
from jigsawssl.evaluation import macro_auroc
from jigsawssl.experiments.selection import METHODS, Candidates, select
from jigsawssl.process import prepare_process
from jigsawssl.runs import format_table
from jigsawssl.training.adapt import choose_probe
from jigsawssl.training.probe import extract_features, fit_probe
from jigsawssl.types import UserError


def main() -> None:
    """Print a row for each method."""
    options = {"share": "0.01", "draws": "8"} | dict(argument.split("=", 1) for argument in sys.argv[1:])
    prepare_process()
    encoder, _ = resolve_encoder(options["encoder"], in_channels=1)
    archive = open_archive(options["data"], manifest=options.get("manifest"))
    archive = archive.select(np.intersect1d(archive.rows_of("train"), np.flatnonzero(archive.labels >= 0)).tolist())
    dataset = PixelDataset(archive, encoder.spec.format, workers=2)
    dataset.load(progress=True)
    features = extract_features(encoder, dataset, device=torch.device("cpu"))
    labels = dataset.labels
    named = archive.groups if archive.groups is not None else np.arange(len(archive)).astype(str)
    names = named[dataset.rows]
    pool, judged = holdout_split(labels, names, share=0.2, seed=0)
    groups = np.unique(names[pool], return_inverse=True)[1]
    count = round(float(options["share"]) * len(pool))

    def candidates(known: np.ndarray) -> Candidates:
        """Of the pool, with what a probe on the known ones says of it."""
        probabilities = None
        if len(known):
            rows = pool[known]
            head = fit_probe(features[rows], labels[rows], classes=len(archive.classes), strength=0.01, balanced=True)
            with torch.no_grad():
                probabilities = head(features[pool]).softmax(dim=1).numpy()
        return Candidates(features[pool].numpy(), known, groups, 1, probabilities)

    def choose(method: str, seed: int) -> np.ndarray:
        """Positions in the pool; half at random before what needs labels."""
        if method == "by-class":
            return label_fraction(labels[pool], None, fraction=float(options["share"]), seed=seed)
        known = np.array([], dtype=np.int64)
        if METHODS[method].needs_labels:
            known = select(candidates(known), method="typical", count=count // 2, seed=seed).rows
        chosen = select(candidates(known), method=method, count=count - len(known), seed=seed).rows
        return np.union1d(known, chosen)

    def auroc(known: LabelledSet, unlabelled: torch.Tensor | None) -> float:
        """On the judging groups."""
        head = choose_probe(features, known, balanced=True, unlabelled=unlabelled).fit(known.refit_rows)
        with torch.no_grad():
            return macro_auroc(head(features[judged]).softmax(dim=1), labels[judged])

    rows = []
    wanted = options["only"].split(",") if "only" in options else ["by-class", *METHODS]
    for method in wanted:
        found, taught, missed = [], [], 0
        for seed in range(int(options["draws"])):
            chosen = pool[choose(method, seed)]
            missed = max(missed, len(archive.classes) - len(np.unique(labels[chosen])))
            try:
                folds = cross_validation_folds(labels[chosen], None, folds=FOLDS, seed=seed)
            except UserError:
                continue  # one class alone
            folds = [(chosen[train], chosen[val]) for train, val in folds]
            known = LabelledSet(dataset, labels, len(archive.classes), folds, chosen)
            found.append(auroc(known, None))
            taught.append(auroc(known, features[np.setdiff1d(pool, chosen)]))
        gain = np.subtract(taught, found)
        told = [f"{np.mean(each):.3f} ± {np.std(each):.3f}" for each in (found, taught)]
        error = gain.std() / max(1, len(gain) - 1) ** 0.5
        rows.append([method, len(found), *told, f"{gain.mean():+.4f} ± {error:.4f}", missed])
        print(rows[-1], flush=True)
    columns = [
        "method",
        "draws",
        f"AUROC with {count} labels",
        "and the rest without",
        "gain",
        "classes missed at most",
    ]
    print(format_table(columns, rows))


if __name__ == "__main__":
    main()
