"""train_net.py, with two processes on the CPU where Detectron2's ``launch`` wants two GPUs.

As a command, the arguments are those of train_net.py.
"""

import tempfile

import torch
import torch.multiprocessing
from detectron2.utils import comm

from corrdet.engine import command


def start_group(rank: int, folder: str) -> None:
    """What ``launch`` sets up in a process, with gloo in place of NCCL.

    Args:
        rank: of this process, 0 or 1.
        folder: an empty one, the same for both.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    comm._LOCAL_PROCESS_GROUP = torch.distributed.new_group([0, 1])  # its name in 0.6 is private


def _worker(rank, folder, main, arguments):
    start_group(rank, folder)
    main(*arguments)


def _launch(main, num_gpus, *, args, **_):
    assert num_gpus == 2
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (folder, main, args), nprocs=2)


if __name__ == "__main__":
    import train_net

    command.launch, command.check_gpus = _launch, lambda num_gpus: None
    arguments = train_net.argument_parser().parse_args()
    arguments.num_gpus = 2
    command.run_command(train_net.main, arguments)
