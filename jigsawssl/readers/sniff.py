"""What a file is, by its first bytes."""

from typing import NamedTuple

from .elements import looks_like_dicom

SNIFFED = 512
"""Bytes from the beginning of a file that are enough to tell what it is."""

_READ = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_PACKED = (
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "7z"),
    (b"Rar!", "rar"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_NOT_READ = (
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"8BPS", "Photoshop"),
    (b"NRRD0", "NRRD"),
    (b"ObjectType =", "MetaImage"),
    (b"NDims =", "MetaImage"),
    (b"ZISRAWFILE", "CZI"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"\x93NUMPY", "NumPy array"),
    (b"v/1\x01", "OpenEXR"),
    (b"SIMPLE  =", "FITS"),
    (b"\x00\x00\x01\x00", "icon"),
    (b"\x00\x00\x02\x00", "cursor"),
    (b"AT&TFORM", "DjVu"),
    (b"\x0a\x05\x01\x08", "PCX"),
    (b"DDS ", "DDS"),
    (b"farbfeld", "farbfeld"),
    (b"qoif", "QOI"),
    (b"%!PS", "PostScript"),
    (b"gimp xcf", "GIMP"),
)
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIF",
    b"heix": "HEIF",
    b"hevc": "HEIF",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"jxl ": "JPEG XL",
}


class Kind(NamedTuple):
    """What a file is.

    Attributes:
        name: of the format, such as ``PNG``.
        read: whether its images are read.
        packed: whether it packs other files.
    """

    name: str
    read: bool = False
    packed: bool = False


def sniff(head: bytes) -> Kind | None:
    """Tell an image or a packed file by its first :data:`SNIFFED` bytes; None for everything else.

    >>> sniff(b"\\x89PNG and more"), sniff(b"8BPS"), sniff(b"PK\\x03\\x04").packed, sniff(b"a text")
    (Kind(name='PNG', read=True, packed=False), Kind(name='Photoshop', read=False, packed=False), True, None)
    """
    if head[128:132] == b"DICM":  # which may begin with another format, to be shown by what does not know it
        return Kind("DICOM", read=True)
    for magic, name in _READ:
        if head.startswith(magic) and (name != "BMP" or _is_bitmap(head)):
            return Kind(name, read=True)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind("WEBP", read=True)
    if looks_like_dicom(head):
        return Kind("DICOM", read=True)
    for magic, name in _PACKED:
        if head.startswith(magic):
            return Kind(name, packed=True)
    if head[257:262] == b"ustar":
        return Kind("tar", packed=True)
    for magic, name in _NOT_READ:
        if head.startswith(magic):
            return Kind(name)
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return Kind(_BRANDS[head[8:12]])
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return Kind("NIfTI")
    if len(head) > 3 and head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3] in b" \t\r\n":
        return Kind("PNM")
    return None


def _is_bitmap(head: bytes) -> bool:
    """Two letters are few: a bitmap has zeros in its reserved words, and a header of a known length."""
    return head[6:10] == bytes(4) and head[14:18] in (bytes([n, 0, 0, 0]) for n in (12, 16, 40, 52, 56, 64, 108, 124))
