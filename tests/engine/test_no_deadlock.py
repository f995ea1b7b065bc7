"""Two processes take a step whatever positives each of them has, with every detector and loss."""

import json
import time
import traceback
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from corrdet.engine import ConfigError, load_config
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES
from tests.helpers.detectors import batch_with_masks
from tests.helpers.training import ROOT
from tests.helpers.two_processes import start_group

pytestmark = pytest.mark.slow

# Objects of the images of each process: on both, on one, on none.
OBJECTS = [((2, 1), (1, 2)), ((0, 0), (0, 3)), ((0, 0), (0, 0))]
DETECTORS = [
    "atss_concordance",
    "dssd_harmonicdet",
    "faster_rcnn_harmonicdet",
    "fcos_association",
    "foveabox_concordance",
    "mask_rcnn_harmonicdet",
    "paa_concordance",
    "paa_star_ape",
    "refinedet_harmonicdet",
    "sparse_rcnn_spearman",
    "ssd_harmonicdet",
    "yolact_spearman",
]
SMALL = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
EVERY_COUPLING = [
    "MODEL.CRITERION.CORRELATION.GLOBAL_BATCH", True,
    "MODEL.CRITERION.CORRELATION.MEMORY", 2,
]  # fmt: skip


def variants():
    """Name -> config and overrides."""
    yield from ((name, (name, [])) for name in DETECTORS)
    retinanet = "retinanet_baseline"
    for name in CLASSIFICATION_LOSSES:
        yield f"classification {name}", (retinanet, ["MODEL.CRITERION.CLASSIFICATION", name])
    for name in LOCALIZATION_LOSSES:
        yield f"localization {name}", (retinanet, ["MODEL.CRITERION.LOCALIZATION", name])
    for name in COUPLINGS:
        overrides = ["MODEL.CRITERION.COUPLINGS", f"('{name}',)", *EVERY_COUPLING]
        yield f"coupling {name}", (retinanet, overrides)


def take_steps(config, overrides) -> str:
    words = [str(word) for word in (*SMALL, *overrides)]
    try:
        cfg = load_config(Namespace(config_file=f"{ROOT}/configs/quick/{config}.yaml", opts=words))
        torch.manual_seed(0)
        model = build_model(cfg)
    except ConfigError:  # a loss of softmax heads, or one that does not go with the others
        return "refused"
    parallel = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    parallel.train()
    with EventStorage():
        for objects in OBJECTS:
            losses = parallel(batch_with_masks(objects[comm.get_rank()], seed=comm.get_rank()))
            parallel.zero_grad()
            sum(losses.values()).backward()
            if not all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad):
                return f"a gradient is not finite with {objects}"
    return "fine"


def worker(rank, folder):
    start_group(rank, folder)
    found = {}
    for name, variant in variants():
        try:
            found[name] = take_steps(*variant)
        except Exception:
            found[name] = traceback.format_exc()
        (Path(folder) / f"rank{rank}.json").write_text(json.dumps({**found, "last": name}))
        if found[name] not in ("fine", "refused"):
            break  # the other process waits
    torch.distributed.destroy_process_group()


def test_every_step_is_taken(tmp_path):
    processes = torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2, join=False)
    end = time.monotonic() + 240
    try:
        while not (ended := processes.join(timeout=1)) and time.monotonic() < end:
            pass
    finally:
        for process in processes.processes:
            process.kill()
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ended, f"after {found[0]['last']} they wait"
    for part in found:
        del part["last"]
        assert {n: v for n, v in part.items() if v not in ("fine", "refused")} == {}
        assert sum(value == "fine" for value in part.values()) > 25
