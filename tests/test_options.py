"""Options: ranges, what a signature declares, and the check of every call."""

import inspect
import math
import pickle
import timeit
from typing import Annotated

import pytest
import torch

from corrdet.errors import ConfigError
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from corrdet.options import (
    BOOL,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    PROBABILITY,
    SHARE,
    SHARE_BELOW_1,
    Key,
    OptionError,
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
        (NUMBER, (0, -1.5, 1e300), (math.inf, -math.inf, math.nan, True, "1", None)),
        (POSITIVE, (1e-300, 3), (0, -1, math.nan, math.inf)),
        (NOT_NEGATIVE, (0, 0.0, 2), (-1e-9, math.nan, math.inf)),
        (PROBABILITY, (0.5, 1e-9), (0, 1, math.nan)),
        (SHARE, (0, 1, 0.5), (-0.1, 1.1, math.nan)),
        (SHARE_BELOW_1, (0, 0.999), (1, -0.1, math.nan)),
        (BOOL, (True, False), (1, 0, None, "True")),
        (at_least(2), (2, 100), (1, 2.0, True, "2", None)),
        (at_most(1), (1, -5, 0.5), (1.5, math.nan, -math.inf, "1")),
        (one_of(("a", "b")), ("a", "b"), ("c", None, 1, ["a"])),
        (numbers(2), ((1, 2), [0.5, 3]), ((1,), (1, 0), 1, None, (1, "2"))),
        (numbers(each=SHARE), ((), (0, 1, 1)), ((2,), None)),
        (POSITIVE.or_none(), (None, 1), (0, "a", math.nan)),
    ],
)
def test_ranges(range_, inside, outside):
    assert [value for value in inside if range_.problem(value)] == []
    assert [value for value in outside if not range_.problem(value)] == []


def test_messages():
    assert POSITIVE.problem(-1) == " must be positive and finite, got -1"
    assert POSITIVE.or_none().problem("a") == " must be positive and finite, or None, got 'a'"
    assert (
        one_of(("pse", "pce")).problem("psee")
        == ": unknown name 'psee'; did you mean 'pse' or 'pce'?"
    )
    assert one_of(("pse", "pce")).problem(1) == " must be one of 'pse', 'pce', got 1"
    with pytest.raises(ConfigError, match="^MODEL.X.LAM must be positive and finite, got 0$"):
        Key(8.0, POSITIVE).check("MODEL.X.LAM", 0)


def test_declared_options():
    options = declared_options(scaled)
    assert list(options) == ["lam", "kind", "strength"]
    assert options["lam"] == Key(8.0, POSITIVE, "slope of the sigmoid")
    assert options["strength"].default is None

    def without_default(x, *, lam: Annotated[float, POSITIVE, "slope"]):
        return x

    assert declared_options(without_default)["lam"].default is inspect.Parameter.empty


def test_a_default_must_be_in_its_own_range():
    with pytest.raises(ValueError, match="the default of lam must be positive and finite, got 0.0"):

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
            ((-1.0,), {}, "^lam must be positive and finite, got -1.0$"),
            ((), {"lam": math.inf}, "^lam must be positive and finite, got inf$"),
            ((8.0, "summ"), {}, "^kind: unknown name 'summ'; did you mean 'sum'"),
            ((), {"strength": "abc"}, "^strength must be positive and finite, or None, got 'abc'$"),
        ],
    )
    def test_values(self, args, kwargs, message):
        with pytest.raises(ValueError, match=message):
            scaled(torch.ones(2), *args, **kwargs)

    @pytest.mark.parametrize("value", ["8", None, True, torch.ones(())])
    def test_types(self, value):
        with pytest.raises(TypeError, match="^lam must be positive and finite, got"):
            scaled(torch.ones(2), value)

    def test_arguments_that_there_are_not(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'lamm'"):
            scaled(torch.ones(2), lamm=8.0)
        with pytest.raises(TypeError, match="positional arguments"):
            scaled(torch.ones(2), 8.0, "sum", None, 3, 4)

    def test_it_compiles_without_graph_breaks(self):
        compiled = torch.compile(scaled, fullgraph=True, backend="eager")
        x = torch.rand(3)
        for lam, strength in ((8.0, None), (3.0, 0.5), (2.5, 0.25), (7.0, 0.125)):
            for kind in ("sum", "mean"):
                result = compiled(x, lam, kind, strength=strength)
                torch.testing.assert_close(result, scaled(x, lam, kind, strength))

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
    with pytest.raises(OptionError, match="^ape.lam must be positive and finite, got 0$"):
        check_options("ape", options, {"lam": 0})
    with pytest.raises(OptionError, match="^ape.lamm: unknown option of ape 'lamm'; .*'lam'"):
        check_options("ape", options, {"lamm": 0})


def test_errors_pass_between_processes():
    error = pickle.loads(pickle.dumps(OptionError("lam", " must be positive, got -1")))
    assert str(error) == "lam must be positive, got -1" and error.name == "lam"


def test_every_option_of_a_loss_is_declared():
    """With a range that its default is in, and a line for the docs."""
    for registry in (CLASSIFICATION_LOSSES, LOCALIZATION_LOSSES, COUPLINGS):
        for name, loss in registry.items():
            for option, key in loss.options.items():
                assert key.line and isinstance(key.range, Range), (name, option)
                assert key.range.problem(key.default) is None, (name, option)
