"""Lookup tables against plain indexing: every way to store a table gives the same pictures."""

from __future__ import annotations

import io
from itertools import product
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from jigsawssl.readers import NOTE_FLAT_TABLE, Notes, Unreadable, open_picture
from jigsawssl.readers.lookup import Descriptor, expand_segments
from tests.readers.test_dicom import dicom

SYNTAXES = {
    "explicit": (ExplicitVRLittleEndian, False, True),
    "implicit": (ImplicitVRLittleEndian, True, True),
    "big": (ExplicitVRBigEndian, False, False),
}


def stored_as(entries: np.ndarray, packing: str, little: bool) -> tuple[str, Any]:
    """VR and value of the data of a table."""
    words = entries.astype("<u2" if little else ">u2").tobytes()
    if packing == "numbers":
        return "US", entries.tolist()
    if packing == "words":
        return "OW", words
    padded = np.append(entries, 0)[: len(entries) + len(entries) % 2].astype(np.uint8)
    if packing == "bytes":
        return "OB", padded.tobytes()
    swapped = padded.reshape(-1, 2)[:, ::-1].tobytes()  # words whose low byte is the first entry
    return "OW", padded.tobytes() if little else swapped


def with_elements(stored: np.ndarray, bits: int, syntax: str, elements: Any, **tags: Any) -> bytes:
    """A file of that syntax to which ``elements(ds, little)`` adds what it likes."""
    uid, implicit, little = SYNTAXES[syntax]
    ds = pydicom.dcmread(io.BytesIO(dicom(stored, bits, **tags)))
    list(ds.iterall())  # decoded, as raw elements would keep their byte order
    elements(ds, little)
    if not little:
        ds.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        ds["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"  # words would swap the bytes of 8-bit pixels
    ds.file_meta.TransferSyntaxUID = uid
    stream = io.BytesIO()
    ds.preamble = bytes(128)
    ds.set_original_encoding(implicit, little)
    pydicom.dcmwrite(stream, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return stream.getvalue()


def seen(data: bytes) -> tuple[np.ndarray, list[str]]:
    picture = open_picture(data)
    pixels = picture.frame(0)
    return pixels.squeeze() / np.iinfo(pixels.dtype).max, list(picture.notes)


def lookup_item(entries: np.ndarray, first: int, stated: int, packing: str, little: bool, signed: bool) -> Dataset:
    item = Dataset()
    count = len(entries) % 65536
    item.add(DataElement("LUTDescriptor", "SS" if signed else "US", [count, first, stated]))
    item.add(DataElement("LUTData", *stored_as(entries, packing, little)))
    return item


# real depth of the entries, stated depth: as it should be, deeper, and less than it is
DEPTHS = [(8, 8), (8, 16), (12, 12), (12, 16), (12, 8), (16, 16), (10, 16), (14, 16)]
PACKINGS = ["numbers", "words", "bytes", "packed"]
CELLS = [
    (syntax, packing, depths, sign, first)
    for syntax, packing, depths, sign, first in product(SYNTAXES, PACKINGS, DEPTHS, [False, True], [0, 100, -300])
    if (packing in ("numbers", "words") or depths[0] == 8) and (sign or first >= 0)
]


def entries_of(bits: int, count: int = 701) -> np.ndarray:
    """An odd number of entries, out of order, that reach from 0 to the top."""
    entries = np.random.default_rng(bits).integers(0, 2**bits, count)
    entries[[3, 11]] = 0, 2**bits - 1
    return entries


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", ["VOI", "Modality"])
def test_tables_of_grey_values_however_they_are_stored(kind: str, syntax: str) -> None:
    cells = [cell for cell in CELLS if cell[0] == syntax]
    assert len(cells) >= 30
    for _, packing, (real, stated), signed, first in cells:
        stored = np.random.default_rng(1).integers(-400 if signed else 0, 900, (9, 13)).astype("i2" if signed else "u2")
        entries = entries_of(real)

        def add(ds: Dataset, little: bool) -> None:
            item = lookup_item(entries, first, stated, packing, little, signed)  # noqa: B023
            setattr(ds, f"{kind}LUTSequence", [item])

        window = {} if kind == "VOI" else {"WindowCenter": 2 ** (real - 1), "WindowWidth": 2**real + 1}
        pixels, notes = seen(with_elements(stored, 12, syntax, add, **window))
        at = np.clip(stored.astype(int) - first, 0, len(entries) - 1)
        if kind == "VOI":
            wanted = entries[at] / (2**real - 1)
            assert any(f"of {real} bits that states" in note for note in notes) == (real != stated)
        else:
            low = 2 ** (real - 1) - 0.5 - 2 ** (real - 1)
            wanted = np.clip((entries[at] - low) / 2**real, 0, 1)
        assert np.abs(pixels - wanted).max() < 1e-4, (packing, real, stated, signed, first)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_palettes_however_they_are_stored(syntax: str) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (9, 13), dtype=np.uint8)
    colours = np.random.default_rng(2).integers(0, 256, (200, 3))
    colours[0], colours[1] = 0, 255
    first = 20
    wanted = colours[np.clip(stored.astype(int) - first, 0, 199)]
    ways = {
        "high byte": (colours << 8, 16, ("numbers", "words")),
        "both bytes": (colours * 257, 16, ("numbers", "words")),
        "low byte": (colours, 16, ("numbers", "words", "bytes")),
        "bytes": (colours, 8, PACKINGS),
        "high byte, states 8": (colours << 8, 8, ("numbers", "words")),
        "twelve bits": (colours << 4 | 15, 16, ("numbers", "words")),
    }
    for way, (entries, stated, packings) in ways.items():
        for packing in packings:

            def add(ds: Dataset, little: bool) -> None:
                for name, channel in zip(("Red", "Green", "Blue"), entries.T, strict=True):  # noqa: B023
                    key = f"{name}PaletteColorLookupTable"
                    ds.add(DataElement(f"{key}Descriptor", "US", [200, first, stated]))  # noqa: B023
                    ds.add(DataElement(f"{key}Data", *stored_as(channel, packing, little)))  # noqa: B023

            pixels, _ = seen(with_elements(stored, 8, syntax, add, PhotometricInterpretation="PALETTE COLOR"))
            assert np.array_equal(np.rint(pixels * 255).astype(int), wanted), (way, packing)


def test_the_count_of_a_table() -> None:
    stored = np.arange(0, 60000, 251, dtype=np.uint16).reshape(1, -1)

    def shown(entries: np.ndarray, count: int) -> tuple[np.ndarray, list[str]]:
        item = lookup_item(entries, 0, 16, "words", True, False)
        item.LUTDescriptor = [count, 0, 16]
        return seen(with_elements(stored, 16, "explicit", lambda ds, _: setattr(ds, "VOILUTSequence", [item])))

    every = np.arange(65536)[::-1]
    pixels, notes = shown(every, 0)  # which means 65536
    assert np.abs(pixels - every[stored] / 65535).max() < 1e-4 and not notes
    pixels, notes = shown(every[:30000], 0)
    assert np.abs(pixels - every[np.minimum(stored, 29999)] / 65535).max() < 1e-4
    assert notes == ["a lookup table with fewer entries than stated"]
    pixels, _ = shown(every, 1000)
    assert np.abs(pixels - every[np.minimum(stored, 999)] / 65535).max() < 1e-4


def test_the_first_input_has_the_sign_that_covers_the_values() -> None:
    notes = Notes()

    def first(values: list[int], inputs: tuple[int, int]) -> int:
        return Descriptor.of(values, little_endian=True, inputs=inputs, notes=notes).first

    assert first([4096, 64512, 16], (-1024, 3071)) == -1024  # written as unsigned
    assert first([4096, 64512, 16], (0, 65535)) == 64512
    assert first([4096, -1024, 16], (0, 4095)) == -1024
    assert not list(notes)
    assert first([4096, -25536, 16], (38000, 60000)) == 40000
    assert first([256, 40000, 16], (-100, 65535 - 100)) == 40000
    assert list(notes) == ["a lookup table whose first input has the wrong sign"]
    with pytest.raises(Unreadable, match="descriptor"):
        first([1, 2], (0, 1))
    assert Descriptor.of(b"\0\0\5\0\x10\0", little_endian=True, inputs=(0, 9), notes=notes) == (65536, 5, 16)
    assert Descriptor.of(b"\0\0\0\5\0\x10", little_endian=False, inputs=(0, 9), notes=notes) == (65536, 5, 16)


def test_a_table_that_shows_nothing_is_noted() -> None:
    item = lookup_item(np.full(100, 4095), 0, 12, "words", True, False)
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    _, notes = seen(with_elements(stored, 12, "explicit", lambda ds, _: setattr(ds, "VOILUTSequence", [item])))
    assert NOTE_FLAT_TABLE in notes


def test_an_empty_item_leaves_the_window() -> None:
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    tags = {"WindowCenter": 50, "WindowWidth": 100}
    empty = Dataset()
    empty.LUTExplanation = "nothing"
    for sequence in ([], [empty], [Dataset()]):
        pixels, _ = seen(dicom(stored, VOILUTSequence=sequence, **tags))
        assert np.array_equal(pixels, seen(dicom(stored, **tags))[0])
    later = lookup_item(np.arange(100), 0, 8, "words", True, False)
    pixels, _ = seen(dicom(stored, VOILUTSequence=[empty, later], **tags))
    assert np.abs(pixels - stored / 255).max() < 1e-4


def test_segments_of_a_palette() -> None:
    words = [
        0,
        2,
        10,
        20,
        1,
        4,
        60,
        0,
        1,
        7,
        2,
        2,
        8,
        0,
    ]  # two values, a line, one value, and 2 segments from byte 8 on
    wanted = [10, 20, 30, 40, 50, 60, 7]
    notes = Notes()
    expanded = expand_segments(words, Descriptor(12, 0, 16), little_endian=True, notes=notes).tolist()
    assert expanded[:7] == wanted and expanded[7:11] == [20, 34, 47, 60] and expanded[11] == 7
    for order, little in (("<u2", True), (">u2", False)):
        data = np.array(words, dtype=order).tobytes()
        assert expand_segments(data, Descriptor(12, 0, 16), little_endian=little, notes=notes).tolist() == expanded
    assert not list(notes)
    eight = bytes([0, 2, 10, 20, 1, 4, 60, 0, 1, 7])
    assert expand_segments(eight, Descriptor(7, 0, 8), little_endian=True, notes=notes).tolist() == wanted
    for broken in ([1, 3, 9], [3, 1, 1], [2, 1, 0, 0], [0, 0]):
        with pytest.raises(Unreadable):
            expand_segments(broken, Descriptor(5, 0, 16), little_endian=True, notes=notes)
    bomb = [0, 200, *range(200), 2, 65535, 0, 0]
    assert len(expand_segments(bomb, Descriptor(300, 0, 16), little_endian=True, notes=notes)) == 300
