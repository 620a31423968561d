"""How many images, groups and classes an archive has, split by split."""

from collections import Counter
from collections.abc import Container
from typing import Any

from ..types import Sample
from .archive import Archive
from .conventions import SPLITS


def split_counts(archive: Archive, among: Container[str] | None = None) -> list[dict[str, Any]]:
    """The census of an archive, a row for each split: train, val and test first, images without a split last.

    Args:
        archive: with what its manifest says.
        among: paths that count; default: all.

    Returns:
        JSON values: ``split`` (None: images without one), ``images``, ``groups`` (None where the manifest has none; an
        image that lacks one is a group of its own) and ``classes``, name → images.

    >>> from jigsawssl.data import open_archive
    >>> split_counts(open_archive("demo").select([0, 1, 2]))[0]["images"]
    3
    """
    members: dict[str | None, list[Sample]] = {}
    for sample in archive.samples:
        if among is None or sample.path in among:
            members.setdefault(sample.split, []).append(sample)
    known = {name: number for number, name in enumerate(SPLITS)}
    found = []
    for name in sorted(members, key=lambda name: (name is None, known.get(name or "", len(known)), name or "")):
        samples = members[name]
        groups = None
        if archive.groups is not None:
            groups = len({("of", s.path) if s.group is None else ("group", s.group) for s in samples})
        labels = Counter(sample.label for sample in samples)
        classes = {label: labels[label] for label in archive.classes}
        found.append({"split": name, "images": len(samples), "groups": groups, "classes": classes})
    return found
