"""Which identifiers say who a patient is, and which only stand where one was taken out."""

import re
from collections.abc import Sequence

ONE_FOR_ALL = 10
"""Images from which on an identifier that all of them share is taken for a placeholder; fewer may be one patient's."""

_PLACEHOLDERS = frozenset(
    (
        *("anon", "anonym", "anonymous", "anonymus", "anonymized", "anonymised", "anonymize", "anonymise"),
        *("deidentified", "deid", "removed", "redacted", "deleted", "hidden", "masked", "withheld", "private", "blank"),
        *("unknown", "unspecified", "undefined", "unnamed", "notavailable", "missing", "none", "null", "nil", "empty"),
        *("na", "nan", "unk", "patient", "patientid", "subject", "id", "pid", "noid", "noname", "nopatient", "name"),
        *("test", "dummy", "default", "de", "identified", "not", "available", "no"),
    )
)
"""Words that identify nobody, alone or with one another, in lower case."""

_NO_NAME = re.compile(r"[\W_0]*|[\W_xX]*")


def known_patient(identifier: str | None) -> str | None:
    """An identifier, or None for a placeholder: nothing but zeros, crosses and marks, or such words.

    Pseudonyms, which have other numbers, tell patients apart and are kept.

    >>> [known_patient(text) for text in ("ANONYMOUS", "000000", "N/A", "Patient Unknown", "anon-17", "17")]
    [None, None, None, None, 'anon-17', '17']
    """
    if identifier is None or _NO_NAME.fullmatch(identifier):
        return None
    words = re.split(r"[\W_]+", identifier.lower())
    nobody = "".join(words) in _PLACEHOLDERS or all(word in _PLACEHOLDERS for word in words if word)
    return None if nobody else identifier


def tells_apart(patients: Sequence[str | None]) -> bool:
    """Whether identifiers tell patients apart: not where they are many, of most images, and all the same.

    >>> tells_apart(["p1"] * 9 + ["p2"]), tells_apart(["p1"] * 10 + [None]), tells_apart(["p1"] * 9)
    (True, False, True)
    """
    known = [patient for patient in patients if patient is not None]
    return len(known) < ONE_FOR_ALL or 2 * len(known) <= len(patients) or len(set(known)) > 1
