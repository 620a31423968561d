"""What tells the images of an archive apart: their content, their patients and their groups."""

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..progress import Progress
from ..readers import Unreadable, tells_apart
from .archive import Archive
from .holdout import derive_split, is_held_out, units_of
from .known import Found, KnownImages
from .table import content_key, salted

_TOGETHER = 1024
"""Files that wait to be opened at a time, as each takes memory."""

_SAMPLED = 16
"""Images that are looked at before all others are, whether they have one patient."""


class Identities:
    """Content and patient of the images of an archive, each looked up once, from caches where they hold it.

    Args:
        archive: whose images are compared.
        known: caches of it.
        salt: of the hashed patients where no cache sets one; drawn where it is left out.

    Attributes:
        salt: with which patients are hashed.
    """

    def __init__(self, archive: Archive, *, known: KnownImages | None = None, salt: bytes | None = None) -> None:
        self.archive = archive
        self.known = known or KnownImages(archive)
        self.salt = self.known.salt or salt or secrets.token_bytes(32)
        self._contents: dict[int, int | None] = {}
        self._clear: dict[int, str | None] = {}  # patients of files that were opened; never written anywhere
        self._hashed: dict[int, tuple[str | None, bool | None]] = {}

    def look_up(self, rows: NDArray[np.int64], *, progress: bool = False) -> None:
        """Look some rows up beforehand, with a bar where files have to be opened."""
        opened = [row for row in rows.tolist() if row not in self._contents and self._found(row) is None]
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            Progress(total=len(opened), desc="Hashing", disable=not progress or not opened) as bar,
        ):
            for first in range(0, len(opened), _TOGETHER):
                part = opened[first : first + _TOGETHER]
                for row, found in zip(part, pool.map(self._read, part), strict=True):
                    self._contents[row], self._clear[row] = found
                    bar.update()

    def content(self, row: int) -> int | None:
        """Key of an image's content, None where it cannot be read."""
        self._look_up(row)
        return self._contents[row]

    def patient(self, row: int, salt: bytes | None = None) -> str | None:
        """The patient of a DICOM file, hashed; ``salt`` takes the place of the own one.

        None where the file has none, and where what it has does not tell patients apart, see
        :func:`jigsawssl.readers.tells_apart`.
        """
        if self._is_placeholder(row):
            return None
        return self._named(row, salt)

    def _named(self, row: int, salt: bytes | None = None) -> str | None:
        """The patient as the file says it."""
        self._look_up(row)
        if row in self._clear:
            return salted(self._clear[row], salt or self.salt)
        patient = self._hashed[row][0]
        if patient is None or salt in (None, self.salt):
            return patient
        self._open(row)  # a hash cannot be hashed again with another salt
        return salted(self._clear[row], salt)

    def patient_is_held_out(self, row: int) -> bool | None:
        """The side of the patient in a derived split, None where no patient is known."""
        if self._is_placeholder(row):
            return None
        if row not in self._clear:
            return self._hashed[row][1]
        patient = self._clear[row]
        return None if patient is None else is_held_out(f"patient {patient}")

    def names(self, row: int, salt: bytes) -> set[str]:
        """Group and patient of an image, as far as they are known, hashed."""
        return {salted(self.archive.samples[row].group, salt), self.patient(row, salt)} - {None}  # type: ignore[return-value]

    def split(self, rows: NDArray[np.int64], *, whole: bool = False) -> NDArray[np.str_]:
        """The side of some rows, as :func:`jigsawssl.data.holdout.derive_split` says, which explains ``whole``."""
        every = rows.tolist()
        return derive_split(
            [self.content(row) for row in every],
            [self.patient(row) for row in every],
            [self.patient_is_held_out(row) for row in every],
            [self.archive.samples[row].group for row in every],
            whole=whole,
        )

    def units(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of what must not be divided between training and test: patients, groups and equal contents."""
        every = rows.tolist()
        contents = (self.content(row) for row in every)
        return units_of(
            [self.patient(row) for row in every],
            [self.archive.samples[row].group for row in every],
            [None if content is None else str(content) for content in contents],
        )

    def _is_placeholder(self, row: int) -> bool:
        """Whether the patient of an image is unknown, or that of all images."""
        return self._named(row) in (None, self._one_for_all)

    @cached_property
    def _one_for_all(self) -> str | None:
        """The patient that all images have, where that is none; a few images tell whether the others are looked at."""
        every = np.arange(len(self.archive))
        for rows in (every[:: max(1, len(every) // _SAMPLED)], every):
            self.look_up(rows)
            patients = [self._named(row) for row in rows.tolist()]
            if tells_apart(patients):
                return None
        return next(patient for patient in patients if patient is not None)

    def _look_up(self, row: int) -> None:
        if row in self._contents:
            return
        found = self._found(row)
        if found is None:
            self._open(row)
        else:
            self._contents[row] = found.content
            self._hashed[row] = found.patient, found.patient_held_out

    def _found(self, row: int) -> Found | None:
        return self.known.found(self.archive.samples[row].path)

    def _open(self, row: int) -> None:
        self._contents[row], self._clear[row] = self._read(row)

    def _read(self, row: int) -> tuple[int | None, str | None]:
        try:
            picture = self.archive.open(row)
        except Unreadable:
            return None, None
        return content_key(picture.content_hash), picture.info.patient
