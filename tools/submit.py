#!/usr/bin/env python
"""Train on a Slurm cluster: ``python tools/submit.py [options] -- <arguments of train_net.py>``.

When the cluster takes the machines away, or the time is over, the training writes a checkpoint, and
the job puts itself into the queue again and goes on from there. Needs the extra ``slurm``
(submitit).
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import submitit

ROOT = Path(__file__).resolve().parents[1]
STOPPED = 75  # corrdet.engine.stopping: it can go on
# How long a process that has ended waits for the first one to put the job into the queue: seconds.
REQUEUE = 30


class Training:
    """What one task of the job does; pickled, also when the job is put into the queue again."""

    def __init__(self, arguments: list[str], resumes: bool = False):
        """
        Args:
            arguments: of train_net.py.
            resumes: whether to go on with the last checkpoint.
        """
        self.arguments = arguments
        self.resumes = resumes
        self._patience = REQUEUE
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """
        Raises:
            RuntimeError: the training has failed.
        """
        job = submitit.JobEnvironment()
        environment = {
            **os.environ,
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "MASTER_ADDR": job.hostnames[0],
            "MASTER_PORT": str(20000 + int(job.raw_job_id) % 20000),
        }
        words = [sys.executable, str(ROOT / "train_net.py"), *["--resume"] * self.resumes]
        # In a session of its own, so that signals to the job come to this process only.
        self._process = subprocess.Popen(
            [*words, *self.arguments], env=environment, start_new_session=True
        )
        while (status := self._process.poll()) is None:
            time.sleep(0.5)
        if status == STOPPED:
            time.sleep(self._patience)  # ending now could end the job
        elif status != 0:
            raise RuntimeError(f"the training ended with the exit status {status}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit, on the first process, at a signal of the cluster."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            # Without taking its status, which __call__ may be about to.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self.arguments, resumes=True))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument(
        "--processes", type=int, default=1, help="on each node; each has a GPU, unless --cpu"
    )
    parser.add_argument("--cpu", action="store_true", help="ask for no GPUs")
    parser.add_argument("--cpus-per-process", type=int, default=4)
    parser.add_argument("--minutes", type=int, default=24 * 60, help="until the job is requeued")
    parser.add_argument("--requeues", type=int, default=10, help="at most, for want of time")
    parser.add_argument("--notice", type=int, default=120, help="of the end, in seconds")
    parser.add_argument("--partition")
    parser.add_argument("--name", default="corrdet")
    parser.add_argument("--folder", default="output/slurm", help="of the job's logs")
    parser.add_argument(
        "--cluster", choices=["slurm", "local"], help="local: on this machine; default: Slurm's"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of train_net.py, behind --")
    return parser


def submit(args: argparse.Namespace) -> submitit.Job:
    """Put the job into the queue."""
    executor = submitit.AutoExecutor(
        args.folder,
        cluster=args.cluster or "slurm",
        slurm_max_num_timeout=args.requeues,
    )
    executor.update_parameters(
        name=args.name,
        nodes=args.nodes,
        tasks_per_node=args.processes,
        gpus_per_node=0 if args.cpu else args.processes,
        cpus_per_task=args.cpus_per_process,
        timeout_min=args.minutes,
        slurm_signal_delay_s=args.notice,
        **({"slurm_partition": args.partition} if args.partition else {}),
    )
    arguments = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    return executor.submit(Training(arguments))


if __name__ == "__main__":
    job = submit(argument_parser().parse_args())
    print(f"job {job.job_id}, its logs: {job.paths.folder}")
