"""What a busy person reads of a run: what was done, the one number, and a flag for each thing that failed."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from scipy.stats import binom

from ..data.doctor import TOO_FEW
from ..runs.parts import BudgetFacts, Judgement, ShareOfLabels, judgement_of
from ..words import counted, duration, listed

WORSE_CALIBRATION = 0.005
"""Rise of the test calibration error by the temperature above which the temperature did harm: half a percentage point
of confidence, as less changes no decision."""
SHORTFALL, DOUBT = 0.05, 0.2
"""Probability of covering so few cases by chance, were the promise kept, below which it was not kept, and below which
that is doubtful. The usual level, one-sided, as more coverage than promised harms nobody; on a small test split that
misses large shortfalls, for which the second is there: of 40 cases, .8 for .9 has .04, and .825 has .1."""
SANITY = 0.3
"""Rank correlation of the maps with those of random weights above which they show the images and not the network:
below it, a correlation is commonly called weak. Adebayo et al. (2018), whose check it is, name no threshold."""
BORDER = 1.5
"""Times its share of the area that the border may get of the maps: the outer tenth has 36 % of it, so that more than
half of the maps then lies there."""
FEW_CASES = 10
"""Test images of a class below which its own numbers mean little: of 10, the 95 % interval of a recall is up to 53
points wide (Wilson 1927)."""
WIDE = 0.2
"""Width of the interval of the test AUROC above which it says little: from 0.7 to 0.9 reaches from acceptable to
outstanding, by the words of Hosmer and Lemeshow (2000)."""
COLLAPSED_SPREAD = 0.05
"""Spread of the normalised features below which all images look the same to the encoder: it is near 1 where features
lie all around the sphere and 0 where they are one point (Chen and He 2021)."""
COLLAPSED_RANK = 2.0
"""Effective rank below which the features have collapsed: it is 1 where all point one way (Garrido 2023)."""
FALLING_RANK = 0.5
"""Share of the first epoch's effective rank below which the features are narrowing: half, by judgement, as the
paper compares whole runs and names no threshold."""
AGREEMENT, LEARNED = 0.2, 0.5
"""Agreement of the views (mean diagonal of C, which are correlations) below which little was learned, as they share
less than 4 % of their variance, and from which it clearly was: a large correlation by the words of Cohen (1988)."""


class Flag(NamedTuple):
    """Something that failed: its kind, a sentence about it, and the part of the report that it is about, if any."""

    kind: str
    text: str
    where: str = ""


class Verdict(NamedTuple):
    """What was done, what the result is, and what failed."""

    done: str
    result: str
    flags: list[Flag]


def verdict(report: Mapping[str, Any]) -> Verdict:
    """The first lines of a report.

    Args:
        report: what ``report.json`` of any command holds; what an older one lacks is left out. One that is not about
            encoders says itself what was ``done`` and the ``result``.
    """
    of_encoders = {
        "pretrain": _pretraining,
        "finetune": _finetuning,
        "curve": _curve,
        "study": _study,
        "transfer": _transfer,
    }.get(report["command"])
    done, result = (report["done"], report["result"]) if of_encoders is None else of_encoders(report)
    return Verdict(done, result, flags(report))


def verdict_lines(found: Verdict) -> list[str]:
    """The same for the terminal, a line for each flag.

    >>> verdict_lines(Verdict("Done.", "AUROC 0.9.", [Flag("chance", "That is chance.", "scratch")]))
    ['Done. AUROC 0.9.', '! scratch: That is chance.']
    """
    lines = [f"! {flag.where}: {flag.text}" if flag.where else f"! {flag.text}" for flag in found.flags]
    return [f"{found.done} {found.result}", *lines]


def flags(report: Mapping[str, Any]) -> list[Flag]:
    """Everything in a report that failed one of the checks above; equal flags of several parts become one.

    Args:
        report: as for :func:`verdict`.
    """
    command = report["command"]
    if command == "pretrain":
        return [*_of_pretraining(report), *_unreadable(report)]
    if command == "finetune":
        return _of_supervised(report, judgement_of(report))
    found: list[Flag] = []
    if command == "transfer":
        for stage in report["stages"]:
            found += [flag._replace(where=stage["name"]) for flag in flags(stage)]
        return _together(found)
    if report.get("missing"):
        found.append(Flag("missing", f"{report['missing']} of {report['cells']} parts are missing."))
    for detail in report.get("details", []):
        budget = {"budget": detail["budget"], "data": report["data"], "config": report["config"]}
        where = f"{detail['encoder']} with {100 * detail['fraction']:.3g} % of the labels"
        found += [flag._replace(where=where) for flag in _of_supervised(budget, detail)]
    for name, encoder in (report.get("encoders") or report.get("variants") or {}).items():
        for guard in _guards(encoder.get("leak_guard")):
            found += [flag._replace(where=name) for flag in _of_guard(guard)]
    return _together(found)


def _of_supervised(report: Mapping[str, Any], judged: Judgement) -> list[Flag]:
    """Flags of one adapted encoder: ``report`` says what it was trained on, ``judged`` what the test gave."""
    return [
        *_of_result(judged),
        *_of_classes(report, judged),
        *_of_certainty(judged),
        *_of_maps(judged.get("explanations") or {}),
        *_of_validation(report),
        *(flag for guard in _guards(report.get("leak_guard")) for flag in _of_guard(guard)),
        *_unreadable(report),
    ]


def _of_result(judged: Judgement) -> list[Flag]:
    found = []
    if (interval := _interval_of(judged)) is not None:
        low, high = interval
        words = f"interval, {low:.3f} to {high:.3f},"
        if high < 0.5:
            found.append(Flag("chance", "The test AUROC and its whole interval are below chance: are labels swapped?"))
        elif low <= 0.5:
            found.append(Flag("chance", f"The test AUROC cannot be told from chance: its {words} includes 0.5."))
        elif high - low > WIDE:
            found.append(Flag("wide", f"The test AUROC is imprecise: its {words} is wide."))
    if judged["units"] < TOO_FEW:
        cases = counted(judged["units"], judged["unit"].removesuffix("s"))
        found.append(Flag("small test", f"The test split has only {cases}, too few for a firm result."))
    return found


def _of_classes(report: Mapping[str, Any], judged: Judgement) -> list[Flag]:
    found = []
    cases = {name: values["support"] for name, values in judged["metrics"]["per_class"].items()}
    if absent := [name for name, count in cases.items() if not count]:
        found.append(Flag("no cases", f"No test image shows {listed(absent)}: how well the model finds it is unknown."))
    if few := [f"{name} ({count})" for name, count in cases.items() if 0 < count < FEW_CASES]:
        found.append(
            Flag("few cases", f"Fewer than {FEW_CASES} test images show {listed(few)}: those results are unreliable.")
        )
    called = [sum(column) for column in zip(*judged["metrics"]["confusion_matrix"], strict=True)]
    if len(called) > 1 and sum(count > 0 for count in called) == 1:
        answer = list(cases)[next(k for k, count in enumerate(called) if count)]
        found.append(Flag("one answer", f"The model predicts {answer} for every test image."))
    if unseen := [name for name, count in report["budget"].get("per_class", {}).items() if not count]:
        found.append(Flag("no labels", f"No training label is {listed(unseen)}: the model cannot recognise it."))
    return found


def _of_certainty(judged: Judgement) -> list[Flag]:
    found = []
    before, after = (judged["calibration"][part]["calibration_error"] for part in ("before", "after"))
    if None not in (before, after) and after - before > WORSE_CALIBRATION:
        found.append(
            Flag(
                "calibration",
                f"The temperature fitted on validation made calibration worse on the test split: the error rose from "
                f"{before:.3f} to {after:.3f}. Use the probabilities without it.",
            )
        )
    sets = judged.get("conformal")
    if sets and sets["reached"] < sets["asked"]:
        units = judged["units"]  # images of one patient count once
        p = float(binom.cdf(round(sets["reached"] * units), units, sets["asked"]))
        cases = counted(units, judged["unit"].removesuffix("s"))
        words = "unlikely to be chance" if p < SHORTFALL else f"which may be chance with {cases}"
        if p < DOUBT:
            found.append(
                Flag(
                    "conformal",
                    f"Conformal sets promise {100 * sets['asked']:.3g} % but hold the true class in only "
                    f"{100 * sets['reached']:.3g} % of the test cases (p = {p:.2g}, {words}).",
                )
            )
    return found


def _of_maps(seen: Mapping[str, Any]) -> list[Flag]:
    found = []
    if abs(seen.get("sanity_correlation") or 0.0) > SANITY:
        found.append(
            Flag(
                "sanity",
                f"Sanity check of the maps: they correlate {seen['sanity_correlation']:.2f} with the maps of the same "
                "network with random weights (rank correlation, should be near 0), so they show the image rather than "
                "what the network learned.",
            )
        )
    if seen and seen["border_share"] > BORDER * seen["border_area"]:
        found.append(
            Flag(
                "border",
                f"{100 * seen['border_share']:.0f} % of the attribution lies in the outer tenth on each side of the "
                f"image, {100 * seen['border_area']:.0f} % of its area: the network may be using the background.",
            )
        )
    if seen.get("coarse"):
        cells = f"only {'×'.join(map(str, seen['grid']))}" if seen.get("grid") else "too few"
        found.append(Flag("coarse", f"The maps have {cells} cells: too coarse to show what the network looks at."))
    return found


def _of_validation(report: Mapping[str, Any]) -> list[Flag]:
    found = []
    split = report["data"].get("validation")
    if report["config"].get("validation") == "split" and split:
        groups = split.get("groups")
        cases = counted(split["images"], "image") if groups is None else counted(groups, "group")
        if (split["images"] if groups is None else groups) < TOO_FEW:
            found.append(
                Flag(
                    "small validation",
                    f"The validation split has only {cases}, so the settings were chosen largely by chance. Leave out "
                    "validation=split to choose them within the label budget.",
                )
            )
    if "groups it trains on" in report["budget"].get("validation", ""):
        found.append(
            Flag(
                "validation groups", "Validation has images of patients in the training data: its score is optimistic."
            )
        )
    return found


def _guards(guard: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    """One for an encoder, or one for each archive it was tested on."""
    if not guard:
        return []
    return [guard] if "checked" in guard else guard.values()


def _of_guard(guard: Mapping[str, Any]) -> list[Flag]:
    checked = str(guard.get("checked", ""))
    if checked.startswith("unknown: no seen.parquet"):
        return [Flag("leak", "Whether pretraining saw the test images is unknown: there was no seen.parquet.")]
    images, patients = (_size(guard.get(key)) for key in ("same_image", "same_group"))
    if images or patients:
        seen = [f"{counted(images, 'image')} used for evaluation"] if images else []
        if patients:
            of_them = "more" if images else "used for evaluation"
            seen.append(f"other images of the same patients as {patients} {of_them}")
        text = f"Pretraining saw {' and '.join(seen)}, as allow_overlap=true permitted: the result may be optimistic."
        return [Flag("leak", text)]
    if checked.startswith("by content alone"):
        text = (
            "Pretraining saw none of the test images; whether it saw their patients is unknown, as the key is missing."
        )
        return [Flag("leak", text)]
    if checked.startswith("in part"):
        return [Flag("leak", "What the weights saw before this pretraining is unknown and may include test images.")]
    return []


def _unreadable(report: Mapping[str, Any]) -> list[Flag]:
    judged, data = report.get("test_unreadable"), report["data"].get("unreadable")
    found = []
    if judged:
        count, were = counted(_size(judged), "test image"), "was" if _size(judged) == 1 else "were"
        found.append(Flag("unreadable", f"{count} could not be read and {were} left out."))
    if data:
        found.append(
            Flag("unreadable", f"{counted(_size(data), 'image')} could not be read; quarantine.csv lists them.")
        )
    return found


def _of_pretraining(report: Mapping[str, Any]) -> list[Flag]:
    metrics, found = report["metrics"], []
    agreement, rank, spread = _agreement(metrics), metrics.get("effective_rank"), metrics.get("feature_std")
    if (spread is not None and spread < COLLAPSED_SPREAD) or (rank is not None and rank < COLLAPSED_RANK):
        found.append(
            Flag(
                "collapse",
                f"The features collapsed: all images look nearly the same to the encoder (spread {spread:.3f}, 1 is "
                f"healthy; effective rank {rank:.1f} of {report['encoder']['features']}).",
            )
        )
    if agreement is not None and agreement < AGREEMENT:
        found.append(
            Flag("agreement", f"The two views of an image correlate at only {agreement:.2f}: little was learned.")
        )
    first = (report.get("first_epoch") or {}).get("effective_rank")
    if first and rank is not None and rank < FALLING_RANK * first:
        found.append(
            Flag(
                "rank",
                f"The features narrowed: their effective rank fell from {first:.0f} after the first epoch to "
                f"{rank:.0f} at the end.",
            )
        )
    return found


def _agreement(metrics: Mapping[str, Any]) -> float | None:
    """Mean diagonal of the cross-correlation matrices."""
    diagonal = [value for name, value in metrics.items() if name.startswith("diagonal_")]
    return sum(diagonal) / len(diagonal) if diagonal else None


def _pretraining(report: Mapping[str, Any]) -> tuple[str, str]:
    run, encoder, metrics = report["run"], report["encoder"], report["metrics"]
    done = (
        f"Pretrained {encoder['backbone']} on {counted(report['data']['images'], 'image')} without labels: "
        f"{counted(run['epochs'], 'epoch')} in {duration(run['seconds'])}."
    )
    kinds = {flag.kind for flag in _of_pretraining(report)}
    agreement = _agreement(metrics)
    if agreement is None:
        return done, ""
    if kinds & {"collapse", "agreement"}:
        learned = "It did not learn"
    elif "rank" in kinds or agreement < LEARNED:
        learned = "It learned a little"
    else:
        learned = "It learned"
    first, rank = report.get("first_epoch") or {}, metrics["effective_rank"]
    begun, used = _agreement(first), first.get("effective_rank")
    since = f"{begun:.2f} after the first epoch; " if begun is not None and run["epochs"] > 1 else ""
    grown = f" ({used:.0f} after the first epoch)" if used is not None and run["epochs"] > 1 else ""
    return done, (
        f"{learned}: the two views of an image correlate at {agreement:.2f} ({since}1 is best), and the features have "
        f"an effective rank of {rank:.0f} out of {encoder['features']}{grown}."
    )


def learning_rule() -> str:
    """When a pretraining counts as one that learned."""
    return (
        f"A pretraining counts as having learned if the two views of an image correlate at {LEARNED:g} or more (mean "
        f"diagonal of the cross-correlation matrices, at best 1), and as having learned a little from {AGREEMENT:g}, "
        f"or if the effective rank fell below {FALLING_RANK:g} times its value after the first epoch. The features "
        f"have collapsed if their spread is below {COLLAPSED_SPREAD:g} or their effective rank below "
        f"{COLLAPSED_RANK:g}. Only labels can show whether they serve a task."
    )


def _finetuning(report: Mapping[str, Any]) -> tuple[str, str]:
    budget, test, encoder = report["budget"], report["data"]["test"], report["encoder"]
    backbone = f" ({encoder['backbone']})" if encoder.get("backbone") else ""
    unlabelled = budget.get("unlabelled", 0)
    beside = f", beside {counted(unlabelled, 'image')} without a label," if unlabelled else ""
    done = (
        f"Adapted {encoder['reference']}{backbone} with {counted(budget['labels'], 'label')}"
        f"{_of_available(budget)}{beside} and tested once on {_tested(test, judgement_of(report))}."
    )
    return done, _number("Test AUROC", judgement_of(report))


def _of_available(budget: ShareOfLabels) -> str:
    groups = budget.get("groups")
    text = f" of {groups:,} groups" if groups is not None else ""
    share = f"{100 * budget['fraction']:.3g} % of those available" if budget.get("fraction", 1) < 1 else ""
    return f"{text} ({share})" if share else text


def _tested(test: Mapping[str, Any], judged: Judgement) -> str:
    text = counted(judged["metrics"].get("count", test["images"]), "image")
    return text if test.get("groups") is None else f"{text} of {test['groups']:,} groups"


def _number(name: str, judged: Judgement) -> str:
    value, interval = judged["metrics"]["auroc"], _interval_of(judged)
    if value is None:
        return f"{name}: not defined, as all test images are of one class."
    return f"{name} {value:.3f}{_interval(*interval or (None, None))}."


def _interval_of(judged: Judgement) -> tuple[float, float] | None:
    """Of the test AUROC, where it is defined."""
    low, high = judged["intervals"].get("auroc") or (None, None)
    return None if low is None or high is None else (low, high)


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"


def _curve(report: Mapping[str, Any]) -> tuple[str, str]:
    names, table, test = list(report["encoders"]), report["table"], report["data"]["test"]
    fractions = sorted({row["fraction"] for row in table})
    draws = max((row["seeds"] for row in table), default=0)
    images = table[0]["images"] if table else test["images"]
    groups = f" of {test['groups']:,} groups" if test.get("groups") is not None else ""
    done = (
        f"Compared {listed(names)} at {counted(len(fractions), 'label fraction')} with "
        f"{counted(draws, 'draw')} each, tested on {counted(images, 'image')}{groups}."
    )
    known = [row for row in table if row["fraction"] == fractions[0] and "auroc" in row["metrics"]] if table else []
    if not known:
        return done, "There are no results yet." if not table else "The AUROC is not defined."
    parts = [
        f"{row['encoder']} {row['metrics']['auroc']['mean']:.3f}"
        f"{_interval(row['metrics']['auroc']['low'], row['metrics']['auroc']['high'])}"
        for row in known
    ]
    return done, f"Test AUROC with the fewest labels ({known[0]['labels']:.0f}): {'; '.join(parts)}."


def _study(report: Mapping[str, Any]) -> tuple[str, str]:
    names, test = list(report["variants"]), report["data"]["test"]
    repetitions = max((row["seeds"] for row in report["table"]), default=0)
    groups = f" of {test['groups']:,} groups" if test.get("groups") is not None else ""
    done = (
        f"Compared {listed(names)} with {counted(repetitions, 'repetition')} each, tested on "
        f"{counted(test['images'], 'image')}{groups}."
    )
    best = next((row for row in report["table"] if row["encoder"] == report["best"]), None)
    if best is None or "balanced_accuracy" not in best["metrics"]:
        return done, "There are no results yet."
    value = best["metrics"]["balanced_accuracy"]
    result = f"{report['best']} is best on validation: balanced accuracy {value['mean']:.3f}"
    result += f"{_interval(value['low'], value['high'])} on the test split"
    ranks = report["ranking"].get(best["domain"])
    if ranks:
        apart = sum(row["p_holm"] < 0.05 for row in ranks["pairs"])
        told = f"{apart or 'none'} of {counted(len(ranks['pairs']), 'pair')}"
        result += f"; {told} of variants differ{'s' if apart < 2 else ''} significantly"
    return done, f"{result}."


def _transfer(report: Mapping[str, Any]) -> tuple[str, str]:
    stages = report["stages"]
    done = f"Trained in {counted(len(stages), 'stage')}: {', then '.join(stage['name'] for stage in stages)}."
    last = stages[-1]
    if last["command"] == "pretrain":
        return done, _pretraining(last)[1]
    judged = judgement_of(last)
    tested = _tested(last["data"]["test"], judged)
    return done, f"{_number('The last stage has a test AUROC of', judged)[:-1]} on {tested}."


def validation_sentence(judged: Judgement, budget: BudgetFacts) -> str | None:
    """The validation AUROC beside that of the test split, and why they differ; ``None`` where one is not defined."""
    known, test = judged.get("validation"), judged["metrics"]["auroc"]
    if known is None or known["auroc"] is None or test is None:
        return None
    how = budget["validation"].partition(";")[0]
    text = f"Validation AUROC {known['auroc']:.3f} ({how}), test AUROC {test:.3f}."
    interval = _interval_of(judged)
    if interval is not None and interval[0] <= known["auroc"] <= interval[1]:
        text += " The difference may be chance."
    reasons = ["the settings were chosen on it, which makes it optimistic"]
    if "groups it trains on" in budget["validation"]:
        reasons.append("it includes images of patients in the training data, which makes it optimistic")
    if "cross-validation" in how:
        reasons.append("its networks were trained on only part of the labels, which lowers it")
    elif "val split" not in how:
        reasons.append("its network was trained without these labels, which lowers it")
    else:
        reasons.append("the manifest defines both splits, whose cases may differ")
    if known["images"] < 100:
        reasons.append(f"{counted(known['images'], 'image')} give only a rough estimate")
    return f"{text} Validation is not the result: {'; '.join(reasons)}."


def _together(found: Iterable[Flag]) -> list[Flag]:
    """One flag for each kind: its text once, and where else it holds."""
    kinds: dict[str, list[Flag]] = {}
    for flag in found:
        kinds.setdefault(flag.kind, []).append(flag)
    result = []
    for group in kinds.values():
        places = list(dict.fromkeys(flag.where for flag in group))
        first = group[0]
        if len({flag.text for flag in group}) == 1:
            result.append(first._replace(where=listed(places) if len(places) <= 4 else ""))
        else:
            rest = [place for place in places if place != first.where]
            also = f" The same holds for {listed(rest)}." if rest else ""
            result.append(first._replace(text=f"{first.text}{also}"))
    return result


def _size(value: Any) -> int:
    return value if isinstance(value, int) else len(value or ())
