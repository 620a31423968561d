"""Elements of DICOM headers, read so that an odd one does not cost the picture."""

import math
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from .pixels import Notes

_FIRST_GROUPS = (0x0002, 0x0008)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_LONGEST = 1 << 16
"""Bytes that an element at the beginning of a header may take."""


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file is DICOM, by its first bytes: 132 for its mark, 300 for a header without preamble.

    Without the mark, the first two elements have to follow one another as elements do, from group 2 or 8 on, in any of
    the three encodings.

    >>> bare = bytes.fromhex("0800050043530400") + b"ABCD" + bytes.fromhex("0800080043530200") + b"AB"
    >>> looks_like_dicom(bytes(128) + b"DICM"), looks_like_dicom(bare), looks_like_dicom(b"a text, which is no header")
    (True, True, False)
    """
    if head[128:132] == b"DICM":
        return True
    for order in ("little", "big"):
        first = _element(head, 0, order)
        if first is None or first[0] >> 16 not in _FIRST_GROUPS:
            continue
        tag, end = first
        if end >= len(head):
            return tag & 0xFFFF <= 0x0020  # too long an element to see another one
        second = _element(head, end, order)
        if second is not None and tag < second[0] < 0x00300000:
            return True
    return False


def _element(head: bytes, at: int, order: Any) -> tuple[int, int] | None:
    """Tag and end of an element, if one begins there."""
    if at + 8 > len(head):
        return None
    group, number = (int.from_bytes(head[at + start : at + start + 2], order) for start in (0, 2))
    vr = head[at + 4 : at + 6]
    start = at + 8
    if vr in _LONG_VRS:
        start = at + 12
        length = int.from_bytes(head[at + 8 : at + 12], order)
    elif vr in _SHORT_VRS:
        length = int.from_bytes(head[at + 6 : at + 8], order)
    else:
        length = int.from_bytes(head[at + 4 : at + 8], order)
    if length == 0xFFFFFFFF or (length < _LONGEST and length % 2 == 0):
        return group << 16 | number, len(head) if length == 0xFFFFFFFF else start + length
    return None


def element_bytes(ds: Dataset, name: str) -> bytes | None:
    """The undecoded value of an element, where the library still has it."""
    tag = tag_for_keyword(name)
    found = None if tag is None or tag not in ds else ds.get_item(tag)
    value = found.value if isinstance(found, RawDataElement) else None
    return value if isinstance(value, bytes) else None


def value_of(ds: Dataset, name: str) -> Any:
    """The value of an element, None where it is missing, empty or cannot be understood."""
    try:
        value = ds.get(name)
    except Exception:  # whatever a library raises on a broken element
        return None
    return None if value is None or (hasattr(value, "__len__") and not len(value)) else value


def text(ds: Dataset, name: str) -> str | None:
    """The text of an element, without spaces and zeros around it, None where it is missing or empty."""
    value = value_of(ds, name)
    return None if value is None else str(value).replace("\0", "").strip() or None


def numbers(ds: Dataset, name: str, notes: Notes) -> list[float]:
    """The finite numbers of an element; a decimal comma is understood, other text is left out, and both are noted.

    Args:
        ds: where the element is.
        name: its keyword.
        notes: gets the remark.
    """
    raw = element_bytes(ds, name)
    value = value_of(ds, name)
    if value is not None:
        try:
            every = [value] if isinstance(value, (str, int, float)) else list(value)
            found = [float(one) for one in every if str(one).strip() != ""]
        except (TypeError, ValueError):
            found = None
        if found is not None:
            finite = [one for one in found if math.isfinite(one)]
            if len(finite) < len(found):
                notes.add(f"{name} is no number")
            return finite
    if not raw:
        return []
    finite = []
    for part in raw.decode("latin-1").replace("\0", "").split("\\"):
        written = part.strip()
        try:
            one = float(written.replace(",", ".", 1))
        except ValueError:
            if written:
                notes.add(f"{name} is no number")
            continue
        if "," in written:
            notes.add(f"{name} has a decimal comma")
        if math.isfinite(one):
            finite.append(one)
    return finite


def integer(ds: Dataset, name: str, notes: Notes) -> int | None:
    """The first number of an element as a whole number, None where there is none."""
    found = numbers(ds, name, notes)
    return int(found[0]) if found else None


def items(ds: Dataset, name: str) -> list[Dataset]:
    """The items of a sequence, none where it is missing or is no sequence."""
    value = value_of(ds, name)
    try:
        return [item for item in value or [] if isinstance(item, Dataset)]
    except TypeError:
        return []
