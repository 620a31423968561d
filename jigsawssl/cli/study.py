"""Wire a comparison study: variants × settings, then variants × repetitions, tested on one or more archives."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.schemas import StudyConfig
from ..data.labelled import Domain, Labelled, open_domain
from ..data.leakage import seen_images
from ..data.loading import PixelDataset
from ..experiments.overlap import check_overlap
from ..experiments.ranking import IN_DOMAIN
from ..experiments.reporting import study_report, study_summary
from ..experiments.runner import Outcome
from ..experiments.study import StudyPlan, cost_of, is_finished, load_search, run_searches, run_study
from ..experiments.trials import EncoderChoice
from ..progress import Progress
from ..training.optim import DEFAULT_WEIGHT_DECAY
from ..types import ImageFormat, UserError
from . import supervised

READ_AHEAD = 16
"""Images of an archive that are read before anything is trained."""


def run(config: StudyConfig) -> int:
    """Search and repeat what is not finished, then report; gives 0, or 1 where a part failed."""
    opened = supervised.open_cells(config)
    path, device, labelled, source, channels = opened
    subsets = supervised.draw_subsets(config, labelled, [config.fraction])
    supervised.check_draws(subsets, labelled, "fraction", count_groups=config.budget == "groups")
    domains = {
        name: Domain(values["data"], values.get("manifest"), values.get("layout"))
        for name, values in config.domains.items()
    }
    elsewhere = {name: _open_domain(domain, labelled) for name, domain in domains.items()}
    overlaps = _overlaps(config, elsewhere, labelled)
    common = supervised.choice_of(config, "", labelled)
    choices = {name: _choice(common, values) for name, values in config.variants.items()}
    variants = {
        name: _facts(config, name=name, choice=choices[name], channels=channels, labelled=labelled, elsewhere=elsewhere)
        for name in choices
    }
    task = supervised.task_of(
        config,
        opened,
        variants=variants,
        domains=overlaps,
        prints={
            "domains": [
                (name, found.archive.fingerprint(), list(map(repr, found.archive.samples)))
                for name, found in elsewhere.items()
            ],
            "variants": [(name, facts["sha256"]) for name, facts in sorted(variants.items())],
        },
    )
    supervised.begin_cells(config, opened, task=task, subsets=subsets, folders=["search", "cells"])
    recipe = supervised.recipes_of(config, device, seed=0)[0]
    if recipe.weight_decay is None:
        recipe = recipe._replace(weight_decay=DEFAULT_WEIGHT_DECAY[recipe.optimizer])
    plan = StudyPlan(
        source=source,
        variants=choices,
        domains=domains,
        channels=channels,
        recipe=recipe,
        space={key.rpartition(".")[2]: (float(low), float(high)) for key, (low, high) in config.space.items()},
        trials=config.trials,
        fraction=config.fraction,
        subsets={seed: rows for (_, seed), rows in subsets.items()},
        out=path,
    )
    _work(plan, config, device)
    supervised.end_cells(path)
    report = study_report(path)
    print(f"\n{study_summary(report)}\n\nreport: {path / 'report.html'}  table: {path / 'table.csv'}")
    for part, reason in report["failed"].items():
        print(f"failed: {part}: {reason}; {path.name}/search and cells hold what it said")
    return 1 if report["missing"] or report["failed"] else 0


def _choice(common: EncoderChoice, values: Mapping[str, Any]) -> EncoderChoice:
    return common._replace(
        reference=values["encoder"],
        attention=values.get("attention", common.attention),
        attention_stages=tuple(values.get("attention_stages", common.attention_stages)),
        backbone_options=dict(values.get("backbone_options", common.backbone_options or {})),
    )


Elsewhere = Mapping[str, Labelled]


def _open_domain(domain: Domain, labelled: Labelled) -> Labelled:
    """An archive that is only tested on; some of its images must be readable."""
    found, _ = open_domain(domain, classes=labelled.archive.classes)
    PixelDataset(found.archive.select(found.test[:READ_AHEAD].tolist()), ImageFormat(8)).load(progress=False)
    return found


def _overlaps(config: StudyConfig, elsewhere: Elsewhere, labelled: Labelled) -> dict[str, dict[str, int]]:
    """How many images each archive has, and how many of them are trained on too, which must be none."""
    if not elsewhere:
        return {}
    used = np.union1d(labelled.pool, labelled.validation)
    seen = seen_images(labelled.identities, used, progress=True)
    found = {}
    for name, domain in elsewhere.items():
        same = len(seen.overlap(domain.identities, domain.test).same_image)
        if same and not config.allow_overlap:
            raise UserError(
                f"`domains.{name}` must hold no image that is trained on; {same} are the same; leave them out, or give "
                "allow_overlap=true, which the report will say"
            )
        found[name] = {"images": len(domain.test), "trained_on_too": same}
    return found


def _facts(
    config: StudyConfig, *, name: str, choice: EncoderChoice, channels: int, labelled: Labelled, elsewhere: Elsewhere
) -> dict[str, Any]:
    try:
        encoder, trained = choice.resolve(channels)
    except UserError as error:
        raise UserError(f"`variants.{name}`: {error}") from None
    supervised.check_encoder(config, choice.reference, trained=trained, encoder=encoder)
    guards = {
        place: supervised.counted(
            check_overlap(choice.reference, trained=trained, labelled=found, allowed=config.allow_overlap)
        )
        for place, found in {IN_DOMAIN: labelled, **elsewhere}.items()
    }
    return {
        **supervised.provenance_of(choice.reference, trained),
        "against": config.variants[name].get("against", next(iter(config.variants))),
        "backbone": encoder.spec.backbone,
        "attention": encoder.spec.attention,
        "size": encoder.spec.format.size,
        **cost_of(encoder),
        "sha256": supervised.digest(choice.reference),
        "leak_guard": guards,
    }


def _work(plan: StudyPlan, config: StudyConfig, device: torch.device) -> None:
    searches = [name for name in plan.variants if load_search(plan.out / "search" / f"{name}.json") is None]
    jobs = config.jobs or supervised.default_jobs(device)
    number = len(plan.variants)
    if searches:
        print(f"{number} searches of {plan.trials} settings, {len(searches)} of them to be done")
        _collect(run_searches(plan, searches, min(jobs, len(searches))), "Search", searches, plan.out / "search")
    found = [name for name in plan.variants if load_search(plan.out / "search" / f"{name}.json") is not None]
    cells = plan.cells()
    waiting = [cell for cell in cells if cell.encoder in found and not is_finished(plan, cell)]
    print(f"{len(cells)} repetitions, {len(waiting)} of them to be done")
    if waiting:
        _collect(run_study(plan, waiting, min(jobs, len(waiting))), "Study", waiting, plan.out / "cells")


def _collect(outcomes: Iterator[Outcome], name: str, parts: Sequence[Any], folder: Path) -> None:
    """Show how far it is, and keep why a part failed."""
    with Progress(total=len(parts), desc=name) as bar:
        for outcome in outcomes:
            supervised.keep_outcome(folder, outcome)
            bar.update()
