"""What words in folders and manifests mean: splits, missing values, the order of classes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from ..types import Sample, UserError
from .containers import CONTAINER_SUFFIXES

SPLITS = ("train", "val", "test")
"""The splits that commands know, in the order in which they are shown."""

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "tune", "tuning"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_AROUND_SPLIT = re.compile(r"[\s_-]*(set|split|data)?$")

_MISSING = frozenset(
    (
        *("", "NA", "<NA>", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"),
        *("#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    )
)

_NOTHING_FOUND = frozenset(
    (
        *("normal", "healthy", "negative", "neg", "benign", "control", "controls", "absent"),
        *("no", "none", "non", "not", "without", "nonmalignant", "noncancer", "notumor", "nofinding", "nodisease"),
    )
)


def split_name(word: str) -> str:
    """The split that a word names: train, val or test in their usual forms; any other word names itself.

    >>> [split_name(word) for word in ("Training", "valid", "dev", "TEST", "test_set", "holdout")]
    ['train', 'val', 'val', 'test', 'test', 'holdout']
    """
    plain = word.strip().lower()
    return _SPLIT_OF.get(plain) or _SPLIT_OF.get(_AROUND_SPLIT.sub("", plain)) or word


def unknown_splits(samples: Iterable[Sample]) -> dict[str, int]:
    """Splits that are none of :data:`SPLITS`, with the number of their samples.

    >>> unknown_splits([Sample("1.png", split="test"), Sample("2.png", split="holdout"), Sample("3.png")])
    {'holdout': 1}
    """
    counts = Counter(sample.split for sample in samples if sample.split is not None)
    return {name: counts[name] for name in sorted(set(counts) - set(SPLITS))}


def is_missing(cell: str) -> bool:
    """Whether a cell of a table says that nothing is known: empty, or as R, pandas, SQL and Excel write it.

    The spelling decides, as in pandas: NA, NaN, NULL and None are missing, and ``none`` is a grade like mild.

    >>> [is_missing(cell) for cell in ("", "NA", "None", "none", "Nantes")]
    [True, True, True, False, False]
    """
    return cell in _MISSING


def folder_samples(paths: Sequence[str]) -> list[Sample]:
    """Class and split of images by the folders that they lie in, a container being a folder.

    The splits are the folders that stand side by side at one place of the tree. A place is where two of train, val and
    test are, or nothing but one of them, or train with folders in it; so a class that is called test, among other
    classes, is a class. Of several such places around an image the outermost counts where two splits are, and of
    these one where the image itself lies in train, val or test. Whatever else stands beside the splits is a split of
    its own name, for the commands to refuse. The class is the innermost folder below the split; where all splits lie
    inside of class folders, it is the folder around them.

    Args:
        paths: of the images, POSIX, relative to the archive.

    >>> [sample[1:3] for sample in folder_samples(["all.zip/Training/a/1.png", "all.zip/test/b/2.png"])]
    [('a', 'train'), ('b', 'test')]
    >>> [sample[1:3] for sample in folder_samples(["normal/1.png", "test/2.png"])]
    [('normal', None), ('test', None)]
    """
    folders = [tuple(path.split("/")[:-1]) for path in paths]
    children: dict[tuple[str, ...], set[str]] = {}
    for parts in set(folders):
        for at, part in enumerate(parts):
            children.setdefault(parts[:at], set()).add(part)
    several, single = set(), set()
    for place, names in children.items():
        splits = {split for split in map(_folder_split, names) if split is not None}
        nested = any(_folder_split(name) == "train" and children.get((*place, name)) for name in names)
        if len(splits) > 1:
            several.add(place)
        elif splits and (nested or all(_folder_split(name) is not None for name in names)):
            single.add(place)

    def depth_of_split(parts: tuple[str, ...]) -> int | None:
        places = [at for at in range(len(parts)) if parts[:at] in several]
        named = [at for at in places if _folder_split(parts[at]) is not None]
        alone = [at for at in range(len(parts)) if parts[:at] in single]
        return next(iter([*named, *places, *alone]), None)

    depths = {parts: depth_of_split(parts) for parts in set(folders)}
    places = {parts[:depth] for parts, depth in depths.items() if depth is not None}
    bare = all(depth is None or len(parts) == depth + 1 for parts, depth in depths.items())
    around = bare and len(places) > 1

    def label_and_split(parts: tuple[str, ...], depth: int | None) -> tuple[str | None, str | None]:
        if depth is None:
            return parts[-1] if parts else None, None
        below = parts[:depth] if around else parts[depth + 1 :]
        return below[-1] if below else None, _folder_split(parts[depth]) or parts[depth]

    known = {parts: label_and_split(parts, depth) for parts, depth in depths.items()}
    return [Sample(path, *known[parts]) for path, parts in zip(paths, folders, strict=True)]


def _folder_split(name: str) -> str | None:
    """The known split that a folder or container names, None for any other name."""
    ending = max((len(end) for end in CONTAINER_SUFFIXES if name.lower().endswith(end)), default=0)
    split = split_name(name[: len(name) - ending])
    return split if split in SPLITS else None


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts "2" before "10"; the name itself settles "1" and "01"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name


def are_numbered(classes: Iterable[str]) -> bool:
    """Whether classes differ in one number alone, so that their natural order is the one that is meant.

    >>> are_numbered(["grade 1", "grade 2"]), are_numbered(["0", "10"]), are_numbered(["mild", "severe"])
    (True, True, False)
    """
    found = [re.subn(r"\d+", "0", name) for name in classes]
    return {times for _, times in found} == {1} and len({text for text, _ in found}) == 1


def alike(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Classes that are one, spelled in several ways: capitals, spaces, forms of Unicode, or forms of a number.

    >>> alike(["Normal", "normal", "ill", "0", "0.0", "1"])
    [('0', '0.0'), ('Normal', 'normal')]
    """
    found: dict[str, list[str]] = {}
    for name in classes:
        found.setdefault(_plain(name), []).append(name)
    return sorted(tuple(sorted(names)) for names in found.values() if len(names) > 1)


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    if re.fullmatch(r"[+-]?\d+(\.\d*)?", text):
        return f"{float(text):g}"
    return re.sub(r"[\s_-]+", " ", text).strip()


