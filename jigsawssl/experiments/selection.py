"""Which images to label: chosen by the features of an encoder, without labels or with a few."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from ..data.splits import Rows
from ..evaluation.resampling import Numbers
from ..progress import Progress
from ..types import UserError

MOST_CLUSTERS = 500
"""Clusters at most, as in TypiClust (Hacohen et al. 2022, section 3.2); further images go round by round."""

NEIGHBOURS = 20
"""Neighbours that typicality is measured by (the same, section 3.1)."""

PURITY = 0.95
"""Share of pure balls that the radius of coverage keeps (ProbCover: Yehuda et al. 2022, section 4.2)."""

UNCERTAIN = 10
"""Candidates for each image that is chosen by uncertainty, among which clusters make them diverse (Zhdanov 2019)."""

_SAMPLE = 2000  # images that the radius and the number of clusters are estimated by
_BLOCK = 512  # rows of distances that are in memory at a time
_LARGE = 20_000  # images from which on clusters are found by small batches
_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)


class Candidates(NamedTuple):
    """What is chosen from.

    Attributes:
        features: float32 ``(N, D)`` of all images, with the labelled ones.
        known: positions of the labelled ones.
        groups: int64 ``(N,)``, the same number for images of one patient; ``None`` where unknown.
        per_group: images of a group that may be labelled, the known ones among them; 0: any number.
        probabilities: float ``(N, K)`` of a probe on the known ones, for methods that need it.
    """

    features: Numbers
    known: Rows
    groups: NDArray[np.int64] | None = None
    per_group: int = 1
    probabilities: Numbers | None = None


class Selection(NamedTuple):
    """Positions in the order of choice, the cluster of each (-1: there are none), and why each was chosen."""

    rows: Rows
    clusters: NDArray[np.int64]
    reasons: list[str]


class Method(NamedTuple):
    """A way to choose: what it does, how, and whether it needs labels to begin with."""

    meaning: str
    choose: Callable[["_Pool", int, np.random.Generator], Selection]
    needs_labels: bool = False


class _Pool:
    """Candidates, and which of them may still be chosen."""

    def __init__(self, candidates: Candidates) -> None:
        self.known, self.probabilities = candidates.known, candidates.probabilities
        self.unit = normalized(candidates.features)
        self.free = np.ones(len(self.unit), dtype=bool)
        self.taken: list[int] = []
        self._groups, self._most = candidates.groups, candidates.per_group
        self._counts = np.zeros(0 if self._groups is None else int(self._groups.max()) + 1, dtype=np.int64)
        for row in self.known.tolist():
            self._use(row)

    def _use(self, row: int) -> None:
        self.free[row] = False
        if self._groups is not None and self._most:
            group = self._groups[row]
            self._counts[group] += 1
            if self._counts[group] >= self._most:
                self.free[self._groups == group] = False

    def take(self, row: int) -> None:
        """Choose an image; others of its group may no longer be chosen."""
        self.taken.append(row)
        self._use(row)

    def open(self, rows: Rows | None = None) -> Rows:
        """Those of some rows that may be chosen."""
        return np.flatnonzero(self.free) if rows is None else rows[self.free[rows]]

    def selection(self, clusters: NDArray[np.int64] | None, reason: Callable[[int], str]) -> Selection:
        """What was taken."""
        rows = np.array(self.taken, dtype=np.int64)
        return Selection(
            rows, np.full(len(rows), -1) if clusters is None else clusters[rows], [reason(row) for row in self.taken]
        )


def normalized(features: Numbers) -> Numbers:
    """Features standardised by dimension and of length 1, float32 ``(N, D)``.

    >>> bool(np.allclose(normalized(np.array([[0.0, 2.0], [2.0, 0.0]])), np.array([[-1, 1], [1, -1]]) / 2**0.5))
    True
    """
    spread = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(spread < 1e-6, 1, spread)
    length = np.linalg.norm(standard, axis=1, keepdims=True)
    return np.asarray(standard / np.maximum(length, 1e-12), dtype=np.float32)


def cluster(unit: Numbers, count: int, seed: int) -> NDArray[np.int64]:
    """Number of the cluster of each row, by k-means; by small batches where there are many."""
    if len(unit) > _LARGE:
        model = MiniBatchKMeans(count, n_init=1, random_state=seed)
    else:
        model = KMeans(min(count, len(np.unique(unit, axis=0))), n_init=1, random_state=seed)
    return np.asarray(model.fit_predict(unit), dtype=np.int64)


def natural_clusters(unit: Numbers, *, seed: int = 0) -> int:
    """How many clusters make sense without labels: the number with the best silhouette (Rousseeuw 1987).

    Args:
        unit: float ``(N, D)``, features as :func:`normalized` gives them; of many, a sample is looked at.
        seed: of the sample and of k-means.

    >>> corners = np.repeat(np.array([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]]), 10, axis=0)
    >>> natural_clusters(normalized(corners + np.random.default_rng(0).normal(0, 0.1, corners.shape)))
    3
    """
    sample = unit[np.random.default_rng(seed).permutation(len(unit))[:_SAMPLE]]
    scores = {}
    for size in _SIZES:
        found = cluster(sample, size, seed) if size < len(sample) else np.zeros(1)
        if 1 < len(np.unique(found)) < len(sample):
            scores[size] = float(silhouette_score(sample, found))
    return max(scores, key=lambda size: scores[size], default=1)


def cover_radius(unit: Numbers, *, clusters: int, seed: int = 0) -> float:
    """Distance between normalised features within which an image speaks for another one.

    The largest at which :data:`PURITY` of the balls around images hold one cluster alone (Yehuda et al. 2022,
    section 4.2, where clusters stand for the unknown classes).

    Args:
        unit: float ``(N, D)``, features as :func:`normalized` gives them.
        clusters: how many make sense, as :func:`natural_clusters` says.
        seed: of the sample and of k-means.

    >>> corners = np.repeat(np.array([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]]), 10, axis=0)
    >>> unit = normalized(corners + np.random.default_rng(0).normal(0, 0.1, corners.shape))
    >>> 0.5 < cover_radius(unit, clusters=3) < 2
    True
    """
    own = cluster(unit, clusters, seed)
    sample = np.random.default_rng(seed).permutation(len(unit))[:_SAMPLE]
    nearest_other = np.empty(len(sample))
    for first in range(0, len(sample), _BLOCK):
        rows = sample[first : first + _BLOCK]
        distances = _distances(unit[rows], unit)
        nearest_other[first : first + len(rows)] = np.where(own[rows, None] == own, np.inf, distances).min(axis=1)
    if not np.isfinite(nearest_other).any():
        return 2.0  # one cluster: everything is as near as features of length 1 can be far
    return float(np.quantile(nearest_other, 1 - PURITY))


def covered(unit: Numbers, rows: Rows, *, radius: float) -> float:
    """Share of all images within ``radius`` of one of some rows.

    Args:
        unit: float ``(N, D)``, features as :func:`normalized` gives them.
        rows: int64, positions in them.
        radius: a distance, in [0, 2].

    >>> corners = np.array([[0.0, 1.0], [0.0, 1.1], [1.0, 0.0], [1.1, 0.0]])
    >>> covered(normalized(corners), np.array([0]), radius=0.5)
    0.5
    """
    near = np.zeros(len(unit), dtype=bool)
    for first in range(0, len(rows), _BLOCK):
        near |= (_distances(unit[rows[first : first + _BLOCK]], unit) <= radius).any(axis=0)
    return float(near.mean())


def _distances(some: Numbers, unit: Numbers) -> Numbers:
    """Euclidean, of rows of length 1."""
    return np.sqrt(np.maximum(2 - 2 * (some @ unit.T), 0))


def _random(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    for row in rng.permutation(pool.open()).tolist():
        if len(pool.taken) < count and pool.free[row]:
            pool.take(row)
    return pool.selection(None, lambda row: "drawn at random")


def _by_clusters(
    pool: _Pool, count: int, rng: np.random.Generator, rank: Callable[[Rows], Numbers]
) -> NDArray[np.int64]:
    """Take images from the clusters with the fewest labels, the largest first; in each by ``rank``, lowest first."""
    found = cluster(pool.unit, min(count + len(pool.known), MOST_CLUSTERS), int(rng.integers(2**31)))
    sizes, labels = np.bincount(found), np.bincount(found[pool.known], minlength=found.max() + 1)
    waiting = {}
    for number in range(len(sizes)):
        rows = np.flatnonzero(found == number)
        waiting[number] = rows[np.argsort(rank(rows), kind="stable")]
    while len(pool.taken) < count and waiting:
        number = min(waiting, key=lambda one: (labels[one], -sizes[one], one))
        rest = pool.open(waiting[number])
        if not len(rest):
            del waiting[number]
            continue
        pool.take(int(rest[0]))
        labels[number] += 1
        waiting[number] = rest[1:]
    return found


def _stratified(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    found = _by_clusters(pool, count, rng, lambda rows: rng.random(len(rows)))
    return pool.selection(found, lambda row: "drawn at random from its cluster")


def _typical(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    def spread(rows: Rows) -> Numbers:
        """Mean distance to the nearest images of the same cluster, the inverse of typicality."""
        nearest = min(NEIGHBOURS, len(rows) - 1)
        if nearest < 1:
            return np.zeros(len(rows))
        distances, _ = NearestNeighbors(n_neighbors=nearest).fit(pool.unit[rows]).kneighbors()
        return np.asarray(distances.mean(axis=1))

    found = _by_clusters(pool, count, rng, spread)
    sizes = np.bincount(found)
    return pool.selection(found, lambda row: f"typical of its cluster of {sizes[found[row]]:,}")


def _k_centre(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    distance = np.full(len(pool.unit), np.inf)
    for row in pool.known.tolist():
        distance = np.minimum(distance, _distances(pool.unit[[row]], pool.unit)[0])
    how_far: dict[int, float] = {}
    while len(pool.taken) < count and len(rest := pool.open()):
        if np.isinf(distance).all():
            row = int(rest[np.argmin(_distances(pool.unit.mean(axis=0, keepdims=True), pool.unit[rest])[0])])
        else:
            row = int(rest[np.argmax(distance[rest])])
        how_far[row] = float(distance[row])
        pool.take(row)
        distance = np.minimum(distance, _distances(pool.unit[[row]], pool.unit)[0])
    return pool.selection(
        None, lambda row: f"{how_far[row]:.2f} from all labelled ones" if np.isfinite(how_far[row]) else "in the middle"
    )


def _coverage(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    unit, seed = pool.unit, int(rng.integers(2**31))
    radius = cover_radius(unit, clusters=natural_clusters(unit, seed=seed), seed=seed)
    uncovered = np.ones(len(unit), dtype=bool)
    for row in pool.known.tolist():
        uncovered &= _distances(unit[[row]], unit)[0] > radius
    gain = np.zeros(len(unit), dtype=np.int64)
    with Progress(total=len(unit), desc="Neighbours", disable=len(unit) < _LARGE) as bar:
        for first in range(0, len(unit), _BLOCK):
            near = _distances(unit[first : first + _BLOCK], unit) <= radius
            gain[first : first + _BLOCK] = near[:, uncovered].sum(axis=1)
            bar.update(len(near))
    gained: dict[int, int] = {}
    while len(pool.taken) < count and len(rest := pool.open()):
        # A gain only shrinks: the best by an old count that stays the best by a fresh one is the best.
        while True:
            row = int(rest[np.argmax(gain[rest])])
            near = _distances(unit[[row]], unit)[0] <= radius
            fresh = int((near & uncovered).sum())
            if fresh == gain[row]:
                break
            gain[row] = fresh
        gained[row] = fresh
        pool.take(row)
        uncovered &= ~near
        gain[row] = 0
    return pool.selection(None, lambda row: f"speaks for {gained[row]:,} images that no other one does")


def _uncertain(pool: _Pool, count: int, rng: np.random.Generator, certainty: Numbers, word: str) -> Selection:
    rest = pool.open()
    best = rest[np.argsort(certainty[rest], kind="stable")][: UNCERTAIN * count]
    found = np.full(len(pool.unit), -1)
    found[best] = cluster(pool.unit[best], count, int(rng.integers(2**31)))
    seen: set[int] = set()
    for row in best.tolist():
        if pool.free[row] and found[row] not in seen and len(pool.taken) < count:
            seen.add(found[row])
            pool.take(row)
    for row in best.tolist():
        if pool.free[row] and len(pool.taken) < count:
            pool.take(row)
    return pool.selection(found, lambda row: f"{word} {certainty[row]:.2f}")


def _margin(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    assert pool.probabilities is not None
    two = np.sort(pool.probabilities, axis=1)[:, -2:]
    return _uncertain(pool, count, rng, two[:, 1] - two[:, 0], "margin between the two likeliest classes")


def _entropy(pool: _Pool, count: int, rng: np.random.Generator) -> Selection:
    assert pool.probabilities is not None
    p = np.clip(pool.probabilities, 1e-12, 1)
    return _uncertain(pool, count, rng, (p * np.log(p)).sum(axis=1), "minus the entropy of the prediction")


METHODS = {
    "random": Method("drawn at random", _random),
    "stratified": Method("one at random of each cluster", _stratified),
    "typical": Method("the most typical one of each cluster (TypiClust)", _typical),
    "coverage": Method("those that speak for most others (ProbCover)", _coverage),
    "k-centre": Method("those farthest from all that are labelled", _k_centre),
    "margin": Method("those whose two likeliest classes are closest, one of each cluster", _margin, needs_labels=True),
    "entropy": Method("those with the least certain prediction, one of each cluster", _entropy, needs_labels=True),
}
"""Ways to choose, by name."""


def select(candidates: Candidates, *, method: str, count: int, seed: int = 0) -> Selection:
    """Choose images to label; the same ones for the same features and seed.

    Args:
        candidates: what is chosen from.
        method: one of :data:`METHODS`.
        count: how many; fewer where groups or images do not suffice.
        seed: of every draw and of k-means.

    Raises:
        UserError: for an unknown method, and for one that needs labels where there are none.

    >>> features = np.random.default_rng(0).normal(size=(50, 4))
    >>> chosen = select(Candidates(features, np.array([], dtype=np.int64)), method="typical", count=5)
    >>> len(set(chosen.rows.tolist())), chosen.reasons[0].startswith("typical of its cluster")
    (5, True)
    """
    if method not in METHODS:
        raise UserError(f"`method` ({method}) must be one of {', '.join(METHODS)}")
    if METHODS[method].needs_labels and candidates.probabilities is None:
        raise UserError(f"`method` ({method}) needs labelled images of two classes; give some, or take typical")
    return METHODS[method].choose(_Pool(candidates), count, np.random.default_rng(seed))


def reachable(candidates: Candidates) -> int:
    """How many images may be chosen at most, by groups."""
    pool = _Pool(candidates)
    if candidates.groups is None or not candidates.per_group:
        return int(pool.free.sum())
    left: Sequence[int] = np.bincount(candidates.groups[pool.free]).tolist()
    used = np.bincount(candidates.groups[candidates.known], minlength=len(left)).tolist()
    return sum(min(here, candidates.per_group - before) for here, before in zip(left, used, strict=False) if here)
