"""What words mean: folders that are splits and those that are classes, the order of classes, classes spelled twice."""

from __future__ import annotations

from itertools import product

import pytest

from jigsawssl.data.conventions import alike, are_numbered, folder_samples, is_missing, ordered_classes, split_name
from jigsawssl.types import UserError

FORMS = {
    "train": ("train", "training", "Training", "TRAIN", "train_set", "trainset"),
    "val": ("val", "valid", "validation", "Validation", "dev", "tuning", "val_data"),
    "test": ("test", "testing", "Testing", "TEST", "test set", "test-set"),
}


def tree(text: str) -> dict[str, tuple[str | None, str | None]]:
    """Class and split by path, of the paths in a text."""
    return {sample.path: (sample.label, sample.split) for sample in folder_samples(text.split())}


@pytest.mark.parametrize("split", FORMS)
def test_splits_have_many_forms(split: str) -> None:
    assert {split_name(form) for form in FORMS[split]} == {split}


@pytest.mark.parametrize("word", ["holdout", "0", "contest", "untested", "set", "data", "", "retrain", "extra"])
def test_other_words_stay_as_they_are(word: str) -> None:
    assert split_name(word) == word


@pytest.mark.parametrize("around", ["", "chest/", "archive.zip/", "a/b.tar.gz/c/", "test/", "train/"])
def test_splits_are_found_at_any_depth_and_in_every_form(around: str) -> None:
    for train, val, test in product(*([forms[0], forms[2], forms[-1]] for forms in FORMS.values())):
        words = dict(zip(FORMS, (train.replace(" ", "_"), val, test.replace(" ", "-")), strict=True))
        paths = {
            f"{around}{word}/{middle}{label}/{number}.png": (label, split)
            for split, word in words.items()
            for middle in ("", "site/")
            for number, label in enumerate(("NORMAL", "test", "tumor"))
        }
        assert tree(" ".join(paths)) == paths


def test_containers_are_splits_by_their_names() -> None:
    found = tree("train.zip/a/1.png train.zip/b/2.png Test.tar.gz/a/3.png")
    assert found == {
        "train.zip/a/1.png": ("a", "train"),
        "train.zip/b/2.png": ("b", "train"),
        "Test.tar.gz/a/3.png": ("a", "test"),
    }


def test_a_class_with_the_name_of_a_split_is_a_class() -> None:
    assert tree("normal/1.png test/2.png") == {"normal/1.png": ("normal", None), "test/2.png": ("test", None)}
    assert tree("x/normal/1.png x/valid/2.png y/test/3.png")["x/valid/2.png"] == ("valid", None)
    assert tree("train/normal/1.png train/test/2.png test/test/3.png test/normal/4.png") == {
        "train/normal/1.png": ("normal", "train"),
        "train/test/2.png": ("test", "train"),
        "test/test/3.png": ("test", "test"),
        "test/normal/4.png": ("normal", "test"),
    }


def test_one_split_alone_is_a_split() -> None:
    assert tree("train/a/1.png train/b/2.png") == {"train/a/1.png": ("a", "train"), "train/b/2.png": ("b", "train")}
    assert tree("train/a/1.png holdout/a/2.png")["holdout/a/2.png"] == ("a", "holdout")


def test_what_stands_beside_the_splits_is_a_split_of_its_own_name() -> None:
    assert tree("c/train/a/1.png c/test/a/2.png c/extra/a/3.png c/extra/4.png c/5.png d/6.png") == {
        "c/train/a/1.png": ("a", "train"),
        "c/test/a/2.png": ("a", "test"),
        "c/extra/a/3.png": ("a", "extra"),
        "c/extra/4.png": (None, "extra"),
        "c/5.png": ("c", None),
        "d/6.png": ("d", None),
    }


def test_a_copy_of_the_archive_inside_of_it_has_its_own_splits() -> None:
    found = tree("c/train/a/1.png c/test/a/2.png c/c/train/a/1.png c/c/test/a/2.png")
    assert found["c/c/train/a/1.png"] == ("a", "train") and found["c/c/test/a/2.png"] == ("a", "test")


def test_splits_inside_of_classes() -> None:
    assert tree("x/ill/train/1.png x/ill/test/2.png x/well/train/3.png x/well/test/4.png") == {
        "x/ill/train/1.png": ("ill", "train"),
        "x/ill/test/2.png": ("ill", "test"),
        "x/well/train/3.png": ("well", "train"),
        "x/well/test/4.png": ("well", "test"),
    }
    assert tree("x/train/1.png x/test/2.png") == {"x/train/1.png": (None, "train"), "x/test/2.png": (None, "test")}


def test_missing_values_go_by_their_spelling() -> None:
    missing = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A")
    assert all(map(is_missing, missing))
    assert not any(map(is_missing, ("none", "0", "-1", "na", "Na", "unknown", "normal", " ")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["abnormal", "normal"], ("normal", "abnormal")),
        (["disease", "Healthy"], ("Healthy", "disease")),
        (["COVID", "No finding"], ("No finding", "COVID")),
        (["benign", "malignant"], ("benign", "malignant")),
        (["malignant", "non-malignant"], ("non-malignant", "malignant")),
        (["benign", "normal"], ("benign", "normal")),
        (["negative", "positive"], ("negative", "positive")),
        (["left", "right"], ("left", "right")),
        (["abnormal", "normal", "unclear"], ("abnormal", "normal", "unclear")),
        (["10", "2", "1"], ("1", "2", "10")),
    ],
)
def test_of_two_classes_the_finding_is_looked_for(names: list[str], expected: tuple[str, ...]) -> None:
    assert ordered_classes(names) == expected
    if len(names) == 2:
        for name in names:
            assert ordered_classes(names, positive=name)[1] == name and ordered_classes(names, names) == tuple(names)


@pytest.mark.parametrize(
    ("classes", "positive", "message"),
    [
        (["a", "b"], None, "c is left out"),
        (["a", "b", "c", "d"], None, "d is not one"),
        (["a", "b", "c", "c"], None, "one is named twice; fix the list"),
        (["a", "b", "False"], None, "c is left out; put each name in quotes"),
        ([], "a", "must be one of two classes; the archive has 3: a, b, c"),
    ],
)
def test_an_order_that_is_none_is_refused(classes: list[str], positive: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ordered_classes("abc", classes, positive)


def test_the_positive_class_is_the_last() -> None:
    with pytest.raises(UserError, match=r"`positive` \(a\) must be the last of `classes` \(a, b\)"):
        ordered_classes("ab", "ab", "a")
    assert ordered_classes("ab", "ba", "a") == ("b", "a")


def test_numbers_have_an_order_and_words_have_none() -> None:
    assert are_numbered("01234") and are_numbered(["grade 1", "grade 10"]) and are_numbered(["KL-0", "KL-1"])
    for names in (["none", "mild"], ["grade 1", "stage 2"], ["T1a", "T1b"], ["0", "mild"], ["a", "2"], ["1-2", "3-4"]):
        assert not are_numbered(names)


@pytest.mark.parametrize(
    "names",
    [["Normal", "normal"], ["0", "0.0"], ["1", "01"], ["a b", "a_b"], ["a", "a "], ["é", "e\u0301"], ["-1", "-1.0"]],
)
def test_one_class_in_two_spellings_is_found(names: list[str]) -> None:
    assert alike([*names, "other"]) == [tuple(sorted(names))]


def test_different_classes_are_not_alike() -> None:
    assert alike(["1", "-1", "1.5", "10", "grade 1", "grade 10", "nan", "inf", "a", "ab", "1-2", "12"]) == []
