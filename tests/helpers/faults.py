"""For ``train_net.py --import``: what goes wrong is named in the environment variable FAULT.

On rank 1, at iteration 2, unless another one is said; without several processes, on rank 0.
"""

import os
import signal
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from corrdet.data import CorrdetDatasetMapper, ImageReadError
from corrdet.engine import CorrdetTrainer
from corrdet.engine.evaluator import CorrelationEvaluator
from corrdet.losses import COUPLINGS

FAULT = os.environ.get("FAULT", "")
FIRST_TIME = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def is_here() -> bool:
    return comm.get_rank() == comm.get_world_size() - 1


@COUPLINGS.register("fault")
def fault(matched):
    zero = (matched.scores - matched.scores.detach()).sum()
    if is_here() and get_event_storage().iter == 2:
        if FAULT == "loss":
            return zero * torch.nan
        if FAULT == "gradient":
            return zero.abs().sqrt()
    return zero


run_step = CorrdetTrainer.run_step


def run_step_with_faults(self):
    if self.iter == 2 and is_here():
        if FAULT == "bug":
            raise KeyError("a bug")
        if FAULT == "killed" and FIRST_TIME:
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULT in ("SIGTERM", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, FAULT))
        if FAULT == "parent":  # to the process that has started this one
            os.kill(os.getppid(), signal.SIGTERM)
        if FAULT == "waits":  # for the test, which looks at the file
            Path(os.environ["WAITS"]).write_text(str(os.getpid()))
            signal.pause()
    run_step(self)


CorrdetTrainer.run_step = run_step_with_faults

process = CorrelationEvaluator.process


def process_with_fault(self, inputs, outputs):
    if FAULT == "evaluation" and is_here():
        raise ValueError("no evaluation here")
    process(self, inputs, outputs)


CorrelationEvaluator.process = process_with_fault

read = CorrdetDatasetMapper.__call__


def read_with_fault(self, record):
    if FAULT == "loader" and is_here():
        raise ImageReadError("an image cannot be read")
    return read(self, record)


CorrdetDatasetMapper.__call__ = read_with_fault

if FAULT == "unequal":  # one of the processes has nothing to test
    from detectron2.data import samplers

    sampler = samplers.InferenceSampler

    def all_on_the_first(total, world_size, rank):
        return range(total if rank == 0 else 0)

    sampler._get_local_indices = staticmethod(all_on_the_first)

if FAULT.startswith("killed at "):  # while this file is written, under its temporary name
    fsync = os.fsync

    def kill_at(descriptor):
        if FAULT.removeprefix("killed at ") in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = kill_at
