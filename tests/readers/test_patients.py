"""Identifiers of patients: who is somebody, and what only fills the place of one."""

from __future__ import annotations

import pytest

from jigsawssl.readers import known_patient, tells_apart


@pytest.mark.parametrize(
    "identifier",
    [
        *("ANONYMOUS", "anon", "Anonymized", "anonymous^patient", "ANONYMOUS_PATIENT", "De-Identified", "REDACTED"),
        *("0", "000000", "0-0-0", "XXXX", "xxx-xxx", "***", "-", "?", ".", "", "   "),
        *("unknown", "UNKNOWN PATIENT", "N/A", "n.a.", "NaN", "None", "null", "Not available", "no name", "PatientID"),
    ],
)
def test_placeholders_are_nobody(identifier: str) -> None:
    assert known_patient(identifier) is None


@pytest.mark.parametrize(
    "identifier",
    [
        "17",
        "1000",
        "007",
        "anon-17",
        "ANON0001",
        "Patient 3",
        "x1",
        "Nash",
        "P0",
        "IDA",
        "unknown2",
        "Anonis",
        "A",
        "王",
    ],
)
def test_names_numbers_and_pseudonyms_are_somebody(identifier: str) -> None:
    assert known_patient(identifier) == identifier
    assert known_patient(None) is None


def test_one_for_all_is_nobody() -> None:
    assert not tells_apart(["one"] * 50) and not tells_apart(["one"] * 12 + [None] * 5)
    assert tells_apart(["one"] * 50 + ["two"]) and tells_apart(["one"] * 12 + [None] * 50)
    assert tells_apart(["one"] * 5) and tells_apart([None] * 50) and tells_apart([])
