"""The processes of a training: those that torchrun or a cluster started, or that we start here.

Each becomes part of a process group, by NCCL with GPUs and by gloo without, and knows the other
processes of its machine, as Detectron2 asks.
"""

import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from corrdet.errors import ConfigError, CorrdetError

from .configuration import check_gpus
from .faults import EXPLAINED, GRACE

# What torchrun sets; clusters' own scripts set the first three or four.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class ProcessLostError(CorrdetError, RuntimeError):
    """A process of the training was killed."""


@dataclass(frozen=True)
class Place:
    """Where a process is among those of a training.

    Attributes:
        rank, world_size: among all processes.
        local_rank: among those of its machine: the number of its GPU.
        machine: a name that the processes of a machine have in common.
        url: by which the processes find each other.
    """

    rank: int
    world_size: int
    local_rank: int
    machine: str
    url: str


# ---- Processes that something else has started.


def place_in_environment(environment: Mapping[str, str], args: Any) -> Place | None:
    """The place of this process by ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``.

    Args:
        environment: variables.
        args: with Detectron2's ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url``.

    Returns:
        None where the variables are not set.

    Raises:
        ConfigError: only some of them are, they contradict each other, or the arguments do.
    """
    given = [name for name in _RANKS if environment.get(name)]
    if not given:
        return None
    if missing := [name for name in _RANKS if name not in given]:
        raise ConfigError(
            f"the environment variable {given[0]} is set, but not {' and '.join(missing)}: "
            f"torchrun sets {', '.join(_RANKS)}; unset {' and '.join(given)} to train without it"
        )
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in _RANKS)
    except ValueError:
        rank = world_size = local_rank = -1
    if not 0 <= local_rank <= rank < world_size:
        values = ", ".join(f"{name} {environment[name]!r}" for name in _RANKS)
        raise ConfigError(
            f"environment variables: expected LOCAL_RANK <= RANK < WORLD_SIZE, got {values}"
        )
    _check_arguments(args, world_size)
    if world_size > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise ConfigError(
                    f"the environment variable WORLD_SIZE is {world_size}, but {name} is not set: "
                    "where the processes find each other"
                )
    machine = f"{socket.gethostname()}/{environment.get('GROUP_RANK', '')}"
    return Place(rank, world_size, local_rank, machine, "env://")


# As many start on any machine, as to try out what several processes do.
_FEW_PROCESSES = 8


