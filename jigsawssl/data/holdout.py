"""The test split that follows from the images themselves, for archives that bring none."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TEST_SHARE = 0.2
"""Share of the patients, groups or images that are kept out of pretraining to test on."""

TRAIN, TEST, COPY = "train", "test", "copy"
"""Sides of a derived split. A copy has the content of a test image, belongs to another unit and is not used at all."""


def is_held_out(name: str) -> bool:
    """Whether a patient, a group or an image is on the test side.

    A hash of the name, its kind in front, decides, so every command agrees and the answer lasts as an archive grows.

    >>> [is_held_out(f"group {number}") for number in range(12, 16)]
    [False, False, True, False]
    """
    drawn = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, person=b"test split").digest()
    return int.from_bytes(drawn, "big") < TEST_SHARE * 2**64


def units_of(*names: Sequence[str | None]) -> NDArray[np.int64]:
    """Number the units that must not be divided: rows that share a name, directly or by way of others.

    Args:
        names: of each kind, one entry a row; rows with None share nothing by that kind.

    Returns:
        int64 ``(N,)`` from 0; a row without names is a unit of its own.

    >>> units_of(["p1", "p1", None, None], [None, "g1", "g1", None]).tolist()
    [0, 0, 0, 1]
    """
    count = len(names[0])
    rows: list[int] = []
    columns: list[int] = []
    known: dict[tuple[int, str], int] = {}
    for kind, values in enumerate(names):
        for row, value in enumerate(values):
            if value is not None:
                rows.append(row)
                columns.append(known.setdefault((kind, value), count + len(known)))
    size = count + len(known)
    edges = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    found = connected_components(edges, directed=False)[1][:count]
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def derive_split(
    contents: Sequence[int | None],
    patients: Sequence[str | None],
    held_out_patients: Sequence[bool | None],
    groups: Sequence[str | None],
    *,
    whole: bool = False,
) -> NDArray[np.str_]:
    """Divide an archive into train and test by what its images are, without labels.

    The patient decides for an image, else its group, else its content. A unit of several patients that share groups
    goes by a group. Where every unit is on the same side, the one with the least content changes over. So a side lasts
    as an archive grows, but for such a unit, for a group that a second patient joins, and for what turns out a copy.

    Args:
        contents: key of each image's content, None where it cannot be read.
        patients: each image's patient, in any form that tells patients apart; None where unknown.
        held_out_patients: :func:`is_held_out` of the patient in plain text.
        groups: of the manifest, None where unknown.
        whole: a unit is on the test side only where all its images would be there if nobody knew groups. So a run
            that did not know them has left all of it out.

    Returns:
        str ``(N,)``: :data:`TRAIN`, :data:`TEST` or :data:`COPY`.

    >>> derive_split(range(6), [None] * 6, [None] * 6, ["12", "12", "13", "13", "14", "14"]).tolist()
    ['train', 'train', 'train', 'train', 'test', 'test']
    """
    own = np.array(
        [
            bool(side) if patient is not None else content is not None and is_held_out(f"content {content}")
            for content, patient, side in zip(contents, patients, held_out_patients, strict=True)
        ],
        dtype=bool,
    )
    units = units_of(patients, groups)
    if whole:
        held = np.bincount(units, own) == np.bincount(units)
    else:
        held = _held_units(own, units, patients, groups)
        readable = [(content, row) for row, content in enumerate(contents) if content is not None]
        if len(held) > 1 and held.all() == held.any() and readable:
            least = units[min(readable)[1]]
            held[least] = not held[least]
    sides = np.where(held[units], TEST, TRAIN)
    tested = {content for content, side in zip(contents, sides, strict=True) if side == TEST} - {None}
    copies = [content in tested and side == TRAIN for content, side in zip(contents, sides, strict=True)]
    return np.where(copies, COPY, sides)


def _held_units(
    own: NDArray[np.bool_], units: NDArray[np.int64], patients: Sequence[str | None], groups: Sequence[str | None]
) -> NDArray[np.bool_]:
    """Which units are on the test side; ``own`` is the side of each image without its group."""
    held = np.zeros(units.max(initial=-1) + 1, dtype=bool)
    held[units] = own
    of_unit: dict[int, tuple[set[str], set[str]]] = {}
    for row, (unit, patient, group) in enumerate(zip(units.tolist(), patients, groups, strict=True)):
        if patient is not None:
            held[unit] = own[row]
            of_unit.setdefault(unit, (set(), set()))[0].add(patient)
        if group is not None:
            of_unit.setdefault(unit, (set(), set()))[1].add(group)
    for unit, (its_patients, its_groups) in of_unit.items():
        if len(its_patients) != 1 and its_groups:
            held[unit] = is_held_out(f"group {min(its_groups)}")
    return held
