import math
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from corrdet.engine import CheckpointError, SafeCheckpointer
from corrdet.engine.checkpoint import BrokenWeightsError, broken_weights
from corrdet.engine.weights import load_array_pickle


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


def nested_model():
    return nn.ModuleDict({"net": nn.ModuleDict({"backbone": model()})})


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
        layer = nested_model()
        with pytest.raises(CheckpointError, match=r"other.pth\?matching_heuristics=True matches"):
            SafeCheckpointer(layer).load(f"{tmp_path}/other.pth")
        assert layer["net"]["backbone"].weight.tolist() == [[0, 0], [0, 0]]
        SafeCheckpointer(layer).load(f"{tmp_path}/other.pth?matching_heuristics=True")
        assert layer["net"]["backbone"].weight.tolist() == [[2, 2], [2, 2]]

    def test_pycls_is_matched_by_name(self, tmp_path):
        path = tmp_path / "pycls.pyth"
        state = {
            "backbone.weight": torch.full((2, 2), 2.0),
            "bn.num_batches_tracked": torch.ones(()),
        }
        torch.save({"model_state": state, "epoch": 7}, path)
        layer = nested_model()
        checkpointer = SafeCheckpointer(layer)
        assert set(checkpointer._load_file(str(path))["model"]) == {"backbone.weight"}
        checkpointer.load(str(path))
        assert layer["net"]["backbone"].weight.tolist() == [[2, 2], [2, 2]]

    def test_strings_of_python_2(self, tmp_path):
        path = tmp_path / "old.pkl"
        path.write_bytes(b"\x80\x02}U\x01wU\x02\xff\x00s.")
        assert load_array_pickle(str(path)) == {"w": "\xff\x00"}


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no weights at '.*gone.pth'"):
            SafeCheckpointer(model()).load(str(tmp_path / "gone.pth"))

    def test_unknown_option(self, tmp_path):
        torch.save(model().state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="unknown option 'heuristics' of weights"):
            SafeCheckpointer(model()).load(f"{tmp_path}/weights.pth?heuristics")

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
import os, resource, signal, sys, torch
from corrdet.engine import CheckpointError, SafeCheckpointer
from corrdet.engine.checkpoint import BrokenWeightsError, broken_weights
checkpointer = SafeCheckpointer(torch.nn.Linear(200, 200), sys.argv[1])
checkpointer.save("first")
for name in ("first", "second"):
    if os.fork() == 0:
        # The kernel kills who writes more into one file: the 160 kB never end.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        checkpointer.save(name)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGXFSZ
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], check=True)
    assert len([*tmp_path.glob(".*.tmp")]) == 2
    checkpointer = SafeCheckpointer(nn.Linear(200, 200), str(tmp_path))
    assert not [*tmp_path.glob(".*.tmp")]
    assert checkpointer.has_checkpoint()
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.get_checkpoint_file().endswith("first.pth")


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


def test_nothing_is_saved_without_a_folder_or_by_other_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SafeCheckpointer(model()).save("model")
    SafeCheckpointer(model(), str(tmp_path), save_to_disk=False).save("model")
    assert not os.listdir(tmp_path)


