"""Times a training iteration of the quick RetinaNet with each loss, against focal and smooth L1.

An iteration is forward, backward and the optimizer's step on a batch of the digits data. In every
round each loss is used once, and its time divided by that of the baseline in the same round; the
ratio shown is the median over the rounds. The time of the losses alone, forward and backward to the
predictions, is shown beside it.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from benchmarks.kernels import machine, seconds
from benchmarks.report import replace, split_at_markers
from corrdet import add_corrdet_config
from corrdet.data import build_train_loader
from corrdet.data.files import atomic_write
from corrdet.losses import CLASSIFICATION_LOSSES, COUPLINGS, LOCALIZATION_LOSSES, Criterion
from corrdet.losses.registry import refusal

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quick" / "retinanet_baseline.yaml"
BASELINE = ("sigmoid_focal", "smooth_l1", ())
DEMANDED = 1.05


def compositions(activation: str = "sigmoid") -> list[tuple[str, str, tuple[str, ...]]]:
    """Each loss once, with the baseline's, or with GIoU where those do not go together."""
    classification, localization, _ = BASELINE
    chosen = []
    for name, loss in CLASSIFICATION_LOSSES.items():
        if activation in loss.activations and name != classification:
            other = "giou" if refusal(name, localization) else localization
            chosen.append((name, other, ()))
    chosen += [(classification, name, ()) for name in LOCALIZATION_LOSSES if name != localization]
    chosen += [(classification, localization, (name,)) for name in COUPLINGS]
    return chosen


def options_of(coefficient: str) -> dict:
    return {"correlation": {"coefficient": coefficient}}


def quick_config(device: str) -> CfgNode:
    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.merge_from_file(str(CONFIG), False)
    cfg.MODEL.DEVICE = device
    return cfg


def build(cfg: CfgNode, batches: int) -> tuple[nn.Module, list[list[dict]], torch.optim.Optimizer]:
    """The model, batches of data, and an optimizer that leaves the weights nearly as they are."""
    loader = build_train_loader(cfg, seed=0)
    iterator = iter(loader)
    images = [next(iterator) for _ in range(batches)]
    loader.close()
    torch.manual_seed(0)
    model = build_model(cfg).train()
    return model, images, torch.optim.SGD(model.parameters(), lr=1e-4)


def iterate(model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict]) -> None:
    losses = model(batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()


def measure(cfg: CfgNode, rounds: int, batches: int = 3) -> list[dict]:
    """A row for each loss: what, ratio of iterations, seconds of an iteration and of the losses."""
    device = cfg.MODEL.DEVICE
    model, images, optimizer = build(cfg, batches)

    cases = {" + ".join([*BASELINE[:2]]): Criterion(*BASELINE)}
    for classification, localization, couplings in compositions():
        name = " + ".join([classification, localization, *couplings])
        cases[name] = Criterion(classification, localization, couplings)
    for coefficient in ("pearson", "spearman"):
        name = " + ".join([*BASELINE[:2], f"correlation ({coefficient})"])
        cases[name] = Criterion(*BASELINE[:2], ["correlation"], options_of(coefficient))

    alone: list[float] = []

    def timed_criterion(criterion):
        def call(matched, iteration):
            # A backward of its own, up to what the network predicts.
            inputs = [x.detach().requires_grad_() for x in (matched.logits, matched.deltas)]
            boxes = matched.boxes.detach().requires_grad_()
            copy = type(matched)(
                logits=inputs[0], labels=matched.labels, positives=matched.positives, boxes=boxes,
                gt_boxes=matched.gt_boxes, image_ids=matched.image_ids,
                normalizer=matched.normalizer, deltas=inputs[1], gt_deltas=matched.gt_deltas,
            )  # fmt: skip
            alone.append(
                seconds(lambda: sum(criterion(copy, iteration).values()).backward(), device)
            )
            return criterion(matched, iteration)

        call.latest_factors = {}  # which the model reads
        return call

    times: dict[str, list[float]] = {name: [] for name in cases}
    losses_alone: dict[str, float] = {}
    with EventStorage():
        for name, criterion in cases.items():
            model.criterion = timed_criterion(criterion)
            alone.clear()
            for batch in images:
                iterate(model, optimizer, batch)  # warms up, too
            losses_alone[name] = statistics.median(alone)
        for index in tqdm(range(rounds), desc="rounds", disable=None):
            for name, criterion in cases.items():
                model.criterion = criterion
                step = partial(iterate, model, optimizer, images[index % len(images)])
                times[name].append(seconds(step, device))
    baseline = next(iter(times.values()))
    return [
        {
            "what": name,
            "iteration_seconds": statistics.median(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, baseline, strict=True)),
            "losses_seconds": losses_alone[name],
        }
        for name, taken in times.items()
    ]


def profile(cfg: CfgNode, folder: str) -> str:
    """Trace iterations with losses of each kind; returns a table of where the time went.

    Args:
        cfg: see :func:`quick_config`.
        folder: for ``trace.json``, which chrome://tracing and Perfetto show.
    """
    model, images, optimizer = build(cfg, batches=1)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cfg.MODEL.DEVICE != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    model.criterion = Criterion("rank_sort", "giou", ["correlation"])
    with EventStorage():
        iterate(model, optimizer, images[0])  # warms up
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(3):
                iterate(model, optimizer, images[0])
    Path(folder).mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(Path(folder) / "trace.json"))
    by = "self_cpu_time_total" if cfg.MODEL.DEVICE == "cpu" else "self_device_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=30)


def table(results: dict) -> str:
    """As Markdown."""
    where = results["machine"]
    gpu = f"{where['gpu']}, " if where["gpu"] else ""
    head = f"Machine: {gpu}{where['threads']} threads of {where['cpu']}, torch {where['torch']}"
    rows = [
        [
            row["what"],
            f"{row['losses_seconds'] * 1000:.2f}",
            f"{row['iteration_seconds'] * 1000:.0f}",
            f"{row['ratio']:.3f}",
            "ok" if row["ratio"] <= DEMANDED else "above",
        ]
        for row in results["rows"]
    ]
    headers = ["losses", "ms alone", "ms of an iteration", "ratio", f"<= {DEMANDED}"]
    above = sum(row["ratio"] > DEMANDED for row in results["rows"])
    last = f"{above} of {len(rows)} above what is demanded."
    return "\n\n".join([head, tabulate(rows, headers, "github", disable_numparse=True), last])


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--json", metavar="FILE", help="write machine, command and all numbers")
    parser.add_argument("--markdown", metavar="FILE", help="rewrite the table of this device")
    parser.add_argument("--profile", metavar="DIR", help="instead, trace a few iterations")
    args = parser.parse_args(arguments)
    if args.profile:
        torch.set_num_threads(args.threads)
        print(profile(quick_config(args.device), args.profile))
        return
    section = f"training {args.device}"
    if args.markdown:
        split_at_markers(args.markdown, section)  # an error now, not after minutes
    torch.set_num_threads(args.threads)
    results = {
        "command": f"python -m benchmarks.training {shlex.join(arguments)}".strip(),
        "machine": machine(args.device),
        "rounds": args.rounds,
        "rows": measure(quick_config(args.device), args.rounds),
    }
    if args.json:
        with atomic_write(args.json) as file:
            json.dump(results, file, indent=1)
    print(table(results))
    if args.markdown:
        replace(args.markdown, section, f"`{results['command']}`\n\n{table(results)}")


if __name__ == "__main__":
    main()
