"""Lookup tables of DICOM files, which seldom are what their descriptor says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .pixels import Notes, Unreadable

_LEAST_DEPTH = 8
_MOST_ENTRIES = 1 << 16


class Descriptor(NamedTuple):
    """The three numbers that describe a table (PS3.3 C.11.1.1.1, C.11.2.1.1 and C.7.6.3.1.5).

    Attributes:
        length: entries.
        first: input that gives the first entry.
        bits: of an entry, as stated.
    """

    length: int
    first: int
    bits: int

    @classmethod
    def of(cls, values: Any, *, little_endian: bool, inputs: tuple[float, float], notes: Notes) -> Descriptor:
        """Read the element, whose VR may be US, SS or unknown.

        The first input is signed where the inputs can be negative or the VR says so. Where a table read like that would
        lie beside all inputs and the other reading would not, the other one counts.

        Args:
            values: of the element: three numbers, or bytes.
            little_endian: the byte order of bytes.
            inputs: the smallest and the largest value that the table may be asked for.
            notes: gets a remark where the other reading counts.

        Raises:
            Unreadable: if there are not three numbers.
        """
        if isinstance(values, bytes):
            values = np.frombuffer(values[: len(values) // 2 * 2], dtype="<u2" if little_endian else ">u2").tolist()
        try:
            count, first, bits = (int(value) for value in values)
        except (TypeError, ValueError):
            raise Unreadable("a lookup table without a descriptor") from None
        count = count % _MOST_ENTRIES or _MOST_ENTRIES
        unsigned, signed = first % 2**16, (first + 2**15) % 2**16 - 2**15
        stated, other = (signed, unsigned) if first < 0 or inputs[0] < 0 else (unsigned, signed)

        def beside(at: int) -> bool:
            return at > inputs[1] or at + count - 1 < inputs[0]

        if beside(stated) and not beside(other):
            notes.add("a lookup table whose first input has the wrong sign")
            stated = other
        return cls(count, stated, bits)


class LookupTable(NamedTuple):
    """Entries by input.

    Attributes:
        first: input that gives the first entry, as smaller ones do; inputs behind the last entry give that.
        entries: uint16 ``(N,)``.
    """

    first: int
    entries: NDArray[np.uint16]

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """The entries for values of any shape and numeric type; fractions are rounded.

        >>> LookupTable(10, np.array([5, 6, 7], np.uint16))(np.array([-3, 10, 11, 90])).tolist()
        [5, 5, 6, 7]
        """
        if values.dtype.kind == "f":
            values = np.rint(np.nan_to_num(values, nan=self.first, posinf=2.0**31, neginf=-(2.0**31)))
        # In 64 bits, as the difference of two unsigned values would wrap around.
        at = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[at]


def read_entries(
    data: bytes | int | Sequence[int], descriptor: Descriptor, *, little_endian: bool, words: bool, notes: Notes
) -> NDArray[np.uint16]:
    """The entries of a table, one way or another.

    Entries of up to 8 stated bits are bytes, or words where there is room for as many; deeper ones are words, or bytes
    where there are just as many bytes as entries. Bytes in words begin with the low one (PS3.5 8.3.2), so that they
    change places where words are big endian.

    Args:
        data: of the element: bytes, or the numbers that the library made of them.
        descriptor: the stated count and depth.
        little_endian: byte order of the file.
        words: whether bytes come from an element of words (OW), which a big-endian file swaps, or of bytes.
        notes: gets a remark where the count and the data disagree.

    Raises:
        Unreadable: if there are no entries.

    >>> stated = Descriptor(length=3, first=0, bits=8)
    >>> read_entries([0x201, 3], stated, little_endian=True, words=True, notes=Notes()).tolist()
    [1, 2, 3]
    """
    count, _, bits = descriptor
    order = "<" if little_endian or not words else ">"
    if isinstance(data, bytes):
        raw = np.frombuffer(data, dtype=np.uint8)
    else:
        numbers = np.atleast_1d(np.asarray(data, dtype=np.int64)).ravel()
        raw = (numbers & 0xFFFF).astype("<u2").view(np.uint8)
        order = "<"
    if not raw.size:
        raise Unreadable("a lookup table without entries")
    in_words = raw.size // 2 >= count if bits <= 8 else raw.size not in (count, count + 1)
    if in_words and raw.size > 1:
        entries = raw[: raw.size // 2 * 2].view(f"{order}u2")
    else:
        pairs = raw if raw.size % 2 == 0 else np.append(raw, np.uint8(0))
        entries = pairs.reshape(-1, 2)[:, ::-1].ravel() if order == ">" else pairs
    if entries.size < count:
        notes.add("a lookup table with fewer entries than stated")
    return entries[:count].astype(np.uint16)


def _depth(entries: NDArray[np.uint16]) -> int:
    return max(_LEAST_DEPTH, int(entries.max()).bit_length())


def grey_depth(entries: NDArray[np.uint16], *, stated: int, notes: Notes) -> int:
    """The bits of VOI entries: those of the largest one, and at least eight.

    Devices state 16 bits and mean the depth of their detector, or state 8 and store more.

    Args:
        entries: of the table.
        stated: bits.
        notes: gets a remark where both differ.
    """
    bits = _depth(entries)
    if bits != stated:
        notes.add(f"a lookup table of {bits} bits that states {stated}")
    return bits


def colour_depth(channels: Sequence[NDArray[np.uint16]], *, stated: int, notes: Notes) -> int:
    """The bits of palette entries, of which the highest eight are the colour.

    Entries up to 255 are eight bits and up to 4095 twelve, whatever is stated; larger ones are sixteen, as a palette of
    dim colours is likelier than an odd depth.

    Args:
        channels: entries of red, green and blue.
        stated: bits.
        notes: gets a remark where both differ.
    """
    largest = max(_depth(entries) for entries in channels)
    bits = largest if largest <= 12 else 16
    if bits != stated:
        notes.add(f"a palette of {bits} bits that states {stated}")
    return bits


def expand_segments(
    data: bytes | int | Sequence[int], descriptor: Descriptor, *, little_endian: bool, notes: Notes
) -> NDArray[np.uint16]:
    """The entries of a segmented palette (PS3.3 C.7.9.2): runs of values, lines, and repetitions of segments.

    Args:
        data: of the element, in bytes or words as the stated bits say.
        descriptor: the stated depth and count, which is the most that are made.
        little_endian: byte order of the file.
        notes: gets a remark where there are fewer entries.

    Raises:
        Unreadable: if segments contradict themselves.

    >>> stated = Descriptor(length=3, first=0, bits=16)
    >>> expand_segments([0, 1, 10, 1, 2, 30], stated, little_endian=True, notes=Notes()).tolist()
    [10, 20, 30]
    """
    count, _, bits = descriptor
    if isinstance(data, bytes):
        kind = "u1" if bits <= 8 else "<u2" if little_endian else ">u2"
        codes: list[int] = np.frombuffer(data[: len(data) // 2 * 2], dtype=kind).tolist()
    else:
        codes = [int(value) & 0xFFFF for value in np.atleast_1d(np.asarray(data, dtype=np.int64)).tolist()]
        if bits <= 8:
            codes = [part for value in codes for part in (value & 0xFF, value >> 8)]
    out: list[int] = []

    def segment(at: int, nested: bool) -> int:
        """Append one segment; returns where the next one begins."""
        kind, length = codes[at : at + 2]
        at += 2
        if kind == 0:
            out.extend(codes[at : at + length])
            return at + length
        if kind == 1 and out and length:
            end = codes[at]
            out.extend(np.rint(np.linspace(out[-1], end, length + 1)[1:]).astype(int).tolist())
            return at + 1
        if kind == 2 and not nested and bits > 8:
            back = (codes[at] + (codes[at + 1] << 16)) // 2
            repeat(back, length)
            return at + 2
        if kind == 2 and not nested:
            back = sum(codes[at + number] << 8 * number for number in range(4))
            repeat(back, length)
            return at + 4
        raise Unreadable("a segmented palette that contradicts itself")

    def repeat(at: int, times: int) -> None:
        for _ in range(times):
            before = len(out)
            if before < count:
                at = segment(at, True)
                if len(out) == before:  # nothing, however often
                    raise Unreadable("a segmented palette that contradicts itself")

    at = 0
    try:
        while at + 1 < len(codes) and len(out) < count:
            at = segment(at, False)
    except (IndexError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable("a segmented palette that contradicts itself") from None
    if not out:
        raise Unreadable("a lookup table without entries")
    if len(out) < count:
        notes.add("a lookup table with fewer entries than stated")
    return np.array(out[:count], dtype=np.uint16)