class TestTheCheckpointBefore:
    """Of three checkpoints, each with its number as weights."""

    @pytest.fixture
    def folder(self, tmp_path):
        for number, name in enumerate(["model_0000004", "model_0000009", "model_final"], 1):
            SafeCheckpointer(model(number), str(tmp_path)).save(name)
            os.utime(tmp_path / f"{name}.pth", (number, number))
        SafeCheckpointer(model(7), str(tmp_path)).save("model_best", tag=False)
        return tmp_path

    def resumed(self, folder) -> float:
        layer = model()
        checkpointer = SafeCheckpointer(layer, str(folder))
        assert checkpointer.has_checkpoint()
        checkpointer.resume_or_load("", resume=True)
        return layer.weight[0, 0].item()

    def damage(self, path):
        content = path.read_bytes()
        value = torch.load(path, weights_only=True)["model"]["weight"][0, 0].numpy().tobytes()
        assert content.count(4 * value) == 1
        path.write_bytes(content.replace(4 * value, 3 * value + b"\0\0\0\x70"))

    def test_of_a_damaged_one(self, folder, caplog):
        assert self.resumed(folder) == 3
        assert "checkpoint" not in caplog.text
        self.damage(folder / "model_final.pth")
        assert self.resumed(folder) == 2
        assert "model_final.pth was not loaded: it is damaged" in caplog.text
        assert "The checkpoint before it is used: " in caplog.text
        assert "model_0000009.pth" in caplog.text
        (folder / "model_0000009.pth").write_bytes(b"")
        assert self.resumed(folder) == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_of_one_whose_weights_are_not_finite(self, folder, value, caplog):
        content = torch.load(folder / "model_final.pth", weights_only=True)
        content["model"]["weight"][0, 0] = value
        torch.save(content, folder / "model_final.pth")
        assert self.resumed(folder) == 2
        assert "model_final.pth: 1 of the weights in it are not finite, weight" in caplog.text
        assert "The checkpoint before it is used: " in caplog.text
        for name in ("model_0000004.pth", "model_0000009.pth"):
            (folder / name).unlink()
        with pytest.raises(CheckpointError, match="final.pth: 1 of the weights in it are not fin"):
            self.resumed(folder)

    def test_of_a_missing_one(self, folder, caplog):
        (folder / "model_final.pth").unlink()
        assert self.resumed(folder) == 2
        assert "model_final.pth, the last checkpoint, is missing: " in caplog.text

    @pytest.mark.parametrize("content", [None, "", "model_final.pth\n", "gone.pth", "../.."])
    def test_what_says_which_is_the_last_is_lost(self, folder, content, caplog):
        (folder / "last_checkpoint").unlink()
        if content is not None:
            (folder / "last_checkpoint").write_text(content)
        assert self.resumed(folder) == 3
        assert ("is missing" in caplog.text) == (content != "model_final.pth\n")

    def test_all_are_damaged(self, folder):
        for path in folder.glob("model_*.pth"):
            if path.name != "model_best.pth":  # it may be of any time
                self.damage(path)
        with pytest.raises(CheckpointError, match="model_final.pth was not loaded"):
            self.resumed(folder)

    def test_none_is_left(self, tmp_path):
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
        checkpointer = SafeCheckpointer(model(), str(tmp_path))
        assert not checkpointer.has_checkpoint()
        with pytest.raises(FileNotFoundError, match="model_final.pth, the last .* has no other"):
            checkpointer.resume_or_load("", resume=True)

    def test_there_is_none(self, tmp_path):
        assert not SafeCheckpointer(model(), str(tmp_path)).has_checkpoint()
        assert not SafeCheckpointer(model(), str(tmp_path / "gone")).has_checkpoint()
        assert not SafeCheckpointer(model()).has_checkpoint()

    def test_weights_to_start_from_have_none_before(self, folder):
        self.damage(folder / "model_final.pth")
        checkpointer = SafeCheckpointer(model(), str(folder))
        with pytest.raises(CheckpointError, match="model_final.pth was not loaded"):
            checkpointer.resume_or_load(str(folder / "model_final.pth"), resume=False)


class TestWeightsThatAreNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_they_are_not_saved(self, tmp_path, value):
        layer = model(1.0)
        checkpointer = SafeCheckpointer(layer, str(tmp_path))
        checkpointer.save("model_0000001")
        layer.weight.data[1, 1] = value
        for tag in (True, False):
            with pytest.raises(
                BrokenWeightsError, match=r"model_2.pth was not saved: .*\(weight\)"
            ):
                checkpointer.save("model_2", tag=tag)
        assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
        assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")

    def test_buffers(self):
        layer = nn.BatchNorm1d(2)
        layer.register_buffer("mask", torch.full((3,), float("-inf")))  # as attention has them
        assert not broken_weights(layer)
        layer.running_var[0] = float("nan")
        assert broken_weights(layer) == ["running_var"]
        assert not broken_weights(nn.ReLU())


def test_what_killed_processes_left_is_removed_at_the_next_start(tmp_path):
    leftover = tmp_path / ".model_final.pth.ab_cd123.tmp"
    leftover.write_bytes(b"half")
    SafeCheckpointer(model(), str(tmp_path), save_to_disk=False)  # another process than the main
    assert leftover.exists()
    SafeCheckpointer(model(), str(tmp_path))
    assert not os.listdir(tmp_path)
