"""Manifests: what is taken, and that what is not taken says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from jigsawssl.data.manifest import csv_rows, remedy_for_path
from jigsawssl.types import UserError


def written(folder: Path, header: str, rows: Sequence[Sequence[object]], separator: str = ",") -> Path:
    file = folder / "labels.csv"
    text = "\n".join(
        [*([header] if header else []), *(separator.join(str(cell).replace("|", "") for cell in row) for row in rows)]
    )
    file.write_text(text, encoding="utf-8")
    return file


def refusal(file: Path, labels: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        csv_rows(file, labels=labels)
    message = str(caught.value)
    assert message.startswith(f"`manifest` ({file}) must ") and message.endswith(".")
    return message.removeprefix(f"`manifest` ({file}) ")


def images(count: int) -> list[str]:
    return [f"{number}.png" for number in range(count)]


PLAUSIBLE = {
    "two classes": ("path,label", [(path, "ab"[at % 2]) for at, path in enumerate(images(40))]),
    "a grade for each of a few rows": ("path,label", [(path, at) for at, path in enumerate(images(9))]),
    "few rows with a patient each": (
        "path,label,group",
        [(path, at % 5, f"p{at}") for at, path in enumerate(images(10))],
    ),
    "few patients with many classes that they share": (
        "path,label,group",
        [(path, f"c{at % 12}", f"p{at % 5}") for at, path in enumerate(images(120))],
    ),
    "a class for each patient": (
        "path,label,group",
        [(path, f"c{at // 10}", f"p{at // 5}") for at, path in enumerate(images(120))],
    ),
    "numbered classes of two hospitals": (
        "path,label,group",
        [(path, at % 11, ("north", "south")[at % 2]) for at, path in enumerate(images(220))],
    ),
    "many patients of two classes": (
        "path,label,group",
        [(path, "ab"[at // 50], f"p{at // 4}") for at, path in enumerate(images(100))],
    ),
    "as many classes as hospitals": (
        "path,label,group",
        [(path, f"c{at % 12}", f"h{at % 12}") for at, path in enumerate(images(120))],
    ),
    "a sex, an age and folds besides": (
        "path,label,fold,sex,age",
        [(path, "ab"[at % 2], at % 5, "mf"[at % 2], 40 + at % 7) for at, path in enumerate(images(40))],
    ),
    "a patient for each row, named so": (
        "path,label,patient_id",
        [(path, "ab"[at % 2], at) for at, path in enumerate(images(40))],
    ),
    "a name beside the group": (
        "path,label,group,patient",
        [(path, "ab"[at % 2], at // 2, at // 4) for at, path in enumerate(images(40))],
    ),
    "a difficulty called case": (
        "path,label,case",
        [(path, "ab"[at % 2], ("easy", "hard")[at % 3 == 0]) for at, path in enumerate(images(12))],
    ),
    "one slide for all": ("path,label,slide", [(path, "ab"[at % 2], 1) for at, path in enumerate(images(8))]),
    "a case of yes or no": ("path,case", [(path, at % 2) for at, path in enumerate(images(8))]),
    "parts of the body": (
        "path,label,subject",
        [(path, "ab"[at % 2], ("knee", "hip", "hand", "foot")[at % 4]) for at, path in enumerate(images(100))],
    ),
    "phases of contrast": (
        "path,label,phase",
        [(path, "ab"[at % 2], ("native", "arterial", "test")[at % 3]) for at, path in enumerate(images(40))],
    ),
    "a hundred numbered classes at two sites": (
        "path,label,group",
        [(path, f"bird{at // 4}", ("siteA", "siteB")[at % 2]) for at, path in enumerate(images(400))],
    ),
    "codes of diseases in hospitals": (
        "path,label,group",
        [
            (path, f"C{at // 6}.{at % 2}", ("north", "south", "west")[at // 2 % 3])
            for at, path in enumerate(images(600))
        ],
    ),
    "no label for most": ("path,label", [(path, "a" if at < 3 else "") for at, path in enumerate(images(40))]),
    "one column": ("path", [(path,) for path in images(40)]),
    "no rows": ("path,label", []),
}


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_what_is_plausible_is_taken(name: str, tmp_path: Path) -> None:
    header, rows = PLAUSIBLE[name]
    found = csv_rows(written(tmp_path, header, rows), labels=True)
    assert [cells["path"] for _, cells in found] == [row[0] for row in rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(path, f"p{at // 4}", "ab"[at // 50]) for at, path in enumerate(images(100))],
            "must have classes in `label` and patients (lesions, slides) in `group`; `label` has 25 values, such as p0,"
            " and `group` 2, such as a; swap the two names in the first line.",
        ),
        (
            [
                (path, f"person{at // 2}", ("NORMAL", "PNEUMONIA")[at // 2 % 3 > 0 or at in (0, 60)])
                for at, path in enumerate(images(6576))
            ],
            "must have classes in `label` and patients (lesions, slides) in `group`; `label` has 3288 values, such as ",
        ),
        (
            [(path, path[:-4], "abcde"[at % 5]) for at, path in enumerate(images(10))],
            "must have classes in `label` and patients (lesions, slides) in `group`; `label` has 10 values, such as 0,",
        ),
        (
            [(path, path[:-4], "") for path in images(10)],
            "must have the class in `label`; 10 rows have 10 different labels, such as 0, which looks like an image "
            "name, not a class; rename the column that holds the class to `label` (one of group).",
        ),
        (
            [(path, path[:-4] if at else "1", f"p{at}") for at, path in enumerate(images(40))],
            "must have the class in `label`; 40 rows have 39 different labels, such as 1, ",
        ),
    ],
)
def test_labels_that_are_names_are_refused(rows: Sequence[Sequence[str]], message: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, "path,label,group", rows)).startswith(message)


def test_labels_that_are_names_in_two_columns_are_answered_with_where_the_class_goes(tmp_path: Path) -> None:
    file = written(tmp_path, "path,label", [(path, path[:-4]) for path in images(20)])
    assert refusal(file).endswith(", such as 0, which looks like an image name, not a class; put the class in `label`.")


@pytest.mark.parametrize(
    ("header", "count", "groups", "remedy"),
    [
        (
            "path,label,slide",
            200,
            30,
            "rename `slide` to `group` (or to `slide_unused`, if images of one slide may be ",
        ),
        ("path,label,subject", 12, 4, "rename `subject` to `group` (or to `subject_unused`, if images of one subject "),
        ("path,label,case", 5000, 21, "rename `case` to `group` (or to `case_unused`, if images of one case may be "),
    ],
)
def test_a_column_of_many_values_that_repeat_is_taken_for_groups(
    header: str, count: int, groups: int, remedy: str, tmp_path: Path
) -> None:
    rows = [(path, "ab"[at % 2], at % groups) for at, path in enumerate(images(count))]
    assert remedy in refusal(written(tmp_path, header, rows))


def test_the_first_column_that_groups_is_named(tmp_path: Path) -> None:
    rows = [(path, "ab"[at % 2], at, at // 2, ("easy", "hard")[at % 2]) for at, path in enumerate(images(40))]
    message = refusal(written(tmp_path, "path,label,patient,lesion,case", rows))
    assert "rename `lesion` to `group` (or to `lesion_unused`, " in message


def test_labels_that_are_names_do_not_matter_where_they_are_not_read(tmp_path: Path) -> None:
    file = written(tmp_path, "path,label", [(path, path) for path in images(20)])
    assert len(csv_rows(file)) == 20
    assert len(csv_rows(written(tmp_path, "path,class", [(path, "a") for path in images(20)]))) == 20


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("filename,label", ["0.png", "a"], "rename `filename` to `path`."),
        ("file,class", ["0.png", "a"], "it has: file, class; rename `file` to `path` and `class` to `label`."),
        ("image_id,dx", ["0.png", "a"], "rename `image_id` to `path` and `dx` to `label`."),
        ("Path,Label", ["0.png", "a"], "rename `Path` to `path` and `Label` to `label`."),
        ("path,diagnosis", ["0.png", "a"], "rename `diagnosis` to `label`."),
        ("path,y", ["0.png", "1"], "rename `y` to `label`."),
        ("path,label,set", ["0.png", "a", "Train"], "rename `set` to `split`."),
        ("path,label,partition", ["0.png", "a", "test"], "rename `partition` to `split`."),
        ("path,label,phase", ["0.png", "a", "testing"], "rename `phase` to `split`."),
        ("id;class", ["0.png", "a"], "must separate its columns with commas; they are separated with `;`; "),
        ("a,b", ["0.png", "a"], "must have the columns path,label in its first line; it has: a, b; rename them."),
        ("", ["0.png", "a"], "must name its columns in the first line, which holds '0.png,a'; add the line path,label"),
    ],
)
def test_columns_by_another_name_are_answered_with_the_right_one(
    header: str, row: Sequence[str], message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, header, [row, row])
    assert message in refusal(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path;label\na.png;x\n", "they are separated with `;`; replace each ; with a comma."),
        (b"path;label\na.png;x, mild\n", "they are separated with `;`; export it with commas."),
        (b"path\tlabel\na.png\tx\n", "they are separated with tabs; replace each tab with a comma."),
        (
            b"sep=;\npath;label\n",
            "it begins with Excel's line `sep=;`; delete that line, and separate the columns with",
        ),
        ("path,label\na.png,x\n".encode("utf-16"), "it is in UTF-16; save it as CSV UTF-8."),
        ("path,label\na.png,x\n".encode("utf-16-le"), "it is in UTF-16; save it as CSV UTF-8."),
        ("path,label\na.png,x\nb.png,gutartig, größer\n".encode("latin-1"), "line 3 is in another encoding, such as L"),
        (b"PK\x03\x04\x14\x00", "its content is a spreadsheet; save it as CSV UTF-8, with commas."),
        (b"", "must have the columns path,label in its first line; it is empty; add them."),
        (b"path,label\na.png,x\nb\0.png,y\n", "line 3 has a NUL, which is no text; delete it."),
        (b"path,label\n" + b"a.png,x\n" * 200 + b"b.png,\0\n", "line 202 has a NUL, which is no text; delete it."),
    ],
)
def test_a_file_of_another_form_is_answered_with_how_to_save_it(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(data)
    assert message in refusal(file)


def test_a_spreadsheet_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "labels.xlsx").write_bytes(b"PK\x03\x04")
    assert (
        refusal(tmp_path / "labels.xlsx") == "must be a CSV file, not a spreadsheet; save it as CSV UTF-8, with commas."
    )
    assert refusal(tmp_path / "none.csv").endswith("no file is there; check the path.")


def test_a_short_row_has_empty_cells_and_quotes_may_hold_commas(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(b'\xef\xbb\xbfpath, label,group\r\n"a,b.png" ,x\r\n\r\nc.png,y,p1\r\n')
    assert csv_rows(file) == [
        (2, {"path": "a,b.png", "label": "x", "group": ""}),
        (4, {"path": "c.png", "label": "y", "group": "p1"}),
    ]


def test_missing_values_are_no_groups_and_no_labels(tmp_path: Path) -> None:
    rows = [(path, "NA" if at % 2 else "ab"[at % 4 // 2], "NA" if at % 3 else at) for at, path in enumerate(images(40))]
    assert len(csv_rows(written(tmp_path, "path,label,patient", rows), labels=True)) == 40


def test_a_look_at_the_first_rows_does_not_read_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, "path,label", [*((path, "a") for path in images(5)), ("x" * 200_000, "b")])
    assert len(csv_rows(file, most=3)) == 3
    assert "field larger than field limit" in refusal(file)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("scans/a/1.png", "take scans/ off every path: a/1.png"),
        ("home/scans/a/1.png", "take home/scans/ off every path: a/1.png"),
        ("ROOT/a/1.png", "leave the folder out: a/1.png"),
        ("a/1", "add the ending: a/1.png"),
        ("1.png", "the file is at a/1.png: use that path"),
        ("1", "the file is at a/1.png: use that path"),
        ("a\\1.png", "write / in place of \\: a/1.png"),
        ("b/9.png", "check that paths are relative to that folder"),
        ("/elsewhere/1.png", "make it relative to that folder"),
        ("C:\\scans\\1.png", "make it relative to that folder"),
    ],
)
def test_a_path_that_leads_nowhere_is_answered_with_what_to_change(wrong: str, remedy: str, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.png").touch()
    assert remedy_for_path(root, wrong.replace("ROOT", str(root))) == remedy