def check_counts(args: Any) -> None:
    """
    Raises:
        ConfigError: numbers of processes or machines that there cannot be.
    """
    for name, least in (("num_gpus", 0), ("num_machines", 1)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {getattr(args, name)}, expected {least} or more")


def _check_arguments(args: Any, world_size: int) -> None:
    asked = args.num_gpus * args.num_machines
    if asked not in (1, world_size):
        raise ConfigError(
            f"the environment says that there are {world_size} process(es) (WORLD_SIZE, by "
            f"torchrun), --num-gpus {args.num_gpus} --num-machines {args.num_machines} ask for "
            f"{asked}: leave the arguments out"
        )
    if args.machine_rank or args.dist_url != default_argument_parser().get_default("dist_url"):
        raise ConfigError(
            "--machine-rank and --dist-url are not read under torchrun, which has --node-rank and "
            "--rdzv-endpoint: leave them out"
        )


def is_restarted() -> bool:
    """Whether torchrun has started the processes again after one of this machine was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


def check_device(device: str, place: Place) -> None:
    """
    Raises:
        ConfigError: the process has no GPU of its own, or all would have the same.
    """
    if not device.startswith("cuda"):
        return
    if ":" in device:
        raise ConfigError(
            f"MODEL.DEVICE is {device!r}, one GPU for {place.world_size} processes: "
            "expected cuda, of which each process takes its own, or cpu"
        )
    if place.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {place.local_rank}, but torch sees {torch.cuda.device_count()} CUDA "
            "GPU(s): expected a GPU for each process, or MODEL.DEVICE cpu"
        )


def join_group(place: Place, device: str) -> None:
    """Make this process one of the process group.

    Args:
        place: of this process; of all processes in the group at the same time.
        device: ``MODEL.DEVICE``.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(place.local_rank)
    arguments: dict[str, Any] = {"rank": place.rank, "world_size": place.world_size}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and place.url == "env://":
        arguments["store"] = _store_of_this_start(place)
    else:
        arguments["init_method"] = place.url
    dist.init_process_group("nccl" if on_gpu else "gloo", **arguments)
    machines: list[str] = [""] * place.world_size
    dist.all_gather_object(machines, place.machine)
    if not on_gpu and not os.environ.get("OMP_NUM_THREADS"):
        # Threads of several processes that wait for a core spin, and take ten times as long.
        share = (os.cpu_count() or 1) // machines.count(place.machine)
        torch.set_num_threads(max(share, 1))
    _make_local_groups(machines, place.machine)


def _store_of_this_start(place: Place) -> dist.Store:
    """Part of torchrun's store that nothing was written to when the processes started before.

    torchrun keeps the store when it starts the processes again, with the addresses of those that
    are gone; and nothing that all processes know says how often that was. So the first process
    names this start, and the others know the name to be fresh as their own, fresh word comes back.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore("corrdet", dist.TCPStore(address, port, place.world_size, False))
    others = range(1, place.world_size)
    own = uuid.uuid4().hex
    if place.rank == 0:
        store.set("start", own)
        answers = [f"{own}/{rank}" for rank in others]
        store.wait(answers)
        store.set(f"{own}/answers", ",".join(store.get(key).decode() for key in answers))
        return dist.PrefixStore(own, store)
    end = time.monotonic() + 1800  # as long as a process group waits
    asked = None
    while time.monotonic() < end:
        if store.check(["start"]) and (start := store.get("start").decode()) != asked:
            store.set(f"{start}/{place.rank}", own)
            asked = start
        if asked is not None and store.check([f"{asked}/answers"]):
            if own in store.get(f"{asked}/answers").decode().split(","):
                return dist.PrefixStore(asked, store)
        time.sleep(0.05)
    raise ProcessLostError("the first process has not come within half an hour")


def _make_local_groups(machines: list[str], own: str) -> None:
    """Tell Detectron2 which processes are on one machine.

    Args:
        machines: name of the machine of each rank.
        own: that of this process.
    """
    names = list(dict.fromkeys(machines))
    size = len(machines) // len(names)
    are_alike = machines == [name for name in names for _ in range(size)]
    if are_alike and hasattr(comm, "create_local_process_group"):  # not in Detectron2 0.6
        comm.create_local_process_group(size)
        return
    for name in names:
        group = dist.new_group([rank for rank, other in enumerate(machines) if other == name])
        if name == own:
            comm._LOCAL_PROCESS_GROUP = group


def log_processes(device: str) -> None:
    """Log how many processes train, by which backend, and on which devices; all call it.

    Args:
        device: ``MODEL.DEVICE``.
    """
    name = device
    if device.startswith("cuda"):
        name = f"cuda:{torch.cuda.current_device()} ({torch.cuda.get_device_name()})"
    logger = logging.getLogger(__name__)
    if comm.get_world_size() == 1:
        logger.info("one process, on %s", name)
        return
    devices = comm.all_gather(f"{socket.gethostname()} {name}")
    logger.info(
        "%d processes, backend %s: %s",
        len(devices),
        dist.get_backend(),
        "; ".join(f"rank {rank} on {where}" for rank, where in enumerate(devices)),
    )


# ---- Processes that we start.


def start_processes(function: Callable, args: Any, device: str) -> None:
    """Call ``function(place, args)`` in the processes that the arguments ask for; wait for them.

    Signals that ask for an end are handed on. When a process fails, the others may end by
    themselves for a while.

    Args:
        function: of a module.
        args: with Detectron2's ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url``.
        device: ``MODEL.DEVICE``.

    Raises:
        ConfigError: there are not as many GPUs, or the machines cannot find each other.
        ProcessLostError: a process was killed.
        SystemExit: a process has failed, and said why.
    """
    count, machines, own = args.num_gpus, args.num_machines, args.machine_rank
    if device.startswith("cuda"):
        check_gpus(count)
    elif count > (most := max(_FEW_PROCESSES, os.cpu_count() or 1)):
        raise ConfigError(
            f"--num-gpus is {count}, and MODEL.DEVICE {device!r}: expected at most {most} "
            f"processes on this machine's {os.cpu_count()} CPU core(s), as each takes memory"
        )
    if not 0 <= own < machines:
        raise ConfigError(
            f"--machine-rank is {own}, expected a number below --num-machines {machines}"
        )
    url = args.dist_url
    if url == "auto":
        if machines > 1:
            raise ConfigError("--dist-url auto is for one machine: expected tcp://ADDRESS:PORT")
        url = f"tcp://127.0.0.1:{_free_port()}"
    context = torch.multiprocessing.get_context("spawn")
    processes = []
    for local_rank in range(count):
        place = Place(
            rank=own * count + local_rank,
            world_size=count * machines,
            local_rank=local_rank,
            machine=f"machine {own}",
            url=url,
        )
        check_device(device, place)
        # Not daemonic: those have no children, which loaders need.
        process = context.Process(target=function, args=(place, args), name=f"rank{place.rank}")
        process.start()
        processes.append(process)
    with _handing_signals_on(processes):
        _wait(processes)


def _free_port() -> int:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        return open_socket.getsockname()[1]


class _handing_signals_on:
    """In the block, what asks this process to end asks its processes."""

    def __init__(self, processes):
        self._processes = processes
        self._before: dict = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._hand_on)

    def _hand_on(self, number, frame):
        # Of Ctrl-C the processes learn from the terminal; twice would end them at once.
        to_send = signal.SIGTERM if number == signal.SIGINT else number
        for process in self._processes:
            if process.exitcode is None:
                os.kill(process.pid, to_send)

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _wait(processes: list) -> None:
    running = {process.sentinel: process for process in processes}
    first_failed = None
    end = None
    while running:
        timeout = None if end is None else max(end - time.monotonic(), 0)
        ended = wait(list(running), timeout)
        if not ended:
            _kill(running.values())
            end = time.monotonic() + GRACE
        for sentinel in ended:
            process = running.pop(sentinel)
            process.join()
            if process.exitcode and first_failed is None:
                first_failed = process
                # Twice: each looks for the message of the other, then says it.
                end = time.monotonic() + 2 * GRACE
    if first_failed is None:
        return
    status = first_failed.exitcode
    if status < 0:
        raise ProcessLostError(
            f"{first_failed.name.replace('rank', 'rank ')} was killed by "
            f"{signal.Signals(-status).name}"
            + (": the machine was out of memory, perhaps" if -status == signal.SIGKILL else "")
        )
    sys.exit(1 if status == EXPLAINED else status)


def _kill(processes) -> None:
    # Not SIGTERM: a process that waits in a collective operation does not react.
    for process in processes:
        process.kill()
