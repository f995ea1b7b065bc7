"""The command that tools converting others' checkpoints have in common."""

import argparse
import os
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from corrdet.errors import errors_in_one_line
from corrdet.files import atomic_write
from corrdet.names import kind_of

from .weight_names import weights_in
from .weights import CheckpointError, read_weights

# Name of a stack of layers, number of the layer, what it has.
LAYER = re.compile(r"((?:.+\.)?(?:layers|stages))\.(\d+)\.(.+)")


def conversion_command(
    description: str,
    convert: Callable[[Mapping], dict[str, Tensor]],
    advice: str = "",
    **entries,
) -> None:
    """Read ``IN OUT`` from the command line and convert one file to the other.

    What cannot be converted ends the program with one line, and nothing is written.

    Args:
        description: of the command, for ``--help``.
        convert: from parameters by name, to the same
            under corrdet's names; raises :class:`CheckpointError` where they are of another model.
        advice: what else the user has to do, printed at the end.
        entries: what else the written checkpoint has.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="the original's .pth or .safetensors")
    parser.add_argument("output", metavar="OUT", help="the .pth to write")
    args = parser.parse_args()
    if os.path.realpath(args.output) == os.path.realpath(args.input):
        parser.error(f"OUT is IN, {args.input}: expected another file, as IN would be lost")
    with errors_in_one_line(f"{args.input} was not converted: "):
        weights, _ = weights_in(read_weights(args.input), args.input)
        _check_values(weights)
        converted = convert(weights)
        _check_layers(converted)
    with atomic_write(args.output, "wb") as file:
        torch.save({"model": converted, **entries}, file)
    print(f"{len(converted)} parameters written to {args.output}")
    if advice:
        print(advice)


def _check_values(weights) -> None:
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name!r} is {kind_of(value)}, expected a tensor")
        if not value.isfinite().all():
            raise CheckpointError(f"{name!r} has values that are not finite")


def _check_layers(converted: Mapping[str, Tensor]) -> None:
    """What one layer of a stack has, all of them have."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for match in filter(None, map(LAYER.fullmatch, converted)):
        stack, number, parameter = match.groups()
        stacks.setdefault(stack, {}).setdefault(int(number), set()).add(parameter)
    for stack, layers in stacks.items():
        for number in range(max(layers) + 1):
            missing = set.union(*layers.values()) - layers.get(number, set())
            if missing:
                raise CheckpointError(
                    f"it has no {stack}.{number}.{min(missing)}: it is incomplete"
                )
