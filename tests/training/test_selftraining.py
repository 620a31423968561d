"""A probe that trains itself on images without a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jigsawssl.data import cross_validation_folds
from jigsawssl.data.loading import LabelledSet, PixelDataset
from jigsawssl.evaluation import macro_auroc
from jigsawssl.training.adapt import choose_probe
from jigsawssl.training.probe import fit_probe
from jigsawssl.training.selftraining import ALIGNED, align, pseudo_labels, self_train


def clouds(count: int, seed: int, apart: float = 1.0, dimensions: int = 30) -> tuple[Tensor, np.ndarray]:
    """Two classes that differ in a few of many dimensions."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    x = generator.normal(size=(count, dimensions))
    x[:, :4] += apart * (2 * labels[:, None] - 1)
    return torch.from_numpy(x).float(), labels.astype(np.int64)


def test_alignment_moves_the_shares_towards_the_prior_and_no_further_than_its_bound() -> None:
    p = torch.softmax(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0, 0]), 1)
    prior = torch.tensor([0.4, 0.3, 0.3])
    moved = align(p, prior, balanced=False)
    assert torch.allclose(moved.sum(dim=1), torch.ones(500))
    assert (moved.mean(dim=0) - prior).abs().sum() < (p.mean(dim=0) - prior).abs().sum() / 3
    odds = (moved[:, 0] / moved[:, 1]) / (p[:, 0] / p[:, 1])
    assert ((odds >= ALIGNED**-2 - 1e-4) & (odds <= ALIGNED**2 + 1e-4)).all()
    # Predictions of a balanced model of images with the labels' shares are right as they are.
    own = torch.eye(2)[torch.tensor([0] * 9 + [1])] * 0.98 + 0.01
    assert torch.allclose(align(own, torch.tensor([0.9, 0.1]), balanced=True), own, atol=0.05)


def test_pseudo_labels_are_those_of_the_teacher_for_the_most_certain_of_each_class() -> None:
    p = torch.softmax(3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    rows, labels = pseudo_labels(p, prior, share=0.25, most=1000)
    assert len(set(rows.tolist())) == len(rows)
    assert np.array_equal(labels, p.argmax(dim=1).numpy()[rows])
    for number in range(4):
        mine = rows[labels == number]
        others = np.setdiff1d(np.flatnonzero(p.argmax(dim=1).numpy() == number), mine)
        assert len(mine) == min(np.ceil(50 * float(prior[number])), len(mine) + len(others))
        assert not len(others) or p[mine, number].min() >= p[others, number].max()
    assert len(pseudo_labels(p, prior, share=0.5, most=20)[0]) <= 20 + len(prior)


def test_unlabelled_images_help_where_labels_are_few() -> None:
    x, y = clouds(12, seed=0)
    unlabelled, _ = clouds(600, seed=1)
    test, truth = clouds(600, seed=2)
    teacher = fit_probe(x, y, classes=2, strength=0.01, balanced=True)
    student = self_train(teacher, x, y, unlabelled, classes=2, strength=0.01, balanced=True)
    with torch.no_grad():
        before, after = (macro_auroc(head(test).softmax(dim=1), truth) for head in (teacher, student))
    assert after > before + 0.005


@pytest.mark.parametrize("only", [0, 1])
def test_unlabelled_images_of_one_class_make_nothing_collapse(only: int) -> None:
    x, y = clouds(40, seed=0, apart=2.0)
    unlabelled, labels = clouds(600, seed=1, apart=2.0)
    test, truth = clouds(200, seed=2, apart=2.0)
    teacher = fit_probe(x, y, classes=2, strength=0.01, balanced=True)
    student = self_train(teacher, x, y, unlabelled[labels == only], classes=2, strength=0.01, balanced=True)
    with torch.no_grad():
        found = student(test).softmax(dim=1)
    assert macro_auroc(found, truth) > 0.95
    assert (found.argmax(dim=1).numpy() == truth).mean() > 0.85


def test_without_unlabelled_images_the_probe_is_the_same_and_with_them_validation_judges(
    two_classes: PixelDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = two_classes.__getitems__(range(40)).images.flatten(1).float()[:, ::7]
    labels, every = two_classes.labels, np.arange(40)
    known = LabelledSet(two_classes, labels, 2, cross_validation_folds(labels, None, folds=3, seed=0), every)
    plain, none = (choose_probe(features, known, balanced=True, unlabelled=u) for u in (None, features[:0]))
    assert torch.equal(plain.judged, none.judged) and plain.chosen == none.chosen == {"strength": plain.strength}
    assert all(
        torch.equal(a, b) for a, b in zip(plain.fit(every).parameters(), none.fit(every).parameters(), strict=True)
    )
    average = {}
    for ahead, shares in ((0.02, {0.5}), (0.04, {0.0, 1.0})):
        monkeypatch.setattr("jigsawssl.training.adapt.paired_auroc_difference", lambda *_, a=ahead: (a, 0.03))
        average[ahead] = choose_probe(features, known, balanced=True, unlabelled=features)
        assert average[ahead].chosen["self-trained share"] in shares
        assert average[ahead].judged.shape == plain.judged.shape
    mixed = average[0.02]
    ends = [mixed._replace(taught=share).fit(every).weight for share in (0.0, 1.0)]
    assert torch.allclose(mixed.fit(every).weight, (ends[0] + ends[1]) / 2, atol=1e-6)
