"""Where processes come from: torchrun's environment, Detectron2's arguments."""

import pickle
import re
import socket
import subprocess
import sys

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper

import train_net
from corrdet.engine import ConfigError, import_modules, launching, run_command
from corrdet.engine.launching import Place, check_device, place_in_environment

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
}


def arguments(*words):
    return train_net.argument_parser().parse_args([*words])


def test_a_place_of_torchrun():
    place = place_in_environment(TORCHRUN, arguments())
    assert (place.rank, place.world_size, place.local_rank) == (3, 4, 1)
    assert place.machine == f"{socket.gethostname()}/1"
    # The same number of processes may be asked for by both.
    assert place == place_in_environment(TORCHRUN, arguments("--num-gpus", "4"))


def test_no_torchrun():
    assert place_in_environment({"HOME": "/"}, arguments("--num-gpus", "2")) is None


@pytest.mark.parametrize(
    "changes, words, message",
    [
        ({"RANK": None}, (), "WORLD_SIZE is set, but not RANK: torchrun sets"),
        ({"WORLD_SIZE": None, "LOCAL_RANK": ""}, (), "RANK is set, but not WORLD_SIZE and LOCAL_"),
        ({"RANK": "4"}, (), "expected LOCAL_RANK <= RANK < WORLD_SIZE, got RANK '4', WORLD_SIZE"),
        ({"RANK": "three"}, (), "got RANK 'three'"),
        ({"MASTER_PORT": None}, (), "WORLD_SIZE is 4, but MASTER_PORT is not set"),
        ({}, ("--num-gpus", "2"), r"4 process\(es\) .*--num-gpus 2 --num-machines 1 ask for 2: "),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, ("--num-gpus", "2"), "ask for 2"),
        ({}, ("--machine-rank", "1"), "--machine-rank and --dist-url are not read under torchrun"),
        ({}, ("--dist-url", "tcp://a:1"), "not read under torchrun"),
    ],
)
def test_what_contradicts_torchrun(changes, words, message):
    environment = {name: v for name, v in {**TORCHRUN, **changes}.items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        place_in_environment(environment, arguments(*words))


@pytest.mark.parametrize(
    "words, message",
    [
        (("--num-gpus", "-1"), "--num-gpus is -1, expected 0 or more"),
        (("--num-machines", "0"), "--num-machines is 0, expected 1 or more"),
    ],
)
def test_counts_that_there_cannot_be(words, message):
    with pytest.raises(SystemExit, match=message):
        run_command(lambda args: pytest.fail("started"), arguments(*words))


def test_each_process_has_its_gpu(monkeypatch):
    place = Place(3, 4, 1, "m", "env://")
    check_device("cpu", place)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda", place)
    with pytest.raises(ConfigError, match="one GPU for 4 processes: expected cuda"):
        check_device("cuda:1", place)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK is 1, but torch sees 1 CUDA GPU\(s\)"):
        check_device("cuda", place)


def test_local_groups(monkeypatch):
    groups = []
    monkeypatch.setattr(launching.dist, "new_group", lambda ranks: groups.append(ranks) or ranks)
    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", None)
    launching._make_local_groups(["a", "a", "b"], "b")
    assert groups == [[0, 1], [2]] and comm._LOCAL_PROCESS_GROUP == [2]
    # Later versions of Detectron2 than 0.6 do it themselves for machines that are alike.
    sizes = []
    monkeypatch.setattr(comm, "create_local_process_group", sizes.append, raising=False)
    launching._make_local_groups(["a", "a", "b", "b"], "b")
    launching._make_local_groups(["a", "b", "a", "b"], "b")
    assert sizes == [2] and groups[2:] == [[0, 2], [1, 3]]


def test_what_is_imported_reaches_workers_that_are_not_forked(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("SIZE = 3\ndef mapper(record):\n    return SIZE * record\n")
    import_modules([str(path)])
    (name,) = [name for name in sys.modules if name.endswith("mine_py")]
    sent = pickle.dumps(PicklableWrapper(sys.modules[name].mapper))
    words = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(14))"
    finished = subprocess.run([sys.executable, "-c", words], input=sent, capture_output=True)
    assert finished.stdout == b"42\n", finished.stderr


def free_port() -> int:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        return open_socket.getsockname()[1]


@pytest.mark.slow
def test_torchrun_on_two_nodes(tiny_command, tmp_path):
    overrides = ("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2)
    command = tiny_command(tmp_path / "out", *overrides)[1:]
    port = free_port()
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"),
                *("--master-addr", "127.0.0.1", "--master-port", str(port), *command),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert "World size: 2" in printed[0]
    assert re.search("2 processes, backend gloo: rank 0 on .* cpu; rank 1 on .* cpu", printed[0])
    assert "World size" not in printed[1]  # the others log into files of their own
    assert {"log.txt", "log.txt.rank1", "model_final.pth"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
