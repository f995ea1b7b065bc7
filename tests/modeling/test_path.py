"""How far a reader has to walk: the files that a training step goes through."""

import inspect
import sys
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

import corrdet
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES, correlation_loss
from tests.helpers.detectors import batch, build_dense, build_ssd

ROOT = Path(corrdet.__file__).parent


def files_of(function) -> set[str]:
    """Where a registered loss, and what it wraps, is written down."""
    return {inspect.getsourcefile(inspect.unwrap(function)), inspect.getsourcefile(function)}


def entered(function) -> set[str]:
    """Files of corrdet that a call enters; what operators and losses call is theirs."""
    losses = files_of(correlation_loss).union(
        *(
            files_of(loss.function)
            for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS)
            for loss in registry.values()
        )
    )
    files, inside = set(), 0

    def is_leaf(path: str) -> bool:
        return path in losses or ROOT / "ops" in Path(path).parents

    def profile(frame, event, _):
        nonlocal inside
        path = frame.f_code.co_filename
        if event not in ("call", "return") or ROOT not in Path(path).parents:
            return
        if is_leaf(path):
            inside += 1 if event == "call" else -1
        elif event == "call" and not inside:
            files.add(str(Path(path).relative_to(ROOT)))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return files


@pytest.mark.parametrize("iteration", [0, 19])  # in the 20th, metrics are written
def test_a_training_step_of_fcos_goes_through_six_files(iteration):
    model, images = build_dense("fcos_baseline").train(), batch()
    with EventStorage() as storage:
        model(images)  # what is found out once and kept
        storage.iter = iteration
        files = entered(lambda: model(images))
    assert files == {
        "modeling/dense/detector.py",
        "matching/fcos.py",
        "matching/common.py",
        "modeling/core/training.py",
        "losses/criterion.py",
        "losses/matched_predictions.py",
    }


def test_a_training_step_of_refinedet_goes_through_eleven_files():
    model, images = build_ssd("refinedet_baseline").train(), batch()
    with EventStorage():
        model(images)
        files = entered(lambda: model(images))
    assert files == {
        "modeling/dense/detector.py",
        "modeling/ssd/refinedet.py",
        "modeling/ssd/backbones.py",
        "modeling/ssd/heads.py",
        "modeling/ssd/mining.py",
        "matching/ssd.py",
        "matching/common.py",
        "modeling/core/training.py",
        "losses/criterion.py",
        "losses/matched_predictions.py",
        "activation.py",
    }
