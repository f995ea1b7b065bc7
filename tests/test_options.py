"""Options: ranges, what a signature declares, and the check of every call."""

import inspect
import math
import pickle
import timeit
from typing import Annotated

import numpy as np
import pytest
import torch

from corrdet.errors import ConfigError
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.options import (
    ANY,
    BOOL,
    NOT_NEGATIVE,
    NOT_NONE,
    NUMBER,
    POSITIVE,
    PROBABILITY,
    SHARE,
    SHARE_BELOW_1,
    DeclarationError,
    Key,
    OptionError,
    OptionTypeError,
    Range,
    at_least,
    at_most,
    check_options,
    checked,
    declared_options,
    numbers,
    one_of,
)


@checked
def scaled(
    x,
    lam: Annotated[float, POSITIVE, "slope of the sigmoid"] = 8.0,
    kind: Annotated[str, one_of(("sum", "mean")), "how"] = "sum",
    strength: Annotated[float | None, POSITIVE.or_none(), "None: from the data"] = None,
    plain=3,
):
    """Scale."""
    x = x * lam * (1.0 if strength is None else strength)
    return x.sum() if kind == "sum" else x.mean()


@pytest.mark.parametrize(
    "range_, inside, outside",
    [
        (NUMBER, (0, -1.5, 1e300, np.float32(2), np.int64(3)),
         (math.inf, -math.inf, math.nan, True, "1", None, 10**400, np.float32("inf"), np.True_)),
        (POSITIVE, (1e-300, 3, np.float16(0.5)), (0, -1, math.nan, math.inf, torch.ones(()))),
        (NOT_NEGATIVE, (0, 0.0, 2), (-1e-9, math.nan, math.inf)),
        (PROBABILITY, (0.5, 1e-9), (0, 1, math.nan)),
        (SHARE, (0, 1, 0.5), (-0.1, 1.1, math.nan)),
        (SHARE_BELOW_1, (0, 0.999), (1, -0.1, math.nan)),
        (BOOL, (True, False), (1, 0, None, "True")),
        (at_least(2), (2, 100, np.int8(2)), (1, 2.0, True, "2", None, 10**400, np.float64(3))),
        (at_most(1), (1, -5, 0.5), (1.5, math.nan, -math.inf, "1")),
        (one_of(("a", "b")), ("a", "b"), ("c", None, 1, ["a"])),
        (numbers(2), ((1, 2), [0.5, 3]), ((1,), (1, 0), 1, None, (1, "2"))),
        (numbers(each=SHARE), ((), (0, 1, 1)), ((2,), None)),
        (POSITIVE.or_none(), (None, 1), (0, "a", math.nan)),
    ],
)  # fmt: skip
def test_ranges(range_, inside, outside):
    assert [value for value in inside if range_.problem(value)] == []
    assert [value for value in outside if not range_.problem(value)] == []


@pytest.mark.parametrize(
    "range_, value, message",
    [
        # Of the right type: only what is asked of it.
        (NUMBER, math.inf, "a finite number, got inf"),
        (POSITIVE, -1, "> 0, got -1"),
        (POSITIVE, math.inf, "a finite number > 0, got inf"),
        (POSITIVE, "a", "a finite number > 0, got 'a'"),
        (POSITIVE, np.float64(-0.5), "> 0, got np.float64(-0.5)"),
        (POSITIVE, torch.ones(()), "a finite number > 0, got tensor(1.)"),
        (NOT_NEGATIVE, -1, ">= 0, got -1"),
        (PROBABILITY, 1, "in (0, 1), got 1"),
        (PROBABILITY, None, "a number in (0, 1), got None"),
        (SHARE, 2, "in [0, 1], got 2"),
        (SHARE_BELOW_1, True, "a number in [0, 1), got True"),
        (at_most(1), 2, "<= 1, got 2"),
        (at_most(1), math.nan, "a finite number <= 1, got nan"),
        (at_least(1), 0, ">= 1, got 0"),
        (at_least(1), 2.5, "a whole number >= 1, got 2.5"),
        (BOOL, 1, "True or False, got 1"),
        (NOT_NONE, None, "any value but None, got None"),
        (POSITIVE.or_none(), 0, "> 0, or None, got 0"),
        (POSITIVE.or_none(), "a", "a finite number > 0, or None, got 'a'"),
        (numbers(2), (1, 0), "a list of 2 numbers, each a finite number > 0, got (1, 0)"),
        (numbers(), None, "a list of numbers, each a finite number > 0, got None"),
        (one_of(("pse", "pce")), 1, "one of 'pse', 'pce', got 1"),
    ],
)
def test_messages(range_, value, message):
    assert range_.problem(value) == f" must be {message}"


