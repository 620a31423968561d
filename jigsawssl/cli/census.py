"""The census for the terminal: what is in which split, and how words were understood."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..runs import format_table

_CLASSES_SHOWN = 10


def census_table(splits: Sequence[Mapping[str, Any]]) -> str:
    """Rows of :func:`jigsawssl.data.census.split_counts` as a table.

    >>> print(census_table([{"split": "train", "images": 3, "groups": 2, "classes": {"well": 1, "ill": 2}}]))
    | split | images | groups | classes         |
    | ----- | -----: | -----: | --------------- |
    | train |      3 |      2 | well: 1, ill: 2 |
    """
    rows = [[row["split"] or "none", row["images"], row["groups"], class_counts(row["classes"])] for row in splits]
    return format_table(["split", "images", "groups", "classes"], rows)


def told(remarks: Iterable[str]) -> list[str]:
    """A line for each remark on an archive.

    >>> told(["4 images without a split"])
    ['note: 4 images without a split']
    """
    return [f"note: {remark}" for remark in remarks]


def class_counts(counts: Mapping[str, int]) -> str | None:
    """Images of each class, of many classes the range alone.

    >>> class_counts({"well": 1, "ill": 2}), class_counts({f"class {k}": k for k in range(20)})
    ('well: 1, ill: 2', '19 of 20, from class 0: 0 to class 19: 19')
    """
    if len(counts) <= _CLASSES_SHOWN:
        return ", ".join(f"{name}: {count}" for name, count in counts.items()) or None
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    present = sum(count > 0 for count in counts.values())
    return f"{present} of {len(counts)}, from {least}: {counts[least]} to {most}: {counts[most]}"
