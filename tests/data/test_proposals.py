"""Proposals from files: the right boxes reach the right images, and no code of a file runs."""

import json
import os
import pickle

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.structures import BoxMode

from corrdet.data.proposals import (
    ProposalError,
    add_proposals,
    check_proposal_files,
    read_proposals,
)
from corrdet.errors import ConfigError

IDS = [7, 3, 5]
BOXES = [[[0, 0, 8, 9], [1, 2, 30, 40.5]], [[4, 4, 9, 9]], []]
LOGITS = [[0.25, 2.5], [-1.0], []]


def arrays():
    return {
        "ids": IDS,
        "boxes": [np.array(boxes, dtype=np.float32).reshape(-1, 4) for boxes in BOXES],
        "objectness_logits": [np.array(logits, dtype=np.float32) for logits in LOGITS],
    }


def write_pickle(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def write(folder, kind):
    path = folder / f"proposals.{kind.split(' ')[0]}"
    content = arrays()
    if kind == "npz":
        counts = [len(boxes) for boxes in BOXES]
        boxes, logits = map(np.concatenate, (content["boxes"], content["objectness_logits"]))
        np.savez(path, ids=IDS, counts=counts, boxes=boxes, objectness_logits=logits, bbox_mode=0)
    elif kind == "json":
        content = {"ids": IDS, "boxes": BOXES, "objectness_logits": LOGITS}
        path.write_text(json.dumps(content))
    elif kind == "pkl of Detectron1":
        names = {"ids": "indexes", "objectness_logits": "scores"}
        write_pickle(path, {names.get(key, key): value for key, value in content.items()}, 2)
    else:
        write_pickle(path, {**content, "bbox_mode": BoxMode.XYXY_ABS}, int(kind[-1]))
    return str(path)


def config(split="TEST", files=(), names=("mine",)):
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS[split] = tuple(names)
    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = tuple(map(str, files))
    return cfg


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
@pytest.mark.parametrize("kind", ["pkl 2", "pkl 5", "pkl of Detectron1", "npz", "json"])
def test_every_format(kind, split, tmp_path):
    cfg = config(split, [write(tmp_path, kind)])
    dicts = [{"image_id": image_id} for image_id in (3, 5, 7)]
    third, fifth, seventh = add_proposals(cfg, split, "mine", dicts)
    assert dicts == [{"image_id": image_id} for image_id in (3, 5, 7)]
    # From the best.
    assert seventh["proposal_boxes"].tolist() == [[1, 2, 30, 40.5], [0, 0, 8, 9]]
    assert seventh["proposal_objectness_logits"].tolist() == [2.5, 0.25]
    assert third["proposal_boxes"].tolist() == [[4, 4, 9, 9]]
    assert fifth["proposal_boxes"].shape == (0, 4)
    assert all(record["proposal_bbox_mode"] == BoxMode.XYXY_ABS for record in (third, fifth))


class Trap:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_the_code_of_a_malicious_file_does_not_run(tmp_path):
    trap = tmp_path / "trap"
    for content in (Trap(trap), {**arrays(), "boxes": [Trap(trap)] * 3}):
        path = write_pickle(tmp_path / "bad.pkl", content)
        with pytest.raises(ProposalError, match="posix.mkdir, which could run code"):
            read_proposals(path)
    objects = np.array([Trap(trap)] * 3, dtype=object)
    np.savez(tmp_path / "bad.npz", ids=objects, boxes=[], objectness_logits=[], counts=[])
    with pytest.raises(ProposalError, match="bad.npz was not read: .*allow_pickle"):
        read_proposals(str(tmp_path / "bad.npz"))
    assert not trap.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": None}, "expected the keys ids, boxes and objectness_logits"),
        ({"ids": [1]}, "1 ids, but boxes of 3 and objectness_logits of 3 images"),
        ({"ids": [7, 3, "7"]}, "an image id is there more than once"),
        ({"bbox_mode": 4}, r"bbox_mode must be 0 \(XYXY\) or 1 \(XYWH\), got 4"),
        ({"bbox_mode": "xywh"}, "bbox_mode must be 0 .* got 'xywh'"),
        ({"objectness_logits": [[1.0], [], []]}, r"image id 7: .* got \(2, 4\) and \(1,\)"),
        ({"boxes": [[[1, 2, 3]], [], []]}, r"image id 7: .* got \(1, 3\) and"),
        ({"boxes": [[["a"] * 4] * 2, [], []]}, "image id 7: could not convert string"),
        (
            {"boxes": [[[0, 0, 1, float("nan")]] * 2, [[0] * 4], []]},
            "image id 7: a number is not finite",
        ),
    ],
)
def test_what_a_file_must_have(change, message, tmp_path):
    path = write_pickle(tmp_path / "bad.pkl", {**arrays(), **change})
    with pytest.raises(ProposalError, match=f"^{path}: {message}"):
        read_proposals(path)


def test_files_that_are_none(tmp_path):
    for name in ("list.json", "damaged.json", "damaged.pkl", "damaged.npz"):
        (tmp_path / name).write_text("[1, 2" + "]" * name.startswith("list"))
        with pytest.raises(ProposalError, match=name):
            read_proposals(str(tmp_path / name))
    np.savez(tmp_path / "part.npz", ids=IDS)
    with pytest.raises(ProposalError, match="expected boxes, counts, ids, obj.* got ids"):
        read_proposals(str(tmp_path / "part.npz"))
    np.savez(
        tmp_path / "counts.npz",
        ids=[1],
        counts=[2],
        boxes=np.zeros((3, 4)),
        objectness_logits=np.zeros(3),
    )
    with pytest.raises(ProposalError, match="counts add up to 2, but there are 3 boxes"):
        read_proposals(str(tmp_path / "counts.npz"))
    with pytest.raises(ProposalError, match="a pickle at an address"):
        read_proposals("https://example.com/proposals.pkl")


def test_images_without_proposals_are_named(tmp_path):
    cfg = config("TRAIN", [write(tmp_path, "json")])
    dicts = [{"image_id": image_id} for image_id in (3, 4, "six")]
    message = r"no proposals of 2 of the 3 images of data set 'mine', .*\n  4\n  six$"
    with pytest.raises(ProposalError, match=message):
        add_proposals(cfg, "TRAIN", "mine", dicts)


def test_what_is_known_without_reading_files(tmp_path):
    path = write(tmp_path, "json")
    check_proposal_files(config("TEST", [path]), "TEST")
    for split in ("TRAIN", "TEST"):
        key = f"DATASETS.PROPOSAL_FILES_{split}"
        for files, message in [
            ([], rf"{key} has 0 file\(s\), but DATASETS.{split} has 1 data set"),
            ([path, path], r"has 2 file\(s\), but .* has 1 data set"),
            (["gone.pkl"], f"{key}: no file gone.pkl"),
            ([str(tmp_path)], "expected a .pkl or .npz or .json file, got"),
            (["https://example.com/p.pkl"], "p.pkl is a pickle at an address"),
        ]:
            with pytest.raises(ConfigError, match=message):
                check_proposal_files(config(split, files), split)
    with pytest.raises(ConfigError, match="several files for a data set that is there twice"):
        (tmp_path / "other.json").write_text("{}")
        files = [path, tmp_path / "other.json"]
        check_proposal_files(config("TRAIN", files, ("mine", "mine")), "TRAIN")
    cfg = get_cfg()
    check_proposal_files(cfg, "TRAIN", "TEST")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    with pytest.raises(ConfigError, match="PrecomputedProposals', which needs MODEL.LOAD_PROP"):
        check_proposal_files(cfg, "TRAIN", "TEST")
