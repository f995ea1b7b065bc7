"""A training of two processes that is stopped and resumed is the one that was not, bit for bit."""

import json
import logging
import os
import shutil
import traceback
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from corrdet.engine import CheckpointError, CorrdetTrainer, load_config
from corrdet.engine.averaging import AverageWeights
from corrdet.engine.rank_states import check_batch, own_entries, restore_rank_state
from tests.helpers.training import ROOT, tiny_overrides, train
from tests.helpers.two_processes import start_group

pytestmark = pytest.mark.slow

CORRELATION = "MODEL.CRITERION.CORRELATION"
# A detector of each family, and what losses keep.
CASES = {
    "retinanet": ("retinanet_concordance", [f"{CORRELATION}.MEMORY", 3]),
    "atss": (
        "atss_concordance",
        [f"{CORRELATION}.MEMORY", 2, f"{CORRELATION}.GLOBAL_BATCH", True],
    ),
    "retinanet_ghm": ("retinanet_baseline", ["MODEL.CRITERION.CLASSIFICATION", "ghm_c"]),
    "faster_rcnn": ("faster_rcnn_harmonicdet", []),
    "ssd": ("ssd_baseline", []),
    "sparse_rcnn": ("sparse_rcnn_spearman", ["MODEL.SPARSE_RCNN.HIDDEN_DIM", 32]),
    "yolact": ("yolact_spearman", []),
    "parts": ("retinanet_baseline", ["SOLVER.ACCUMULATE", 2]),
    "amp": ("retinanet_baseline", ["SOLVER.AMP.ENABLED", True]),
    "sync_bn": ("retinanet_baseline", ["MODEL.RESNETS.NORM", "naiveSyncBN"]),
    "average": ("retinanet_baseline", ["MODEL_EMA.ENABLED", True]),
}


def config(case, entries, output):
    name, overrides = CASES[case]
    words = [*tiny_overrides(entries, output), "DATASETS.TEST", (), "SEED", 5]
    words += ["SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 4, *overrides]
    path = ROOT / f"configs/quick/{name}.yaml"
    return load_config(Namespace(config_file=str(path), opts=[str(word) for word in words]))


def train_by_rank(cfg, resume=False):
    seed_all_rng(comm.get_rank())
    return train(CorrdetTrainer(cfg), resume)


def take_first_half(folder: Path, target: Path):
    if comm.is_main_process():
        target.mkdir()
        shutil.copy(folder / "model_0000001.pth", target)
        (target / "last_checkpoint").write_text("model_0000001.pth")
    comm.synchronize()


def differences(one, other) -> list[str]:
    """Names of what is not the same in two trainers, of this process."""
    states = [
        {**{f"average.{k}": v for h in t._hooks if isinstance(h, AverageWeights)
            for k, v in h.state_dict()["average"].items()},
         **t._detector.state_dict(), **{f"optimizer.{i}.{k}": v for i, s in
         enumerate(t._trainer.optimizer.state.values()) for k, v in s.items()}}
        for t in (one, other)
    ]  # fmt: skip
    names = [*{**states[0], **states[1]}]
    return [name for name in names if not _same(*(state.get(name) for state in states))]


def _same(one, other) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def worker(rank, folder, entries):
    folder = Path(folder)
    start_group(rank, str(folder))
    found = {}
    for case in CASES:
        try:
            once = train_by_rank(config(case, entries, folder / case))
            take_first_half(folder / case, folder / f"{case}_resumed")
            resumed = train_by_rank(config(case, entries, folder / f"{case}_resumed"), resume=True)
            assert resumed.start_iter == 2
            found[case] = differences(once, resumed)
        except Exception:
            found[case] = traceback.format_exc()
            (folder / f"rank{rank}.json").write_text(json.dumps(found))
            os._exit(1)
        (folder / f"rank{rank}.json").write_text(json.dumps(found))
    comm.synchronize()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tiny_digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    with suppress(torch.multiprocessing.ProcessExitedException):  # the file has the traceback
        torch.multiprocessing.spawn(worker, (str(folder), tiny_digits), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_the_same(folder, case):
    for rank in (0, 1):
        found = json.loads((folder / f"rank{rank}.json").read_text())
        assert found[case] == [], (rank, found[case])


def test_checkpoints_hold_what_differs_and_no_more(folder):
    saved = torch.load(folder / "retinanet" / "model_0000001.pth", weights_only=True)
    first, second = saved["trainer"]["ranks"]
    assert first["model"] == {}
    assert "normalizer.mean" in second["model"]
    assert any("running_mean" in name for name in second["model"])
    assert any("state.correlation" in name for name in second["model"])
    assert not any(name.endswith("weight") for name in second["model"])


class TestOtherCheckpoints:
    """In one process, which is told that there are two."""

    @pytest.fixture
    def as_second_of_two(self, monkeypatch):
        monkeypatch.setattr(comm, "get_rank", lambda: 1)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)

    def test_of_the_first_process_only(self, as_second_of_two, caplog):
        with caplog.at_level(logging.WARNING, "corrdet"):
            assert restore_rank_state(torch.nn.BatchNorm1d(2), None) is None
        assert "the state of the first process only: random numbers" in caplog.text

    @pytest.mark.parametrize("count", [1, 3])
    def test_of_another_number_of_processes(self, as_second_of_two, caplog, count):
        model = torch.nn.BatchNorm1d(2)
        state = {"random_states": "its", "model": {"running_mean": torch.ones(2)}, "without": []}
        with caplog.at_level(logging.WARNING, "corrdet"):
            restored = restore_rank_state(model, [state] * count)
        assert f"of {count} process(es), and 2 go on: with as many images" in caplog.text
        assert restored == (None if count == 1 else "its")
        assert own_entries(model)["running_mean"].tolist() == ([0, 0] if count == 1 else [1, 1])


def test_batches_scaled_to_another_number_of_processes(tiny_cfg):
    tiny_cfg.SOLVER.IMS_PER_BATCH = 4
    checkpoint = {"trainer": {"config": tiny_cfg.dump()}}
    tiny_cfg.SOLVER.IMS_PER_BATCH = 2
    check_batch(checkpoint, "path", tiny_cfg)  # said with the other differences
    tiny_cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    with pytest.raises(CheckpointError, match="path is of a training with 4 images in an iterat"):
        check_batch(checkpoint, "path", tiny_cfg)
