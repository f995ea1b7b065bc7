import os
import pickle
import signal
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from corrdet.engine import SafeCheckpointer
from corrdet.engine.checkpoint import load_array_pickle


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def model(value=0.0):
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    return layer


class TestMalicious:
    @pytest.mark.parametrize("suffix", [".pth", ".pyth", ".pkl"])
    @pytest.mark.parametrize("place", ["model", "elsewhere"])
    def test_code_does_not_run(self, tmp_path, suffix, place):
        trap, path = tmp_path / "trap", tmp_path / f"weights{suffix}"
        data = {"model": {"weight": torch.zeros(2, 2).numpy()}, "__author__": "somebody"}
        if place == "model":
            data["model"]["bias"] = Malicious(trap)
        else:
            data["optimizer"] = Malicious(trap)
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps(data))
        else:
            torch.save(data, path)
        with pytest.raises(ValueError, match="could run code"):
            SafeCheckpointer(model()).load(str(path))
        assert not trap.exists()

    def test_the_trap_works(self, tmp_path):
        pickle.loads(pickle.dumps(Malicious(tmp_path / "trap")))
        assert (tmp_path / "trap").exists()

    def test_codecs_other_than_latin1_are_refused(self, tmp_path):
        class Codec:
            def __reduce__(self):
                import _codecs

                return _codecs.encode, ("abc", "rot13")

        path = tmp_path / "weights.pkl"
        path.write_bytes(pickle.dumps({"a": Codec()}, protocol=2))
        with pytest.raises(ValueError, match="encoding 'rot13', expected latin1"):
            load_array_pickle(str(path))


class TestModelZooFiles:
    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_detectron2_pickle(self, tmp_path, protocol):
        path = tmp_path / "zoo.pkl"
        weights = OrderedDict(weight=np.full((2, 2), 3, np.float32), bias=np.zeros(2, np.float32))
        data = {"model": weights, "__author__": "Detectron2", "iteration": np.int64(7)}
        path.write_bytes(pickle.dumps(data, protocol=protocol))
        layer = model()
        SafeCheckpointer(layer).load(str(path))
        assert layer.weight.tolist() == [[3, 3], [3, 3]]

    def test_numpy_1_names(self, tmp_path):
        path = tmp_path / "old.pkl"
        content = pickle.dumps({"blobs": {"w": np.arange(3.0)}}, protocol=2)
        path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert load_array_pickle(str(path))["blobs"]["w"].tolist() == [0, 1, 2]

    def test_caffe2_pickle_is_matched_by_name(self, tmp_path):
        path = tmp_path / "caffe2.pkl"
        blobs = {"weight": np.full((2, 2), 3, np.float32), "weight_momentum": np.zeros((2, 2))}
        path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
        loaded = SafeCheckpointer(model())._load_file(str(path))
        assert loaded["matching_heuristics"] and set(loaded["model"]) == {"weight"}

    def test_plain_state_dict(self, tmp_path):
        torch.save(model(5.0).state_dict(), tmp_path / "plain.pth")
        layer = model()
        SafeCheckpointer(layer).load(str(tmp_path / "plain.pth"))
        assert layer.weight.tolist() == [[5, 5], [5, 5]]

    def test_matching_heuristics_by_query(self, tmp_path):
        torch.save({"backbone.weight": torch.full((2, 2), 2.0)}, tmp_path / "other.pth")
        layer = nn.ModuleDict({"net": nn.ModuleDict({"backbone": model()})})
        SafeCheckpointer(layer).load(f"{tmp_path}/other.pth?matching_heuristics=True")
        assert layer["net"]["backbone"].weight.tolist() == [[2, 2], [2, 2]]


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no weights at '.*gone.pth'"):
            SafeCheckpointer(model()).load(str(tmp_path / "gone.pth"))

    @pytest.mark.parametrize("suffix", [".pth", ".pkl"])
    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q"])
    def test_damaged(self, tmp_path, suffix, content):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="was not loaded"):
            SafeCheckpointer(model()).load(str(path))

    def test_truncated(self, tmp_path):
        path = tmp_path / "weights.pth"
        torch.save(model().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match="was not loaded: it is damaged"):
            SafeCheckpointer(model()).load(str(path))

    @pytest.mark.parametrize("suffix", [".pth", ".pkl"])
    def test_no_dictionary(self, tmp_path, suffix):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(pickle.dumps([1])) if suffix == ".pkl" else torch.save([1], path)
        with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
            SafeCheckpointer(model()).load(str(path))


KILLED_WHILE_SAVING = """
import sys, torch
from corrdet.engine import SafeCheckpointer
layer = torch.nn.Linear(2000, 2000)
checkpointer = SafeCheckpointer(layer, sys.argv[1])
print("ready", flush=True)
while True:
    checkpointer.save("model")
"""


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 30
    while not (tmp_path / "last_checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    layer = nn.Linear(2000, 2000)
    checkpointer = SafeCheckpointer(layer, str(tmp_path))
    assert checkpointer.has_checkpoint()
    checkpointer.resume_or_load("", resume=True)


def test_a_failure_while_saving_leaves_the_old_checkpoint(tmp_path):
    checkpointer = SafeCheckpointer(model(1.0), str(tmp_path))
    checkpointer.save("model")
    with pytest.raises(Exception, match="pickle"):
        checkpointer.save("model", bad=lambda: None)
    layer = model()
    SafeCheckpointer(layer, str(tmp_path)).resume_or_load("", resume=True)
    assert layer.weight.tolist() == [[1, 1], [1, 1]]
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_the_message_does_not_advise_to_load_it_unsafely(tmp_path):
    path = tmp_path / "readme.pth"
    path.write_text("# no weights")
    with pytest.raises(ValueError, match="damaged or no file of weights") as caught:
        SafeCheckpointer(model()).load(str(path))
    assert "weights_only" not in str(caught.value)
