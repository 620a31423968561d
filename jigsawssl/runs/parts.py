"""What parts of a ``report.json`` hold, so that writers and readers agree."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


class Value(TypedDict):
    """A metric over label draws: mean, standard deviation between draws, 95 % interval over patients."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None


class Row(TypedDict):
    """One encoder with one share of the labels, as the tables of curves and studies have it.

    ``cost`` counts the labels in ``unit``, labels or groups; ``images`` are those of the test split.
    """

    encoder: str
    fraction: float
    mode: str
    cost: float
    unit: str
    labels: float
    groups: float | None
    seeds: int
    images: int
    candidates: int
    seconds: float
    metrics: dict[str, Value]


class StudyRow(Row):
    """The same on one of the archives that a study tests on."""

    domain: str


class Difference(TypedDict):
    """How much one encoder is ahead of another.

    Attributes:
        difference: mean over seeds of first minus second.
        low: of the 95 % interval that goes with ``p``.
        high: of the same.
        p: two-sided, of the test with seeds and the patients that all of them share.
        p_bootstrap: two-sided, of the paired bootstrap over seeds and patients.
        p_nadeau_bengio: two-sided, of the corrected resampled t-test, ``None`` where seeds do not differ.
        effect: difference over its standard deviation between seeds (Cohen's d for pairs), ``None`` where that is 0.
        ahead: number of seeds in which the first is ahead.
        seeds: number of seeds.
    """

    difference: float
    low: float
    high: float
    p: float
    p_bootstrap: float
    p_nadeau_bengio: float | None
    effect: float | None
    ahead: int
    seeds: int


class Contrast(Difference):
    """Two encoders by one metric; ``first_mean`` is over the same seeds."""

    first: str
    second: str
    metric: str
    fraction: float
    first_mean: float


class Corrected(Contrast):
    """The same with the p-value corrected for the number of comparisons (Holm 1979)."""

    p_holm: float


class StudyContrast(Corrected):
    """The same on one of the archives that a study tests on."""

    domain: str


class Ratio(TypedDict):
    """Of labels; ``side`` is ``at most`` or ``more than`` where the curve ends before it could tell."""

    value: float
    side: str


class Saving(TypedDict):
    """How many times the labels of ``first`` the other needs to reach its AUROC."""

    first: str
    second: str
    fraction: float
    cost: float
    auroc: float
    times: Ratio
    low: Ratio
    high: Ratio
    times_in_words: str
    interval_in_words: str


class BudgetFacts(TypedDict):
    """The labels that a model could use; ``unreadable`` has paths and reasons, or their number alone.

    ``unlabelled`` images had none and were learned from all the same.
    """

    labels: int
    labels_in_fraction: int
    available: int
    per_class: dict[str, int]
    groups: int | None
    validation: str
    unreadable: dict[str, str] | int
    unlabelled: NotRequired[int]


class ShareOfLabels(BudgetFacts):
    """The same of one fine-tuning; ``fraction`` of those available, by labels or groups."""

    fraction: float


class Validation(TypedDict):
    """How the labels that chose the settings were judged."""

    auroc: float | None
    images: int


class Conformal(TypedDict):
    """Sets that hold the true class with the coverage ``asked``; shares of the test cases."""

    asked: float
    reached: float
    interval: tuple[float | None, float | None]
    mean_size: float
    single: float
    empty: float
    calibration_cases: int


class Calibration(TypedDict):
    """Brier score, calibration error, log loss and reliability ``before`` and ``after`` the temperature."""

    temperature: float
    before: dict[str, Any]
    after: dict[str, Any]


class Judgement(TypedDict, total=False):
    """What :func:`jigsawssl.evaluation.assessment.judge` says of a model; ``None`` where ``notes`` say why not."""

    metrics: dict[str, Any]
    intervals: dict[str, Any]
    unit: str
    units: int
    curves: dict[str, Any]
    risk_coverage: dict[str, Any]
    validation: Validation | None
    conformal: Conformal | None
    operating_point: dict[str, Any] | None
    net_benefit: dict[str, Any] | None
    disagreement: dict[str, Any] | None
    calibration: Calibration
    subgroups: dict[str, list[dict[str, Any]]]
    explanations: dict[str, Any] | None
    notes: list[str]


def judgement_of(report: Mapping[str, Any]) -> Judgement:
    """The judgement of a fine-tuning's report, whose file keeps the metrics as ``test``."""
    judged: Judgement = report["judgement"]
    return judged if "metrics" in judged else {**judged, "metrics": report["test"]}