def test_messages_of_names():
    psee = one_of(("pse", "pce")).problem("psee")
    assert psee == ": unknown name 'psee'; did you mean 'pse' or 'pce'?"
    with pytest.raises(ConfigError, match="^MODEL.X.LAM must be > 0, got 0$"):
        Key(8.0, POSITIVE).check("MODEL.X.LAM", 0)


def test_messages_are_one_short_line():
    for digits in (400, 5000):  # Python does not write out the second
        message = POSITIVE.problem(10**digits)
        got = f"an integer of {digits + 1} digits, more than 64 bits can hold"
        assert message == f" must be a finite number > 0, got {got}"
    assert at_least(1).problem(2**64) == (
        " must be a whole number >= 1, got an integer of 20 digits, more than 64 bits can hold"
    )
    assert len(POSITIVE.problem(list(range(1000)))) < 200
    assert "\n" not in POSITIVE.problem(torch.zeros(3, 3))


@pytest.mark.parametrize(
    "range_, wrong_type, wrong_value",
    [
        (POSITIVE, ("8", None, True, torch.ones(())), (0, math.nan, math.inf, 10**400)),
        (POSITIVE.or_none(), ("8", True), (0, math.nan)),
        (at_least(1), ("8", None, 2.5), (0, 10**400)),
        (BOOL, (1, None, "True"), ()),
        (one_of(("a", "b")), (1, None, ["a"]), ("c",)),
        (one_of(("a", "b")).or_none(), (1, ["a"]), ("c",)),
        (numbers(2), (1, None, "12"), ((1,), (1, 0))),
    ],
)  # fmt: skip
def test_another_type_is_a_type_error_everywhere(range_, wrong_type, wrong_value):
    """And an OptionError as well, and so a ValueError."""
    options = {"lam": Key(None, range_)}

    @checked
    def function(lam: Annotated[object, range_]):
        return lam

    checks = (
        lambda value: range_.check("lam", value),
        lambda value: check_options("ape", options, {"lam": value}),
        function,
    )
    for check in checks:
        for value in wrong_type:
            with pytest.raises(OptionTypeError, match="lam must be"):
                check(value)
        for value in wrong_value:
            with pytest.raises(OptionError, match="lam") as error:
                check(value)
            assert not isinstance(error.value, TypeError)


def test_help_shows_ranges():
    shown = str(inspect.signature(scaled))
    assert "lam: typing.Annotated[float, > 0, 'slope of the sigmoid'] = 8.0" in shown
    assert "Annotated[str, one of 'sum', 'mean', 'how']" in shown
    assert "Annotated[float | None, > 0, or None, 'None: from the data'] = None" in shown
    ranges = (ANY, NOT_NONE, NUMBER, BOOL, SHARE, at_most(3), at_least(1), numbers(4))
    for range_ in ranges:
        assert repr(range_) and " at 0x" not in repr(range_) and "Range" not in repr(range_)


def test_declared_options():
    options = declared_options(scaled)
    assert list(options) == ["lam", "kind", "strength"]
    assert options["lam"] == Key(8.0, POSITIVE, "slope of the sigmoid")
    assert options["strength"].default is None

    def without_default(x, *, lam: Annotated[float, POSITIVE, "slope"]):
        return x

    assert declared_options(without_default)["lam"].default is inspect.Parameter.empty


def test_annotations_that_are_text(tmp_path):
    """Of modules that have ``from __future__ import annotations``."""
    text = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated
from corrdet.options import POSITIVE, checked
if TYPE_CHECKING:
    from torch import Tensor

@checked
def loss(x: Tensor, lam: Annotated[float, POSITIVE, "slope"] = 8.0) -> Tensor:
    return x
