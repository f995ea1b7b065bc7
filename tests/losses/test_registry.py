"""How losses are registered: their options, and what they say of themselves."""

from typing import Annotated, Optional

import pytest
import torch

from corrdet.engine.configuration import import_modules
from corrdet.errors import ConfigError, CorrdetError
from corrdet.losses import (
    CLASSIFICATION_LOSSES,
    COUPLINGS,
    LOCALIZATION_LOSSES,
    Criterion,
    build_criterion,
)
from corrdet.losses.registry import LossRegistry
from corrdet.options import ANY, NOT_NONE, POSITIVE, DeclarationError, Key, at_least, checked
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
    with pytest.raises(ValueError, match="'test_only' cannot have an argument 'warmup_iters=3'"):
        COUPLINGS.register("test_only")(lambda matched, warmup_iters=3: matched.scores)


def test_a_name_of_another_kind_of_loss():
    with pytest.raises(ValueError, match="there already is a localization loss named 'giou'"):
        COUPLINGS.register("giou")(lambda matched: matched.scores)


def test_plain_functions():
    """Any value will do, but None only where it is said, or nothing is."""
    registry = LossRegistry("coupling")

    @registry.register("gap")
    def _gap(
        matched, *, power=2.0, limit=None, scale: float = 1.0, shift: float | None = 2.0,
        floor: Optional[float] = 0.5,  # noqa: UP045
    ):  # fmt: skip
        return matched.scores

    options = registry["gap"].options
    assert {name: key.range for name, key in options.items()} == {
        "power": ANY, "limit": ANY, "scale": NOT_NONE, "shift": ANY, "floor": ANY,
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


class TestNames:
    @pytest.mark.parametrize("registry", [CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS])
    @pytest.mark.parametrize(
        "name, message",
        [
            # Keys of MODEL.CRITERION.
            (
                "classification",
                "cannot be named 'classification': MODEL.CRITERION.C",
            ),
            ("localization", "cannot be named 'localization'"),
            ("couplings", "cannot be named 'couplings'"),
            ("localization_weighted_by", "cannot be named 'localization_weighted_by'"),
            # Of the same key as 'gap'.
            ("GAP", "has to be of small letters, digits and _, the first a letter, got 'GAP'"),
            ("Gap", "has to be of small letters"),
            ("my-loss", "has to be of small letters"),
            ("my loss", "has to be of small letters"),
            ("a.b", "has to be of small letters"),
            ("1st", "has to be of small letters"),
            ("_gap", "has to be of small letters"),
            ("gap\n", "has to be of small letters"),
            ("maß", "has to be of small letters"),
            ("", "has to be of small letters"),
        ],
    )
    def test_names_that_no_loss_can_have(self, registry, name, message):
        with pytest.raises(DeclarationError, match=message):
            registry.register(name)(lambda matched: matched.scores)
        assert name not in registry

    @pytest.mark.parametrize("name", ["cls", "box_reg", "loc"])
    def test_names_of_other_losses_of_a_step(self, name):
        with pytest.raises(DeclarationError, match=f"{name!r}: there is another loss_{name}"):
            COUPLINGS.register(name)(lambda matched: matched.scores)

    def test_no_name(self):
        registry = LossRegistry("coupling")
        expected = 'expected the name of a coupling, as in @register\\("my_loss"\\), got '

        with pytest.raises(DeclarationError, match=expected + "the function 'gap'"):

            @registry.register
            def gap(matched):
                return matched.scores

        with pytest.raises(DeclarationError, match=expected + "3"):
            registry.register(3)

    def test_names_that_there_are_not(self):
        for find in (COUPLINGS.__getitem__, COUPLINGS.get):
            with pytest.raises(ValueError, match="unknown coupling 'corelation'; did you mean 'co"):
                find("corelation")
            with pytest.raises(ValueError, match="unknown coupling 'qqq'; there are: ass"):
                find("qqq")
            with pytest.raises(ValueError, match="unknown coupling 3; there are: "):
                find(3)
        assert COUPLINGS.get("qqq", None) is None
        assert COUPLINGS.get("association", None) is COUPLINGS["association"]
        assert ["association"] not in COUPLINGS
        assert "association, correlation" in repr(COUPLINGS)


def _with_both(matched, classification, localization):
    return classification, localization


@pytest.mark.parametrize(
    "function, message",
    [
        (3, "has to be a function, got 3"),
        (lambda: 0, r"MatchedPredictions as its first argument, got a function of \(\)"),
        (lambda *, matched: 0, r"first argument, got a function of \(\*, matched\)"),
        (lambda *args: 0, r"first argument, got a function of \(\*args\)"),
        (lambda matched, *args: 0, r"argument '\*args': each of its options has to be named"),
        (lambda matched, **kwargs: 0, r"argument '\*\*kwargs': each of its options"),
        (lambda matched, power=1, /: 0, "argument 'power=1': options are given by name"),
        (lambda matched, Power=1: 0, "argument 'Power=1': an option has to be of small letters"),
        (lambda matched, größe=1: 0, "argument 'größe=1': an option has to be of small letters"),
        (lambda matched, _power=1: 0, "argument '_power=1': an option has to be of small letters"),
        (lambda matched, power: 0, "'power' of the coupling 'gap' needs a default"),
        (lambda matched, power={}: 0, r"a default that a config can hold .*, got \{\}"),
        (lambda matched, power=object: 0, "can hold .*, got <class 'object'>"),
        (lambda matched, classification: 0, "argument 'classification' and none 'localization': "),
        (lambda matched, localization: 0, "argument 'localization' and none 'classification': "),
        (max, "has a signature that cannot be read: no signature found"),
    ],
)
def test_functions_that_no_criterion_could_call(function, message):
    registry = LossRegistry("coupling")
    with pytest.raises(DeclarationError, match=message):
        registry.register("gap")(function)
    assert "gap" not in registry


def test_what_only_some_losses_are_given():
    for registry, argument in (
        (CLASSIFICATION_LOSSES, "classification"),
        (LOCALIZATION_LOSSES, "classification"),
        (LOCALIZATION_LOSSES, "localization"),
    ):
        function = eval(f"lambda matched, {argument}: 0")
        with pytest.raises(
            DeclarationError, match=f"an argument '{argument}': of .* it can be given .* only"
        ):
            registry.register("test_only_given")(function)
    registry = LossRegistry("coupling")
    registry.register("both")(_with_both)
    assert registry["both"].takes_localization


@pytest.mark.parametrize(
    "registry, properties, message",
    [
        (COUPLINGS, {"weight": -1}, "weight must be >= 0, got -1"),
        (COUPLINGS, {"weight": "1"}, "weight must be a finite number >= 0, got '1'"),
        (COUPLINGS, {"needs": "localization"}, "needs must be a tuple of some of .*'localization'"),
        (COUPLINGS, {"needs": ("localisation",)}, "needs must be .*, got .*'localisation'"),
        (COUPLINGS, {"activations": "sigmoid"}, "activations must be .*, got 'sigmoid'"),
        (COUPLINGS, {"activations": ()}, "activations must be .*, got ()"),
        (COUPLINGS, {"activations": ("tanh",)}, "some of 'sigmoid', 'softmax', got .*'tanh'"),
        (COUPLINGS, {"per_sample": False}, "unknown property 'per_sample'"),
        (COUPLINGS, {"wieght": 1}, "unknown property 'wieght'; did you mean 'weight'"),
        (COUPLINGS, {"needs_deltas": 1}, "needs_deltas must be True or False, got 1"),
        (COUPLINGS, {"use": None}, "use must be a text, got None"),
        (COUPLINGS, {"check": 3}, "check must be a function, or None, got 3"),
        (COUPLINGS, {"check": lambda powre: 0}, "its check has to take the options power by name"),
        (COUPLINGS, {"state_with": "memory"}, r"the name of one of its options \(power\), got"),
        (COUPLINGS, {"options_from": _gap_loss}, "options_from has to be a tuple of functions"),
        (COUPLINGS, {"options_from": (3,)}, "3 is not a callable object"),
        (COUPLINGS, {"function": 3}, "unknown property 'function'"),
        (CLASSIFICATION_LOSSES, {"weight": 1.0}, "unknown property 'weight'"),
        (CLASSIFICATION_LOSSES, {"bounded": True}, "unknown property 'bounded'"),
        (LOCALIZATION_LOSSES, {"needs": ("localization",)}, "unknown property 'needs'"),
        (LOCALIZATION_LOSSES, {"needs_bounded": True}, "unknown property 'needs_bounded'"),
    ],
)
def test_properties(registry, properties, message):
    message = f"^the {registry.what} 'test_only_property'.*{message}"
    with pytest.raises(DeclarationError, match=message):
        registry.register("test_only_property", **properties)(lambda matched, power=1: 0)
    assert "test_only_property" not in registry


def test_defaults_that_their_check_refuses():
    def check(*, low, high):
        if low > high:
            raise ValueError("low must not exceed high")

    with pytest.raises(DeclarationError, match="check refuses the defaults: low must not exceed"):
        COUPLINGS.register("test_only_check", check=check)(lambda matched, low=2, high=1: 0)


def test_a_default_out_of_its_own_range():
    with pytest.raises(DeclarationError, match="'test_only_range': .*the default of a must be > 0"):

        @COUPLINGS.register("test_only_range")
        def _loss(matched, a: Annotated[float, POSITIVE, "a"] = -1.0):
            return matched.scores


def test_errors_say_where_the_function_is():
    with pytest.raises(DeclarationError, match=r" \(.*test_registry.py, line \d+\)$"):
        COUPLINGS.register("test_only_place")(lambda matched, power: 0)


@pytest.mark.parametrize(
    "text, message",
    [
        ('@COUPLINGS.register("test_only_file")\ndef loss(matched, *, power): ...', "a default"),
        ("@COUPLINGS.register\ndef loss(matched): ...", "got the function 'loss'"),
        ("@checked\ndef loss(x, a: Annotated[float, POSITIVE] = 0): ...", "loss: the default of a"),
        ('COUPLINGS.register("GAP")(checked)', "small letters"),
    ],
)
def test_a_file_of_ones_own_is_told_in_a_line(text, message, tmp_path):
    """Of `train_net.py --import`: commands print a CorrdetError as it is."""
    path = tmp_path / "own.py"
    path.write_text(
        "from typing import Annotated\n"
        "from corrdet.losses import COUPLINGS\n"
        f"from corrdet.options import POSITIVE, checked\n{text}\n"
    )
    with pytest.raises(CorrdetError, match=message) as error:
        import_modules([str(path)])
    assert "\n" not in str(error.value)
    if "@COUPLINGS" in text:
        assert f"({path}, line 4)" in str(error.value)
