"""The table of an archive: its columns, and how paths and identifiers are written into it."""

import hashlib
import re

import pyarrow as pa

TABLE_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("member", pa.string()),
        ("frame", pa.int32()),
        ("status", pa.string()),
        ("bytes", pa.int64()),
        ("changed", pa.int64()),
        ("format", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int16()),
        ("bits", pa.int16()),
        ("frames", pa.int32()),
        ("modality", pa.string()),
        ("mode", pa.string()),
        ("content_hash", pa.string()),
        ("perceptual_hash", pa.string()),
        ("mean", pa.float32()),
        ("std", pa.float32()),
        ("border", pa.float32()),
        ("text", pa.float32()),
        ("patient", pa.string()),
        ("patient_held_out", pa.bool_()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("checksum", pa.uint32()),
        ("notes", pa.list_(pa.string())),
    ]
)
"""Columns of ``table.parquet``. A row is one frame, of a file or of the member of a zip or tar file.

``status`` is ``ok``, the reason why it cannot be read, or begins with :data:`LEFT_OUT`; ``mode`` is the photometric
interpretation of DICOM and TIFF files and the mode of others, as stored; ``changed`` is in nanoseconds since 1970;
``mean`` and ``std`` are of display values in [0, 1]; patient, study and series are hashed with the salt of the cache
folder; ``patient_held_out`` is the patient's side in a derived split; ``checksum`` is the CRC-32 of the cached pixels;
``notes`` says what was odd about the file and how it was read all the same, null where nothing was.
Perceptual hash, ``border`` and ``text`` are filled by the doctor.
"""

LEFT_OUT = "left out: "
"""How the status begins of what is whole and is no image to train on, or of a format that is not read."""


def is_fault(reason: str) -> bool:
    """Whether a reason tells of something broken or forbidden, and not of what is left out.

    >>> is_fault("truncated"), is_fault("left out: NIfTI is not read")
    (True, False)
    """
    return not reason.startswith(LEFT_OUT)


def printable(path: str) -> str:
    r"""A path as valid text, from which :func:`original` makes the path again; names on disk need not be valid.

    >>> printable("caf\udce9.png"), printable("a.png")
    ('caf\\udce9.png', 'a.png')
    """
    return path.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode("utf-8")


def original(path: str) -> str:
    r"""The path that :func:`printable` made printable.

    >>> original(printable("caf\udce9.png")) == "caf\udce9.png"
    True
    """
    found = re.compile(r"\\(\\|ud[89a-f][0-9a-f]{2})")
    return found.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), path)


def salted(value: str | None, salt: bytes) -> str | None:
    """Hash an identifier so that it can be compared, with the same salt only, and not read."""
    if value is None:
        return None
    return hashlib.blake2b(value.encode("utf-8", "surrogateescape"), key=salt, digest_size=16).hexdigest()


def content_key(content_hash: str) -> int:
    """The first 64 bits of a content hash, signed, as they are stored."""
    return int.from_bytes(bytes.fromhex(content_hash[:16]), "big", signed=True)
