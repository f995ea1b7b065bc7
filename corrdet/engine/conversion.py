"""The command that tools converting others' checkpoints have in common."""

import argparse
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from corrdet.data.files import atomic_write

from .checkpoint import load_tensors


def conversion_command(
    description: str, convert: Callable[[Mapping], dict[str, Tensor]], **entries
) -> None:
    """Read ``IN OUT`` from the command line and convert one file to the other.

    What cannot be converted ends the program with one line, and nothing is written.

    Args:
        description: of the command, for ``--help``.
        convert: from the content of a checkpoint to the parameters under corrdet's names; raises
            ValueError where it is of another model.
        entries: what else the written checkpoint has.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="the original's .pth")
    parser.add_argument("output", metavar="OUT", help="the .pth to write")
    args = parser.parse_args()
    try:
        converted = convert(load_tensors(args.input))
    except (OSError, ValueError) as error:
        sys.exit(f"{args.input} was not converted: {error}")
    with atomic_write(args.output, "wb") as file:
        torch.save({"model": converted, **entries}, file)
    print(f"{len(converted)} parameters written to {args.output}")
