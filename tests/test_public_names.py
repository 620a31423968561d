"""What others import: a name that goes, or comes, is a change that the changelog has to tell."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "jigsawssl": [
        "ImageFormat",
        "UserError",
        "__version__",
        "augment",
        "create_encoder",
        "functional",
        "load_classifier",
        "load_encoder",
        "save_encoder",
    ],
    "jigsawssl.augment": ["Jigsaw", "JigsawViews", "PRESETS", "ViewChain", "ViewParameters", "augmentation_chain"],
    "jigsawssl.checkpoint": [
        "load_classifier",
        "load_encoder",
        "read_header",
        "resolve_encoder",
        "save_classifier",
        "save_encoder",
    ],
    "jigsawssl.data": [
        "Archive",
        "IMAGE_SUFFIXES",
        "PHANTOM_CLASSES",
        "cross_validation_folds",
        "holdout_split",
        "label_fraction",
        "make_phantoms",
        "open_archive",
    ],
    "jigsawssl.evaluation": [
        "classification_metrics",
        "effective_rank",
        "feature_standard_deviation",
        "log_loss",
        "macro_auroc",
        "paired_auroc_difference",
    ],
    "jigsawssl.functional": [
        "average_positions",
        "cross_correlation",
        "from_tiles",
        "invert_permutation",
        "permute_tiles",
        "sample_permutations",
        "to_channels_last",
        "to_tiles",
        "to_unit_range",
    ],
    "jigsawssl.losses": ["BarlowTwins", "HierarchicalLoss", "Objective", "create_objective"],
    "jigsawssl.models": [
        "Classifier",
        "Encoder",
        "EncoderSpec",
        "HierarchicalBlock",
        "HierarchicalClassifier",
        "PlainProjector",
        "create_encoder",
    ],
    "jigsawssl.readers": [
        "ImageInfo",
        "Kind",
        "MAX_PIXELS",
        "NOTE_CONSTANT_CHANNEL",
        "NOTE_FLAT_TABLE",
        "NOTE_HIGH_BITS",
        "NOTE_NARROW",
        "NotAnImage",
        "Notes",
        "Picture",
        "SNIFFED",
        "Unreadable",
        "fit_image",
        "from_pillow",
        "known_patient",
        "note_narrow",
        "open_picture",
        "read",
        "read_file",
        "robust_range",
        "shrink_square",
        "sniff",
        "tells_apart",
        "to_display",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_stay(module: str) -> None:
    found = importlib.import_module(module)
    assert sorted(found.__all__) == PUBLIC[module]
    assert all(hasattr(found, name) for name in PUBLIC[module])
