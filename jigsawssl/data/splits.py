"""Which rows to label, to hold out and to validate on: stratified by class, never dividing a patient."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jigsawssl.types import UserError

Rows = NDArray[np.int64]
"""Numbers of rows of an archive."""

Fold = tuple[Rows, Rows]
"""Positions to train on, and to validate on."""


def label_fraction(
    labels: ArrayLike, groups: ArrayLike | None, *, fraction: float, seed: int, count_groups: bool = False
) -> Rows:
    """Choose the rows whose labels a run may see, stratified by class and by whole groups.

    A group belongs to the class of most of its rows (a tie goes to the smaller class); rows of a class that owns no
    group count apart from the groups they are in. The groups of a class are put
    in a random order that depends on ``seed`` and class only, and the rows are taken from the front. The cut falls
    on the border between two groups nearest to ``fraction`` of the rows of the class; where that border lies below
    half of this target, as when the first group is more than twice too large, the next group is divided and the cut
    falls on the target itself. At least one row of every class is taken.

    With ``count_groups`` the cut falls on the border nearest to ``fraction`` of the groups of the class, at least one,
    and no group is divided: right where the rows of a group are copies of one specimen and cost one label together.

    Choices of one seed are nested: the cut never moves forward as ``fraction`` shrinks, and the order does not
    depend on ``fraction``, so a smaller fraction chooses a subset of a larger one, with groups and without.

    Args:
        labels: int ``(N,)``; rows with -1 are never chosen.
        groups: str ``(N,)``, or None where every row stands for itself.
        fraction: in (0, 1]; 1 chooses every labelled row.
        seed: a non-negative integer.
        count_groups: measure ``fraction`` in groups.

    Returns:
        Sorted int64 rows.

    Raises:
        UserError: if ``fraction`` is outside (0, 1] or no row has a label.

    >>> label_fraction([0, 0, 0, 0, 1, 1, 1, 1, -1], None, fraction=0.5, seed=0).size
    4
    """
    if not 0 < fraction <= 1:
        raise UserError(f"`fraction` ({fraction:g}) must be above 0 and at most 1; use 0.1 for a tenth of the labels.")
    rows, label, group = _labelled(labels, groups)
    owner = _majority(label, group)[group]
    for cls in np.setdiff1d(label, owner).tolist():
        owner[label == cls] = cls  # the majority of no group: its rows stand for themselves
    chosen = []
    for cls in np.unique(label).tolist():
        rng = np.random.default_rng([seed, cls])
        own = np.flatnonzero(owner == cls)
        shuffled = own[rng.permutation(own.size)]
        turn = np.empty(group.max() + 1, dtype=np.int64)
        names = np.unique(group[own])
        turn[names] = rng.permutation(names.size)
        # Within a group the rows of its class come first, so that a divided group still shows its class.
        order = shuffled[np.lexsort((label[shuffled] != cls, turn[group[shuffled]]))]
        borders = np.cumsum(np.bincount(turn[group[own]]))
        most = max(1, int(fraction * borders.size + 0.5))
        chosen.append(order[: borders[most - 1] if count_groups else _cut(borders, fraction * order.size)])
    return np.asarray(rows[np.unique(np.concatenate(chosen))], dtype=np.int64)


def holdout_split(labels: ArrayLike, groups: ArrayLike | None, *, share: float, seed: int) -> Fold:
    """Hold out about ``share`` of the labelled rows, stratified by class, no group divided.

    It is the first of ``round(1 / share)`` folds of :func:`cross_validation_folds`, whose rules hold here too: every
    class keeps rows in train, and with few groups a class the held-out share is larger than asked.

    Args:
        labels: int ``(N,)``; rows with -1 are in neither part.
        groups: str ``(N,)``, or None where every row stands for itself.
        share: in (0, 0.5].
        seed: a non-negative integer.

    Returns:
        ``(train_rows, val_rows)``, sorted int64, disjoint.

    Raises:
        UserError: if ``share`` is outside (0, 0.5], or if no class has two groups.

    >>> train, val = holdout_split([0, 1] * 10, None, share=0.2, seed=0)
    >>> train.size, val.size
    (16, 4)
    """
    if not 0 < share <= 0.5:
        raise UserError(f"`share` ({share:g}) must be above 0 and at most 0.5; use 0.2 to hold out a fifth.")
    return cross_validation_folds(labels, groups, folds=round(1 / share), seed=seed)[0]


def cross_validation_folds(labels: ArrayLike, groups: ArrayLike | None, *, folds: int, seed: int) -> list[Fold]:
    """Divide the labelled rows into folds, stratified by class, no group divided, no val part empty.

    Every class is in the train part of every fold: a group that alone holds a class always stays in train and is
    never validated on. There are fewer folds than asked where no class has that many groups.

    Args:
        labels: int ``(N,)``; rows with -1 are in no fold.
        groups: str ``(N,)``, or None where every row stands for itself.
        folds: number of folds, 2 or more.
        seed: a non-negative integer.

    Returns:
        ``(train_rows, val_rows)`` of each fold, sorted int64; the val parts are disjoint.

    Raises:
        UserError: if ``folds`` is below 2, no row has a label, or no class has two groups to divide.

    >>> [val.size for train, val in cross_validation_folds([0, 1] * 6, None, folds=3, seed=0)]
    [4, 4, 4]
    """
    if folds < 2:
        raise UserError(f"`folds` ({folds}) must be 2 or more; use 5.")
    rows, label, group = _labelled(labels, groups)
    held_by = np.unique(np.stack([label, group]), axis=1)  # pairs of class and group
    classes, occurrences = np.unique(held_by[0], return_counts=True)
    alone = held_by[1][np.isin(held_by[0], classes[occurrences == 1])]
    owner = _majority(label, group)
    free = np.setdiff1d(np.arange(owner.size), alone)
    most = int(np.bincount(owner[free]).max(initial=0))
    if most < 2:
        raise UserError(
            f"`groups` ({owner.size}) must give some class 2 to divide, beside groups that alone hold a class; none "
            "has them; add patients, or name a split for validation."
        )
    fold_of = _deal(owner, np.bincount(group), free=free, folds=min(folds, most), rng=np.random.default_rng(seed))[
        group
    ]
    result = []
    for fold in range(min(folds, most)):
        held_out = fold_of == fold
        # Only groups of several classes can still take all of a class away from train; they then stay there.
        lost = np.setdiff1d(label, label[~held_out])
        held_out &= ~np.isin(group, group[np.isin(label, lost)])
        if held_out.any():
            result.append((rows[~held_out], rows[held_out]))
    if len(result) < 2:
        raise UserError(
            f"`groups` ({owner.size}) must be able to leave train without taking a class along; fewer than 2 folds "
            "can; add patients, or name a split for validation."
        )
    return result


def _labelled(labels: ArrayLike, groups: ArrayLike | None) -> tuple[Rows, Rows, Rows]:
    """Rows that have a label, their labels, and their groups numbered from 0."""
    every = np.asarray(labels, dtype=np.int64)
    rows = np.flatnonzero(every >= 0).astype(np.int64)
    if not rows.size:
        raise UserError(f"`labels` must name a class for some image; all {every.size} are unlabeled; give a manifest.")
    if groups is None:
        return rows, every[rows], np.arange(rows.size, dtype=np.int64)
    number = np.unique(np.asarray(groups)[rows], return_inverse=True)[1]
    return rows, every[rows], number.astype(np.int64)


def _majority(label: Rows, group: Rows) -> Rows:
    """The commonest label of each group, the smaller one at a tie."""
    pairs, count = np.unique(np.stack([group, label]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -count, pairs[0]))
    first = np.unique(pairs[0][order], return_index=True)[1]
    return np.asarray(pairs[1][order][first], dtype=np.int64)


def _cut(borders: Rows, target: float) -> int:
    """How many rows to take: a non-decreasing function of ``target``, which makes the choices nested."""
    candidates = np.concatenate([[0], borders])
    nearest = int(candidates[np.argmin(np.abs(candidates - target))])
    return nearest if nearest >= max(1, target / 2) else max(1, int(target + 0.5))


def _deal(owner: Rows, sizes: Rows, *, free: Rows, folds: int, rng: np.random.Generator) -> Rows:
    """Deal the ``free`` groups out, class by class and largest first; the others get fold -1.

    A group goes to the fold with the fewest rows of its class, then the fewest rows at all, then by chance; so the
    first groups of a class go to different folds, and a class with as many groups as folds is in each of them.
    (scikit-learn's StratifiedGroupKFold promises neither.)
    """
    fold_of = np.full(owner.size, -1, dtype=np.int64)
    total = [0] * folds
    for cls in np.unique(owner[free]):
        mine = rng.permutation(free[owner[free] == cls])
        held = [0] * folds
        for group in mine[np.argsort(-sizes[mine], kind="stable")].tolist():
            chance = rng.random(folds).tolist()
            fold = min(range(folds), key=lambda f: (held[f], total[f], chance[f]))
            fold_of[group] = fold
            held[fold] += int(sizes[group])
            total[fold] += int(sizes[group])
    return fold_of
