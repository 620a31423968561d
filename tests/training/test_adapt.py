"""Candidates are judged inside the labels that are given, and the best one is fitted."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from jigsawssl.data import cross_validation_folds
from jigsawssl.data.loading import LabelledSet, PixelDataset
from jigsawssl.models import Classifier
from jigsawssl.models.encoder import Encoder
from jigsawssl.training.adapt import adapt
from jigsawssl.training.finetune import Recipe
from jigsawssl.types import DivergedError

CPU = torch.device("cpu")
NOTHING = np.empty(0, dtype=np.int64)


@pytest.mark.parametrize("mode", ["linear", "knn", "auto"])
@pytest.mark.parametrize("held_out", [True, False])
def test_adapting_judges_inside_the_given_rows(
    mode: str, held_out: bool, two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]
) -> None:
    labels = two_classes.labels
    every = np.arange(40)
    folds = [(every[:30], every[30:])] if held_out else cross_validation_folds(labels, None, folds=3, seed=0)
    encoder = tiny_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    recipe = Recipe(lr=1e-3, max_epochs=8, batch_size=16)
    result = adapt(encoder, LabelledSet(two_classes, labels, 2, folds, every), mode=mode, recipes=[recipe], device=CPU)
    assert (result.probabilities(two_classes).argmax(dim=1).numpy() == labels).mean() >= 0.9
    assert result.validation["scores"] and result.chosen["method"]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert (result.model is None) == (mode == "knn")


@pytest.mark.parametrize("mode", ["full", "auto"])
def test_a_rate_that_diverges_loses(mode: str, two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]) -> None:
    labels, every = two_classes.labels, np.arange(40)
    folds = [(every[:30], every[30:])]
    good = Recipe(lr=1e-3, max_epochs=2, batch_size=10, precision="32")
    bad = good._replace(lr=1e30)
    result = adapt(
        tiny_encoder(), LabelledSet(two_classes, labels, 2, folds, every), mode=mode, recipes=[bad, good], device=CPU
    )
    assert result.validation["diverged"] == ["lr=1e+30"]
    assert result.chosen.get("lr", good.lr) == good.lr
    assert torch.isfinite(result.probabilities(two_classes)).all()
    if mode == "full":
        with pytest.raises(DivergedError, match="lower the learning rate"):
            adapt(
                tiny_encoder(), LabelledSet(two_classes, labels, 2, folds, every), mode=mode, recipes=[bad], device=CPU
            )
    else:  # the probe is left
        alone = adapt(
            tiny_encoder(), LabelledSet(two_classes, labels, 2, folds, every), mode=mode, recipes=[bad], device=CPU
        )
        assert alone.chosen["method"] == "linear"


@pytest.mark.parametrize("held_out", [True, False])
def test_the_average_wins_unless_another_is_clearly_ahead(
    held_out: bool, two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, every = two_classes.labels, np.arange(40)
    folds = [(every[:30], every[30:])] if held_out else cross_validation_folds(labels, None, folds=3, seed=0)
    recipe = Recipe(lr=1e-3, max_epochs=2, batch_size=10)
    for ahead, wins in ((0.02, True), (0.04, False)):
        monkeypatch.setattr("jigsawssl.training.adapt.paired_auroc_difference", lambda *_, a=ahead: (a, 0.03))
        result = adapt(
            tiny_encoder(), LabelledSet(two_classes, labels, 2, folds, every), mode="auto", recipes=[recipe], device=CPU
        )
        assert (result.chosen["method"] == "average of probe and full") == wins
        judged = {re.split(" strength| lr", name)[0] for name in result.validation["scores"]}
        assert judged == {"linear", "average of probe and full", "full from the probe"}


def test_the_average_lies_between_the_probe_and_the_trained_network(
    two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]
) -> None:
    from jigsawssl.training.adapt import _between

    start, end = Classifier(tiny_encoder(), 2), Classifier(tiny_encoder(), 2)
    for value in end.state_dict().values():
        value.copy_(value * 3 + 1)
    middle = _between(start, end, 0.5).state_dict()
    for name, value in start.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(middle[name], (value + end.state_dict()[name]) / 2)
    ends = [_between(start, end, share).state_dict() for share in (0.0, 1.0)]
    for found, expected in zip(ends, (start, end), strict=True):
        floats = [name for name, value in found.items() if value.is_floating_point()]
        for name in floats:
            torch.testing.assert_close(found[name], expected.state_dict()[name])


@pytest.mark.parametrize("count", [11, 13])
def test_folds_of_different_sizes_share_a_schedule(
    count: int, two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]
) -> None:
    labels = two_classes.labels[:count]
    folds = cross_validation_folds(labels, None, folds=5, seed=0)
    recipe = Recipe(lr=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jigsawssl.training.finetune.LEAST_STEPS", 6)
        patch.setattr("jigsawssl.training.finetune.LEAST_EPOCHS", 1)
        result = adapt(
            tiny_encoder(),
            LabelledSet(two_classes.subset(np.arange(count)), labels, 2, folds, np.arange(count)),
            mode="auto",
            recipes=[recipe],
            device=CPU,
        )
    assert result.chosen["method"]
