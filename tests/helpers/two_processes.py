"""Two processes on the CPU, by gloo."""

import torch
import torch.distributed

from corrdet.engine.launching import Place, join_group


def start_group(rank: int, folder: str) -> None:
    """Make this process one of two.

    Args:
        rank: of this process, 0 or 1.
        folder: an empty one, the same for both.
    """
    torch.set_num_threads(1)
    join_group(Place(rank, 2, rank, "machine", f"file://{folder}/rendezvous"), "cpu")
