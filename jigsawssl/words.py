"""Numbers and names as they stand in a sentence: durations, counts, differences, metrics."""

from collections.abc import Iterable

NAMES = {
    "auroc": "AUROC",
    "brier": "Brier score",
    "diagonal": "agreement of the views:",
    "f1": "F1",
    "kappa": "Cohen's κ",
    "lr": "learning rate",
    "quadratic_kappa": "quadratic κ",
    "sensitivity_at_specificity": "sensitivity at 90 % specificity",
    "specificity_at_sensitivity": "specificity at 90 % sensitivity",
    "std": "spread",
    "train": "training",
    "val": "validation",
}
"""Names of metrics, or words in them, that do not stand for themselves."""


def name_of(metric: str) -> str:
    """A metric in plain words.

    >>> name_of("val_auroc"), name_of("quadratic_kappa"), name_of("calibration_error")
    ('validation AUROC', 'quadratic κ', 'calibration error')
    """
    if metric in NAMES:
        return NAMES[metric]
    return " ".join(NAMES.get(word, word) for word in metric.replace("/", " ").split("_") if word) or metric


def duration(seconds: float) -> str:
    """The time in the unit that suits it.

    >>> duration(42), duration(306), duration(30_000)
    ('42 s', '5.1 min', '8.3 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds; days in place of seconds where there are any.

    >>> clock(80), clock(3725), clock(200_000)
    ('1:20', '1:02:05', '2 d 7 h')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def counted(number: float, noun: str) -> str:
    """A number of things.

    >>> counted(1, "image"), counted(1600, "image")
    ('1 image', '1,600 images')
    """
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names as in a sentence, and the number of those that would make it too long.

    >>> listed(["a"]), listed("abc"), listed(map(str, range(55)), most=3)
    ('a', 'a, b and c', '0, 1, 2 and 52 more')
    """
    all_names = list(names)
    *before, last = all_names if len(all_names) <= most else [*all_names[:most], f"{len(all_names) - most} more"]
    return f"{', '.join(before)} and {last}" if before else last


def signed(value: float) -> str:
    """A difference to three digits with its sign, of which one that rounds to nothing has none.

    >>> signed(0.0213), signed(-0.5), signed(-0.0001)
    ('+0.021', '−0.500', '0.000')
    """
    return f"{value:+.3f}".replace("-", "−") if float(f"{value:.3f}") else "0.000"
