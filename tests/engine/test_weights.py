"""MODEL.WEIGHTS: whose names are the model's, what is said of others, and files that are none."""

import argparse
import gzip
import io
import logging
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from corrdet.engine import CheckpointError, SafeCheckpointer
from corrdet.engine.weights import (
    MissingWeightsError,
    WeightsReadError,
    read_weights,
    split_weights,
)


def model(classes=4):
    """Named as Detectron2's are: 2 layers of a backbone and 2 of a head, 8 tensors."""
    block = nn.ModuleDict({"conv1": nn.Conv2d(2, 2, 1), "conv2": nn.Conv2d(2, 2, 1)})
    bottom_up = nn.ModuleDict({"res2": nn.ModuleList([block])})
    head = nn.ModuleDict({"cls_score": nn.Conv2d(2, classes, 1), "bbox_pred": nn.Conv2d(2, 4, 1)})
    return nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": bottom_up}), "head": head})


def trained(classes=4):
    return {name: value + 1 for name, value in model(classes).state_dict().items()}


def load(path, content=None, into=None):
    if content is not None:
        torch.save(content, path)
    into = into or model()
    SafeCheckpointer(into).load(str(path))
    return into


def rewrite_pickle(path, pattern: bytes, replacement: bytes) -> None:
    """Change the pickle in a file that ``torch.save`` wrote."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    changed = re.sub(pattern, replacement, parts[name])
    assert changed != parts[name] or re.search(pattern, changed)
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in {**parts, name: changed}.items():
            archive.writestr(part, content)


def is_from(into, weights) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in into.state_dict().items())


class TestNoNameFits:
    def message(self, path, weights, into=None) -> str:
        with pytest.raises(CheckpointError) as caught:
            load(path, weights, into)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_the_names_of_both_sides_are_there(self, tmp_path):
        weights = {"body.conv.weight": torch.zeros(2), "body.conv.bias": torch.zeros(2)}
        message = self.message(tmp_path / "w.pth", weights)
        assert message.startswith("none of the 2 tensors in ")
        assert "the model's 8: there body.conv.bias, body.conv.weight; here backbone." in message
        assert message.endswith('MODEL.WEIGHTS "" trains from scratch')

    def test_the_nearest_names_are_there(self, tmp_path):
        weights = {n.replace("bottom_up", "body"): v for n, v in trained().items() if "res2" in n}
        message = self.message(tmp_path / "w.pth", weights)
        near = "backbone.body.res2.0.conv1.bias there is like backbone.bottom_up.res2.0.conv1.bias"
        assert near in message

    def test_another_shape_is_no_match(self, tmp_path):
        weights = {name: value[None] for name, value in trained().items()}
        assert "none of the 8 tensors" in self.message(tmp_path / "w.pth", weights)

    def test_hardly_any(self, tmp_path):
        into = nn.ModuleDict({"same": nn.Linear(1, 1, bias=False)})
        into.update({f"mine{i}": nn.Linear(1, 1) for i in range(10)})
        weights = {f"theirs{i}": torch.zeros(1) for i in range(20)}
        weights["same.weight"] = torch.zeros(1, 1)
        assert "only 1 of the 21 tensors" in self.message(tmp_path / "w.pth", weights, into)
        # A small part that is for the model is what a file may have.
        load(tmp_path / "w.pth", {"same.weight": torch.ones(1, 1)}, into)
        assert into["same"].weight.item() == 1

    @pytest.mark.parametrize(
        "names, advice",
        [
            (["layer1.0.conv1.weight", "fc.bias"], "torchvision's .* but are no whole one"),
            (
                ["backbone.layer1.0.conv1.weight", "bbox_head.retina_cls.weight"],
                "mmdetection's names, .* taken if it is a whole ResNet",
            ),
            (["backbone.0.body.conv1.weight"], "original DETR, .* it has no query_embed.weight"),
            (["head.head_series.0.norm1.weight"], "original Sparse R-CNN, .* it has no init_"),
            (["res2.0.conv1.weight"], r"w.pth\?matching_heuristics=True matches them"),
            (["unknown.weight"], "rename them; a prefix of all is left out by itself"),
        ],
    )
    def test_the_advice_is_for_whose_names_they_are(self, tmp_path, names, advice):
        weights = {name: torch.zeros(7) for name in names}
        assert re.search(advice, self.message(tmp_path / "w.pth", weights))

    def test_nothing_at_all(self, tmp_path):
        assert "has no weights under 'model'" in self.message(tmp_path / "w.pth", {"model": {}})
        assert "has no weights" in self.message(tmp_path / "w.pth", {})
        message = self.message(tmp_path / "w.pth", {"epoch": 3, "lr": [1.0]})
        assert "'epoch' is an int, expected weights by name" in message
        assert message.endswith("it has the keys epoch, lr")


class TestSomeNamesFit:
    def test_what_is_new_and_left_over_is_counted(self, tmp_path, caplog):
        weights = {**trained(classes=9), "fc.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}
        del weights["head.bbox_pred.bias"]
        into = load(tmp_path / "w.pth", weights)
        name = "backbone.bottom_up.res2.0.conv2.weight"
        assert torch.equal(into.state_dict()[name], weights[name])
        (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert line.endswith(
            "w.pth: 5 of the model's 8 tensors are from there; 2 have another shape "
            "(head.cls_score.weight (9, 2, 1, 1) there, (4, 2, 1, 1) here; head.cls_score.bias "
            "(9,) there, (4,) here); 1 are new (head.bbox_pred 1); 2 of the file are left over "
            "(fc.weight 1, fc.bias 1)"
        )

    def test_other_shapes_of_similar_names_are_in_the_one_line(self, tmp_path, caplog):
        """Detectron2 warns of each in two lines."""
        weights = {n.removeprefix("backbone.bottom_up."): v for n, v in trained(9).items()}
        (one, two, *_) = (name for name in weights if name.startswith("res2"))
        weights[two] = torch.zeros(5, 3)
        path = tmp_path / "w.pth"
        torch.save(weights, path)
        into = model()
        SafeCheckpointer(into).load(f"{path}?matching_heuristics=True")
        assert torch.equal(into.state_dict()[f"backbone.bottom_up.{one}"], weights[one])
        (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert "5 of the model's 8 tensors are from there; 3 have another shape (" in line
        assert f"backbone.bottom_up.{two} (5, 3) there, (" in line
        assert "are new" not in line and "left over" not in line

    def test_weights_of_this_model_give_no_warning(self, tmp_path, caplog):
        assert is_from(load(tmp_path / "w.pth", weights := trained()), weights)
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


class TestOthersCheckpoints:
    @pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net", None])
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module.", "_orig_mod."])
    def test_keys_and_prefixes(self, tmp_path, key, prefix):
        own = trained()
        weights = {prefix + name: value for name, value in own.items()}
        weights["loss.running"] = torch.zeros(2)
        content = weights if key is None else {key: weights, "meta": {"epoch": 3}}
        assert is_from(load(tmp_path / "w.ckpt", content), own)

    def test_a_model_that_is_there_twice(self, tmp_path):
        weights = {f"{p}.{n}": v for p in ("student", "teacher") for n, v in trained().items()}
        with pytest.raises(CheckpointError, match="8 names twice, behind 'student.' and 'teacher"):
            load(tmp_path / "w.pth", weights)

    def test_no_prefix_where_names_fit_as_they_are(self, tmp_path):
        own = trained()
        weights = {**own, **{f"ema.{name}": value + 1 for name, value in own.items()}}
        assert is_from(load(tmp_path / "w.pth", weights), own)

    def test_others_objects_beside_the_weights_do_not_reach_the_trainer(self, tmp_path):
        class Trainer:
            def state_dict(self):
                return {}

            def load_state_dict(self, state):
                raise AssertionError("not of this training")

        torch.save({"state_dict": trained(), "trainer": {"epoch": 3}}, tmp_path / "w.pth")
        checkpointer = SafeCheckpointer(model(), trainer=Trainer())
        assert checkpointer.load(str(tmp_path / "w.pth")).keys() >= {"model"}


class TestSafetensors:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_weights(self, tmp_path, dtype):
        weights = {name: value.to(dtype) for name, value in trained().items()}
        save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt", "epoch": "3"})
        into = load(tmp_path / "w.safetensors")
        assert is_from(into, {name: value.float() for name, value in weights.items()})

    def test_by_similar_names(self, tmp_path):
        weights = {n.split(".", 2)[2]: v for n, v in trained().items() if "res2" in n}
        save_file(weights, tmp_path / "w.safetensors")
        into = load(f"{tmp_path}/w.safetensors?matching_heuristics=True")
        own = into.state_dict()
        assert torch.equal(
            own["backbone.bottom_up.res2.0.conv1.bias"], weights["res2.0.conv1.bias"]
        )

    @pytest.mark.parametrize("content", [b"\x08", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{}x"])
    def test_damaged(self, tmp_path, content):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="w.safetensors was not loaded: it is damaged"):
            load(tmp_path / "w.safetensors")


class TestForeignObjects:
    @pytest.mark.slow
    @pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
    def test_what_where_and_the_remedy(self, tmp_path, is_zip):
        path = tmp_path / "w.pth"
        content = {"state_dict": trained(), "meta": {"args": argparse.Namespace(lr=0.1)}}
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)
        with pytest.raises(CheckpointError, match="it holds argparse.Namespace") as caught:
            load(path)
        message = str(caught.value)
        assert "\n" not in message
        if not is_zip:  # several pickles in a row: only what is refused first is known
            return
        assert "argparse.Namespace under 'meta.args', which could run code" in message
        code = re.search(r'python -c "(.+)"$', message)[1]
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        assert is_from(load(tmp_path / "tensors.pth"), content["state_dict"])

    @pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
    def test_numbers_of_numpy_are_read(self, tmp_path, core):
        """By the names of numpy 1 and 2."""
        numbers = [np.float64(0.1), np.int64(7), np.bool_(True), np.float16(2), np.complex64(1j)]
        path = tmp_path / "w.pth"
        torch.save({"model": trained(), "meta": {"best": numbers}}, path)
        rewrite_pickle(path, rb"numpy\.(_?)core", core.encode())
        found = read_weights(str(path))["meta"]["best"]
        assert [(type(n), n) for n in found] == [(type(n), n) for n in numbers]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"f8", b"O8"),
            (b"f8", b"S8"),
            (b"f8", b"V8"),
            (b"f8", b"f4"),
            (b"NNN", b"}}}"),
        ],
    )
    def test_what_only_looks_like_a_number(self, tmp_path, old, new):
        path = tmp_path / "w.pth"
        torch.save({"model": trained(), "best": np.float64(0.1)}, path)
        read_weights(str(path))
        rewrite_pickle(path, old, new)
        with pytest.raises(CheckpointError, match="was not loaded"):
            read_weights(str(path))

    def test_arrays_and_objects_of_numpy_are_not(self, tmp_path):
        for value in (np.zeros(2), np.array([None]), np.str_("a"), np.dtype("O")):
            with pytest.raises(CheckpointError, match="could run code on this machine"):
                load(tmp_path / "w.pth", {"model": trained(), "best": value})

    @pytest.mark.slow
    def test_a_whole_model(self, tmp_path):
        path = tmp_path / "w.pth"
        torch.save(layer := nn.Linear(2, 2), path)
        with pytest.raises(CheckpointError, match="it holds torch.nn.modules.linear.Linear,") as e:
            load(path)
        code = re.search(r'python -c "(.+)"$', str(e.value))[1]
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        assert is_from(load(tmp_path / "tensors.pth", into=nn.Linear(2, 2)), layer.state_dict())

    @pytest.mark.slow
    def test_a_pickle(self, tmp_path):
        path = tmp_path / "w.pkl"
        content = {"model": {"w": np.zeros(2)}, "__author__": {"who": argparse.Namespace()}}
        path.write_bytes(pickle.dumps(content, 2))
        with pytest.raises(CheckpointError, match="under '__author__.who'") as caught:
            load(path)
        code = re.search(r'python -c "(.+)"$', str(caught.value))[1]
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        assert torch.load(tmp_path / "tensors.pth", weights_only=True)["w"].tolist() == [0, 0]


PAGE = b"\n<!DOCTYPE html><html><body>Sign in to download</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102530333\n"


class TestFilesThatAreNone:
    @pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".pyth"])
    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "it is empty"),
            (PAGE, "it is a web page"),
            (POINTER, "it is the pointer that Git LFS"),
            (gzip.compress(b"weights", mtime=0), "it is compressed by gzip"),
            (b'{"weight_map": {}}', "it is JSON"),
        ],
    )
    def test_what_stands_in_the_place_of_weights(self, tmp_path, suffix, content, message):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        for use in (load, lambda path: split_weights(str(path))):  # before a model is built, too
            with pytest.raises(CheckpointError, match=f"w{suffix} was not loaded: {message}"):
                use(path)

    def test_a_compressed_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w/data.pkl", b"0" * 10_000_000)
        with pytest.raises(CheckpointError, match="a compressed archive"):
            load(tmp_path / "w.pth")

    def test_a_folder(self, tmp_path):
        torch.save(trained(), tmp_path / "model_final.pth")
        with pytest.raises(MissingWeightsError, match="is a folder; .* in it: model_final.pth"):
            load(tmp_path)

    def test_missing(self, tmp_path):
        torch.save(trained(), tmp_path / "model_final.pth")
        with pytest.raises(MissingWeightsError, match="did you mean '.*/model_final.pth'"):
            load(tmp_path / "model_fnal.pth")
        with pytest.raises(MissingWeightsError, match="there is no folder '.*/gone'"):
            load(tmp_path / "gone" / "model_final.pth")

    @pytest.mark.parametrize(
        "address, message",
        [
            ("http://127.0.0.1:9/w.pth", "Connection refused"),
            ("unknown://w.pth", "no such kind of address"),
        ],
    )
    def test_an_address_that_gives_nothing(self, address, message):
        with pytest.raises(MissingWeightsError, match=f"no weights from {address}: .*{message}"):
            load(address)

    def test_detectron2s_own_address(self, monkeypatch):
        def refuse(*_, **__):
            raise OSError("no network")

        checkpointer = SafeCheckpointer(model())
        monkeypatch.setattr(type(checkpointer.path_manager), "get_local_path", refuse)
        with pytest.raises(MissingWeightsError, match="no weights from detectron2://.* no network"):
            checkpointer.load("detectron2://ImageNetPretrained/MSRA/R-50.pkl")

    def test_unreadable(self, tmp_path, monkeypatch):
        path = tmp_path / "w.pth"
        torch.save(trained(), path)

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(WeightsReadError, match="w.pth was not read: .*Permission denied"):
            load(path)


class TestChecksums:
    def flip(self, path):
        """The last bit but one of an exponent, which torch.load takes for a weight like any."""
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            part = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
            start = part.header_offset + 30
            start += sum(
                int.from_bytes(content[start - 4 + i : start - 2 + i], "little") for i in (0, 2)
            )
        content[start + 3] ^= 0x40
        path.write_bytes(content)

    def test_a_flipped_bit(self, tmp_path):
        path = tmp_path / "w.pth"
        torch.save(weights := trained(), path)
        self.flip(path)
        name = next(iter(weights))
        assert not torch.equal(torch.load(path, weights_only=True)[name], weights[name])
        with pytest.raises(CheckpointError, match="w.pth was not loaded: it is damaged, .*data/0"):
            load(path)

    def test_a_file_without_checksums(self, tmp_path):
        if not hasattr(torch.serialization, "set_crc32_options"):
            pytest.skip("this PyTorch always writes them")
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(weights := trained(), tmp_path / "w.pth")
        finally:
            torch.serialization.set_crc32_options(True)
        assert is_from(load(tmp_path / "w.pth"), weights)

    def test_before_1_6(self, tmp_path):
        torch.save(weights := trained(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
        assert is_from(load(tmp_path / "w.pth"), weights)

    def test_cut_off(self, tmp_path):
        buffer = io.BytesIO()
        torch.save(trained(), buffer)
        for length in range(1, len(buffer.getvalue()), 97):
            (tmp_path / "w.pth").write_bytes(buffer.getvalue()[:length])
            with pytest.raises(CheckpointError, match="w.pth was not loaded"):
                load(tmp_path / "w.pth")


class TestValues:
    """That no model can have: a line, not PyTorch's traceback, and nothing that is lost."""

    NAME = "head.cls_score.bias"

    @pytest.mark.parametrize(
        "value, said",
        [
            (torch.eye(4).to_sparse(), "layout torch.sparse_coo"),
            (torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8), "quantized"),
            (torch.empty(4, device="meta"), "device meta"),
            (torch.zeros(4, dtype=torch.complex64), "complex numbers"),
            (torch.tensor([0, 1, torch.nan, 2]), "not finite"),
            (torch.full((4,), 1e300, dtype=torch.float64), "not finite"),
        ],
        ids=["sparse", "quantized", "meta", "complex", "nan", "overflow"],
    )
    def test_of_tensors(self, tmp_path, value, said):
        with pytest.raises(CheckpointError, match=f"{self.NAME}.*{said}|{said}.*{self.NAME}"):
            load(tmp_path / "w.pth", {**trained(), self.NAME: value})

    @pytest.mark.parametrize("dtype", ["U3", np.longdouble, np.complex64], ids=str)
    def test_of_arrays(self, tmp_path, dtype):
        path = tmp_path / "w.pkl"
        arrays = {name: value.numpy() for name, value in trained().items()}
        arrays[self.NAME] = np.zeros(4).astype(dtype)
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
        with pytest.raises(CheckpointError, match=self.NAME):
            load(path)

    def test_infinite_buffers_are_good(self, tmp_path):
        into = model()
        into.register_buffer("mask", torch.zeros(2))
        weights = {**trained(), "mask": torch.tensor([0, -torch.inf])}
        assert is_from(load(tmp_path / "w.pth", weights, into), weights)