def ordered_classes(names: Iterable[str], classes: Sequence[str] = (), positive: str | None = None) -> tuple[str, ...]:
    """The order of classes: as given, else by name, numbers in natural order.

    Of two classes the last is the positive one, that is looked for: the one that is named, else not the one whose name
    says that nothing was found, such as normal or healthy.

    Args:
        names: of the classes that an archive has.
        classes: the same in the intended order; empty where none was given.
        positive: one of two.

    Raises:
        UserError: for classes that are not those of the archive, and a positive class that cannot be.

    >>> ordered_classes(["abnormal", "normal"]), ordered_classes(["mild", "none"], ["none", "mild"])
    (('normal', 'abnormal'), ('none', 'mild'))
    """
    found = sorted(set(names), key=natural_order)
    if classes:
        missing, foreign = [name for name in found if name not in classes], [n for n in classes if n not in found]
        if missing or foreign or len(set(classes)) < len(classes):
            wrong = "one is named twice"
            if missing or foreign:
                wrong = f"{', '.join(missing)} is left out" if missing else f"{', '.join(foreign)} is not one"
            # YAML takes no, on and 01 for something else than words.
            taken = any(name in ("True", "False") or are_numbered([name]) for name in foreign)
            raise UserError(
                f"`classes` ({', '.join(classes)}) must name each class of the archive once ({', '.join(found)}); "
                f"{wrong}; {'put each name in quotes' if taken else 'fix the list'}."
            )
    if positive is not None:
        if len(found) != 2 or positive not in found:
            raise UserError(
                f"`positive` ({positive}) must be one of two classes; the archive has {len(found)}: "
                f"{', '.join(found[:20])}; name one of two, or leave it out."
            )
        if classes and positive != classes[-1]:
            raise UserError(
                f"`positive` ({positive}) must be the last of `classes` ({', '.join(classes)}), which decides it; "
                "leave one out."
            )
        return tuple(sorted(found, key=lambda name: name == positive))
    if classes:
        return tuple(classes)
    if len(found) == 2 and _says_nothing_found(found[1]) and not _says_nothing_found(found[0]):
        found.reverse()
    return tuple(found)


def _says_nothing_found(name: str) -> bool:
    """Whether a class is the usual one, by its name or the first word of it."""
    words = _plain(name).split(" ")
    return bool({"".join(words), words[0]} & _NOTHING_FOUND)
