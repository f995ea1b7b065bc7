"""A detector without a proposal generator trains and is evaluated on proposals of files."""

import json
import math
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from corrdet.engine import CorrdetTrainer
from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tiny_digits, tmp_path):
    """Split -> file with the true boxes and, with a low logit, the whole image."""
    paths = {}
    for split in ("train", "val"):
        content = {"ids": [], "boxes": [], "objectness_logits": [], "bbox_mode": BoxMode.XYWH_ABS}
        for record in DatasetCatalog.get(f"tiny_{split}"):
            boxes = [annotation["bbox"] for annotation in record["annotations"]]
            boxes = [[0, 0, record["width"], record["height"]], *boxes]
            content["ids"].append(record["image_id"])
            content["boxes"].append(np.array(boxes, dtype=np.float32))
            logits = [-5.0] + [5.0] * (len(boxes) - 1)
            content["objectness_logits"].append(np.array(logits, dtype=np.float32))
        paths[split] = tmp_path / f"{split}.pkl"
        paths[split].write_bytes(pickle.dumps(content))
    return paths


def overrides(files) -> list:
    return [
        "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals",
        "MODEL.LOAD_PROPOSALS", True,
        "DATASETS.PROPOSAL_FILES_TRAIN", (str(files["train"]),),
        "DATASETS.PROPOSAL_FILES_TEST", (str(files["val"]),),
    ]  # fmt: skip


def command(tiny_command, folder, *options):
    arguments = tiny_command(folder, *options)
    place = arguments.index("--config-file") + 1
    arguments[place] = str(ROOT / "configs/quick/faster_rcnn_baseline.yaml")
    return arguments


def test_training_and_evaluation(files, tiny_command, tmp_path):
    folder = tmp_path / "output"
    arguments = command(tiny_command, folder, *overrides(files), "SOLVER.MAX_ITER", 20)
    finished = subprocess.run(arguments, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    logged = {key: value for line in lines for key, value in line.items()}
    assert math.isfinite(logged["loss_cls"]) and math.isfinite(logged["bbox/AP"])
    assert not any("rpn" in key for key in logged)


def test_a_malicious_file_is_refused(files, tiny_command, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    for split in ("train", "val"):
        good = files[split].read_bytes()
        files[split].write_bytes(pickle.dumps({"ids": Trap()}))
        arguments = command(tiny_command, tmp_path / "output", *overrides(files))
        finished = subprocess.run(arguments, capture_output=True, text=True)
        files[split].write_bytes(good)
        assert finished.returncode == 1
        *_, last = finished.stderr.splitlines()
        assert last.startswith(f"error: {files[split]} was not read: it holds posix.mkdir, which")
        assert "Traceback" not in finished.stderr
        assert not (tmp_path / "trap").exists()


def test_the_test_loader_gives_proposals_in_the_resized_image(files, tiny_cfg):
    tiny_cfg.merge_from_list(overrides(files))
    tiny_cfg.INPUT.MIN_SIZE_TEST = 2 * 160
    tiny_cfg.INPUT.MAX_SIZE_TEST = 2 * 160
    ((record,), *_) = CorrdetTrainer.build_test_loader(tiny_cfg, "tiny_val")
    truth, proposals = record["instances"].gt_boxes.tensor, record["proposals"]
    assert len(proposals) == len(truth) + 1
    boxes = proposals.proposal_boxes.tensor
    torch.testing.assert_close(boxes[:-1].sort(0).values, truth.sort(0).values)
    assert boxes[-1].tolist() == [0, 0, 320, 320]
    assert proposals.objectness_logits.tolist() == [5.0] * len(truth) + [-5.0]
