"""How losses are registered: their options, and what they say of themselves."""

from typing import Annotated

import pytest
import torch

from corrdet.errors import ConfigError
from corrdet.losses import COUPLINGS, Criterion, build_criterion
from corrdet.losses.registry import LossRegistry
from corrdet.options import ANY, NOT_NONE, POSITIVE, Key, at_least, checked
from tests.helpers.losses import config, matched_predictions


@checked
def _gap_loss(
    scores: torch.Tensor,
    ious: torch.Tensor,
    power: Annotated[float, POSITIVE, "of the gap"] = 2.0,
    scale: Annotated[float, POSITIVE, "factor"] = 3.0,
) -> torch.Tensor:
    return scale * (scores - ious.detach()).abs() ** power


SHARED = {"memory": Key(4, at_least(0), "batches"), "scale": Key(9.0, POSITIVE, "hidden")}


def test_options_without_a_default_take_what_is_declared():
    registry = LossRegistry("coupling")

    @registry.register("gap", options_from=(_gap_loss, SHARED))
    def _gap(
        matched, *, state, power, scale, memory, shift: Annotated[float, POSITIVE, "own"] = 1.0
    ):
        return _gap_loss(matched.scores + shift, matched.ious, power, scale)

    assert registry["gap"].options == {
        "power": Key(2.0, POSITIVE, "of the gap"),
        "scale": Key(3.0, POSITIVE, "factor"),  # of the first that declares it
        "memory": Key(4, SHARED["memory"].range, "batches"),
        "shift": Key(1.0, POSITIVE, "own"),
    }
    assert registry["gap"].has_state and not registry["gap"].takes_localization


def test_an_option_that_is_declared_nowhere():
    registry = LossRegistry("coupling")
    message = "option 'powers' of the coupling 'gap' needs a default"
    with pytest.raises(ValueError, match=message):

        @registry.register("gap", options_from=(_gap_loss, SHARED))
        def _gap(matched, *, powers):
            return matched.scores

    assert "gap" not in registry


def test_names_that_every_coupling_has():
    with pytest.raises(ValueError, match="'test_only' cannot have an option 'warmup_iters'"):
        COUPLINGS.register("test_only")(lambda matched, warmup_iters=3: matched.scores)


def test_a_name_of_another_kind_of_loss():
    with pytest.raises(ValueError, match="there already is a localization loss named 'giou'"):
        COUPLINGS.register("giou")(lambda matched: matched.scores)


def test_plain_functions():
    """Any value will do, but None only where it is said, or nothing is."""
    registry = LossRegistry("coupling")

    @registry.register("gap")
    def _gap(
        matched, *, power=2.0, limit=None, scale: float = 1.0, shift: float | None = 2.0
    ):  # fmt: skip
        return matched.scores

    options = registry["gap"].options
    assert {name: key.range for name, key in options.items()} == {
        "power": ANY, "limit": ANY, "scale": NOT_NONE, "shift": ANY,
    }  # fmt: skip


def test_options_that_have_to_fit_together():
    def check(*, low, high):
        if low > high:
            raise ValueError(f"low must not exceed high, got {low} and {high}")

    @COUPLINGS.register("test_only_between", check=check)
    def _between(matched, *, low=0.1, high=0.9):
        return matched.scores.clamp(low, high)

    names = "sigmoid_focal", "giou", ["test_only_between"]
    losses = Criterion(*names)(matched_predictions())
    assert "loss_test_only_between" in losses
    with pytest.raises(ValueError, match="^test_only_between: low must not exceed high, got 2 "):
        Criterion(*names, {"test_only_between": {"low": 2}})
    cfg = config(COUPLINGS=("test_only_between",))
    cfg.MODEL.CRITERION.TEST_ONLY_BETWEEN.LOW = 2
    message = "^MODEL.CRITERION.TEST_ONLY_BETWEEN: low must not exceed high, got 2 and 0.9"
    with pytest.raises(ConfigError, match=message):
        build_criterion(cfg, activation="sigmoid", has_deltas=True)


def test_the_weight_of_a_coupling():
    @COUPLINGS.register("test_only_gap", weight=0.25)
    def _gap(matched):
        return matched.scores.sum()

    assert config().MODEL.CRITERION.TEST_ONLY_GAP.WEIGHT == 0.25
    matched = matched_predictions()
    loss = Criterion("sigmoid_focal", "giou", ["test_only_gap"])(matched)["loss_test_only_gap"]
    torch.testing.assert_close(loss, 0.25 * matched.scores.sum())