"""
    names: dict = {}
    exec(text, names)
    assert declared_options(names["loss"]) == {"lam": Key(8.0, POSITIVE, "slope")}
    with pytest.raises(OptionError, match="lam must be > 0, got -1"):
        names["loss"](1, -1)
    with pytest.raises(DeclarationError, match="the annotation of lam cannot be read.*NameError"):
        exec(text.replace("Annotated[float, POSITIVE", "Annotated[Missing, POSITIVE"), {})


def test_a_default_must_be_in_its_own_range():
    with pytest.raises(ValueError, match="the default of lam must be > 0, got 0.0"):

        @checked
        def _wrong(x, lam: Annotated[float, POSITIVE, "slope"] = 0.0):
            return x


class TestChecked:
    def test_the_function_stays_what_it_is(self):
        assert scaled.__name__ == "scaled" and scaled.__doc__ == "Scale."
        assert list(inspect.signature(scaled).parameters)[:2] == ["x", "lam"]
        assert scaled(torch.ones(2)) == 16 and scaled(torch.ones(2), 2.0, "mean", 0.5) == 1

    @pytest.mark.parametrize(
        "args, kwargs, message",
        [
            ((-1.0,), {}, "^lam must be > 0, got -1.0$"),
            ((), {"lam": math.inf}, "^lam must be a finite number > 0, got inf$"),
            ((8.0, "summ"), {}, "^kind: unknown name 'summ'; did you mean 'sum'"),
            ((), {"strength": "abc"}, "^strength must be a finite number > 0, or None"),
        ],
    )
    def test_values(self, args, kwargs, message):
        with pytest.raises(ValueError, match=message):
            scaled(torch.ones(2), *args, **kwargs)

    @pytest.mark.parametrize("value", ["8", None, True, torch.ones(())])
    def test_types(self, value):
        with pytest.raises(TypeError, match="^lam must be a finite number > 0, got"):
            scaled(torch.ones(2), value)

    def test_numbers_of_numpy_come_as_pythons(self):
        @checked
        def types(
            x,
            lam: Annotated[float, POSITIVE] = 1.0,
            count: Annotated[int, at_least(1)] = 1,
        ):
            return type(lam), type(count)

        for value in (np.float32(2), np.float64(2)):
            assert types(0, value, np.int64(3)) == (float, int)
            assert types(0, lam=value, count=np.uint8(3)) == (float, int)

    def test_arguments_that_there_are_not(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'lamm'"):
            scaled(torch.ones(2), lamm=8.0)
        with pytest.raises(TypeError, match="positional arguments"):
            scaled(torch.ones(2), 8.0, "sum", None, 3, 4)

    @pytest.mark.slow
    def test_it_compiles_without_graph_breaks(self):
        compiled = torch.compile(scaled, fullgraph=True, backend="eager")
        x = torch.rand(3)
        for lam, strength in ((8.0, None), (3.0, 0.5), (2.5, 0.25), (7.0, 0.125)):
            for kind in ("sum", "mean"):
                result = compiled(x, lam, kind, strength=strength)
                torch.testing.assert_close(result, scaled(x, lam, kind, strength))

    @pytest.mark.slow
    def test_each_function_is_compiled_for_itself(self):
        """There is a limit to how often the same code is compiled, 8 by default."""

        def made(factor):
            @checked
            def function(x, lam: Annotated[float, POSITIVE, "slope"] = 8.0):
                return x * lam * factor

            return function

        for factor in range(12):
            function = made(factor)
            compiled = torch.compile(function, fullgraph=True, backend="eager")
            assert compiled(torch.ones(()), 2.0) == 2 * factor

    def test_it_costs_some_microseconds_at_most(self):
        class Nothing:
            def __mul__(self, other):
                return self

            def sum(self):
                return self

        def seconds(function):
            call = lambda: function(Nothing(), 8.0, "sum", strength=0.5)  # noqa: E731
            return min(timeit.repeat(call, number=1000, repeat=20)) / 1000

        assert seconds(scaled) - seconds(scaled.__wrapped__) < 10e-6


def test_check_options():
    options = {"lam": Key(8.0, POSITIVE)}
    check_options("ape", options, {"lam": 2.0})
    with pytest.raises(OptionError, match="^ape.lam must be > 0, got 0$"):
        check_options("ape", options, {"lam": 0})
    with pytest.raises(OptionError, match="^ape.lamm: unknown option of ape 'lamm'; .*'lam'"):
        check_options("ape", options, {"lamm": 0})
    with pytest.raises(OptionError, match="^ape.3: unknown option of ape 3; there are: lam$"):
        check_options("ape", options, {3: 0})
    with pytest.raises(OptionTypeError, match="^ape: expected its options by name, got 3$"):
        check_options("ape", options, 3)


def test_errors_pass_between_processes():
    error = pickle.loads(pickle.dumps(OptionError("lam", " must be > 0, got -1")))
    assert str(error) == "lam must be > 0, got -1" and error.name == "lam"


def test_every_option_of_a_loss_is_declared():
    """With a range that its default is in, and a line for the docs."""
    for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        for name, loss in registry.items():
            for option, key in loss.options.items():
                assert key.line and isinstance(key.range, Range), (name, option)
                assert key.range.problem(key.default) is None, (name, option)
