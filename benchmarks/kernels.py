"""Times the operators and losses against what they replace, all in one run.

Every figure demanded is a ratio of two times taken in turns, so that another machine, or one that
is busy, changes it little. Nothing is judged: a figure below what is demanded is marked in the
table, and the exit status is 0 all the same. docs/benchmarks.md tells what is measured.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from benchmarks import loops, report
from corrdet import losses
from corrdet.files import atomic_write
from corrdet.ops import pairwise_iou, set_backend, soft_rank
from corrdet.ops.kernels import OPERATORS

SECTIONS = (
    "ap", "rank_sort", "alrp", "ape", "sigmoid", "pure", "iou", "soft_rank", "twins", "growth",
    "memory",
)  # fmt: skip

# Times that a fast function is called; one that takes longer than SLOW seconds is called 3 times.
ROUNDS = 9
SLOW = 1.0


@dataclass
class Samples:
    """What the ranking losses read; `targets` has the IoUs of the positives in place of ones."""

    logits: Tensor
    labels: Tensor
    targets: Tensor
    ious: Tensor


@dataclass(frozen=True)
class Loss:
    """A ranking loss, the loop over positives that it replaces, and how much faster it has to be.

    Attributes:
        ours: function of logits and samples; returns the loss.
        loop: the same; returns the loss and its gradient.
        demanded: least ratios for 1000 positives among 1 000 000 negatives, and 500 among 100 000.
        growth: largest ratio of times for twice as many positives.
        is_smooth: its gradient has an error to report, as it is computed by an expansion in series.
    """

    title: str
    ours: Callable[[Tensor, Samples], Tensor]
    loop: Callable[[Tensor, Samples], tuple[Tensor, Tensor]]
    demanded: tuple[float, float]
    growth: float
    is_smooth: bool = False


LOSSES = {
    "ap": Loss(
        "AP",
        lambda logits, samples: losses.ap_loss(logits, samples.labels),
        lambda logits, samples: loops.ap_loss(logits, samples.labels),
        (40, 20),
        1.3,
    ),
    "rank_sort": Loss(
        "RS",
        lambda logits, samples: sum(losses.rank_sort_loss(logits, samples.targets)),
        lambda logits, samples: loops.rank_sort_loss(logits, samples.targets),
        (40, 20),
        1.3,
    ),
    "alrp": Loss(
        "aLRP",
        lambda logits, samples: sum(losses.alrp_loss(logits, samples.labels, samples.ious)),
        lambda logits, samples: loops.alrp_loss(logits, samples.labels, samples.ious),
        (40, 20),
        1.3,
    ),
    "ape": Loss(
        "APE",
        lambda logits, samples: losses.ape_loss(logits, samples.labels, samples.ious),
        lambda logits, samples: loops.ape_loss(logits, samples.labels, samples.ious),
        (200, 60),
        1.6,
        is_smooth=True,
    ),
    "sigmoid": Loss(
        "sigmoid pairwise error",
        lambda logits, samples: losses.pairwise_error_loss(logits, samples.labels, "sigmoid"),
        lambda logits, samples: loops.sigmoid_error_loss(logits, samples.labels),
        (200, 60),
        1.6,
        is_smooth=True,
    ),
}
EASY_DEMANDED = 15
# Of the operators in PyTorch's operations: at least so much faster than the loop, at most so much
# slower than the kernels.
PURE_DEMANDED, PURE_ALLOWED = 5, 20
NEGATIVES_GROWTH = 2.2
# Of the examples on which operators are compared with their twins.
TWINS_SIZE = 2000


def make_samples(positives: int, negatives: int, mean: float, device: str) -> Samples:
    """Logits of positives from N(0, 1) and of negatives from N(mean, 1), seeded.

    Nothing larger than the logits is made on the way, as the peak of the memory is measured.
    """
    generator = torch.Generator().manual_seed(0)
    count = positives + negatives
    logits = torch.empty(count).normal_(mean, generator=generator)
    labels = torch.zeros(count)
    indices = torch.arange(positives) * (count // positives)
    logits[indices] -= mean
    labels[indices] = 1
    ious = torch.rand(positives, generator=generator) * 0.9 + 0.05
    targets = labels.clone()
    targets[indices] = ious
    return Samples(*(tensor.to(device) for tensor in (logits, labels, targets, ious)))


def forward_backward(loss: Loss, samples: Samples) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the logits."""
    logits = samples.logits.detach().requires_grad_()
    value = loss.ours(logits, samples)
    value.backward()
    return value.detach(), logits.grad


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def seconds(function: Callable[[], object], device: str) -> float:
    """Time of one call; on a GPU, of what it launches."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def interleave(device: str, *functions: Callable[[], object]) -> list[float]:
    """Median time of each function. They are called in turns, so that what else the machine does
    meets all of them."""
    # The first call warms up, and counts only where another would take long.
    times = [[first] for first in (seconds(function, device) for function in functions)]
    slow = [first[0] > SLOW for first in times]
    times = [first if is_slow else [] for first, is_slow in zip(times, slow, strict=True)]
    rounds, repeats = (2, ROUNDS // 2) if any(slow) else (ROUNDS, 1)
    for _ in range(rounds):
        for function, is_slow, taken in zip(functions, slow, times, strict=True):
            taken += [seconds(function, device) for _ in range(1 if is_slow else repeats)]
    return [statistics.median(taken) for taken in times]


def row(what: str, size: str, ours: float, than: str, theirs: float, demanded: float,
        at_most: bool = False) -> dict:  # fmt: skip
    """A comparison: how many times faster ours is, or with `at_most` how many times slower."""
    ratio = ours / theirs if at_most else theirs / ours
    return {
        "what": what,
        "size": size,
        "seconds": ours,
        "baseline": than,
        "baseline_seconds": theirs,
        "ratio": ratio,
        "demanded": f"{'<=' if at_most else '>='} {demanded:g}",
        "ok": ratio <= demanded if at_most else ratio >= demanded,
    }


def check_agreement(loss: Loss, device: str) -> dict[str, float]:
    """Hold ours together with the loop before both are timed."""
    samples = make_samples(50, 5000, -1.5, device)
    value, gradient = forward_backward(loss, samples)
    expected, expected_gradient = loss.loop(samples.logits, samples)
    errors = {
        "loss": relative_error(value, expected),
        "gradient": relative_error(gradient, expected_gradient),
    }
    if not max(errors.values()) < 1e-4:
        sys.exit(f"{loss.title} is not what the loop computes, relative errors {errors}")
    return errors


def compare_loss(loss: Loss, device: str, scale: int) -> list[dict]:
    rows = []
    for positives, negatives, mean, demanded in (
        (1000, 1_000_000, -1.5, loss.demanded[0]),
        (500, 100_000, -1.5, loss.demanded[1]),
        (1000, 1_000_000, -5.0, EASY_DEMANDED),
    ):
        positives, negatives = positives // scale, negatives // scale
        samples = make_samples(positives, negatives, mean, device)
        what = loss.title + (", easy negatives" if mean == -5 else "")
        size = f"{positives} x {negatives}"
        ours, theirs = interleave(
            device,
            lambda s=samples: forward_backward(loss, s),
            lambda s=samples: loss.loop(s.logits, s),
        )
        rows.append(row(what, size, ours, "loop over positives", theirs, demanded))
        if loss.is_smooth:
            _, gradient = forward_backward(loss, samples)
            _, exact = loss.loop(samples.logits.double(), samples)
            rows[-1]["gradient_error"] = error = relative_error(gradient, exact)
            rows[-1]["ok"] = rows[-1]["ok"] and error < 1e-5
    return rows


def compare_pure(device: str, scale: int) -> list[dict]:
    """What runs without the extension, against the loops and the kernels."""
    rows = []
    positives, negatives = 1000 // scale, 1_000_000 // scale
    for loss in LOSSES.values():
        for mean in (-1.5, -5.0):
            samples = make_samples(positives, negatives, mean, device)

            def run(backend, loss=loss, samples=samples):
                with set_backend(backend):
                    return forward_backward(loss, samples)

            pure, kernels, loop = interleave(
                device,
                lambda f=run: f("torch"),
                lambda f=run: f("extension"),
                lambda s=samples, f=loss: f.loop(s.logits, s),
            )
            what = f"{loss.title} without the extension" + (
                ", easy negatives" if mean == -5 else ""
            )
            size = f"{positives} x {negatives}"
            rows.append(row(what, size, pure, "loop over positives", loop, PURE_DEMANDED))
            rows.append(row(what, size, pure, "the extension", kernels, PURE_ALLOWED, at_most=True))
    return rows


def random_boxes(count: int, device: str) -> Tensor:
    corners = torch.rand(count, 2) * 1000
    return torch.cat([corners, corners + 1 + torch.rand(count, 2) * 200], 1).to(device)


def compare_iou(device: str, scale: int) -> list[dict]:
    """Forward alone: what torchvision's functions are called for."""
    rows = []
    for n, m in ((200_000, 50), (20_000, 500)):
        boxes1, boxes2 = random_boxes(n // scale, device), random_boxes(m, device)
        for kind, theirs, demanded in (
            ("iou", torchvision.ops.box_iou, 8),
            ("giou", torchvision.ops.generalized_box_iou, 12),
        ):
            ours, vision, fill = interleave(
                device,
                lambda a=boxes1, b=boxes2, k=kind: pairwise_iou(a, b, k),
                lambda a=boxes1, b=boxes2, f=theirs: f(a, b),
                lambda a=boxes1, b=boxes2: torch.empty(len(a), len(b), device=device).fill_(1.0),
            )
            what, size = f"pairwise {kind}", f"{n // scale} x {m}"
            rows.append(row(what, size, ours, f"torchvision {theirs.__name__}", vision, demanded))
            rows.append(row(what, size, ours, "writing the matrix", fill, 2, at_most=True))
    return rows


def compare_soft_rank(device: str, scale: int) -> tuple[list[dict], list[str]]:
    try:
        import torchsort
    except ModuleNotFoundError:
        return [], ["soft rank is not compared: torchsort is not installed"]
    rows = []
    for n in (10_000 // scale, 100_000 // scale):
        values = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(device)
        strength = 3**0.5 / n  # the default of corrdet.losses.spearman_correlation

        def run(function, values=values):
            leaf = values.detach().requires_grad_()
            function(leaf).square().sum().backward()
            return leaf.grad

        def theirs(leaf, strength=strength):
            return torchsort.soft_rank(leaf[None], regularization_strength=strength)

        def ours(leaf, strength=strength):
            return soft_rank(leaf, strength)

        times = interleave(device, lambda f=ours: run(f), lambda f=theirs: run(f))
        rows.append(row("soft rank", str(n), times[0], "torchsort", times[1], 1.5))
    return rows, []


def compare_twins(device: str, scale: int) -> list[dict]:
    """Every operator against its twin in plain PyTorch, forward and backward, on its example."""
    rows = []
    for name, module in OPERATORS.items():
        arguments = [
            value.detach().to(device).requires_grad_(value.requires_grad)
            if isinstance(value, Tensor) else value
            for value in module.example(TWINS_SIZE // scale)
        ]  # fmt: skip
        leaves = [each for each in arguments if isinstance(each, Tensor) and each.requires_grad]

        def run(function, arguments=arguments, leaves=leaves):
            results = function(*arguments)
            results = results if isinstance(results, tuple) else (results,)
            return torch.autograd.grad(sum(result.sum() for result in results), leaves)

        operator = getattr(module, name)
        ours, theirs = interleave(
            device, lambda f=operator, r=run: r(f), lambda f=module.reference, r=run: r(f)
        )
        size = str(TWINS_SIZE // scale)
        rows.append(row(name, size, ours, "its twin in PyTorch", theirs, 1))
    return rows


def measure_growth(device: str, scale: int) -> dict:
    """Times over the number of negatives and of positives, and the roofline under them.

    The roofline is the time in which memory copies what has to be moved at least: logits and labels
    read once, the gradient written once.
    """
    source = torch.zeros(2**26 // scale, device=device)
    destination = torch.empty_like(source)
    sizes = {
        "negatives": [(1000, negatives * 125_000) for negatives in (1, 2, 4, 8, 16)],
        "positives": [(positives * 250, 1_000_000) for positives in (1, 2, 4, 8, 16)],
    }
    curves, bandwidths = [], []
    for loss in tqdm(LOSSES.values(), desc="growth", disable=None):
        for along, pairs in sizes.items():
            pairs = [(positives // scale, negatives // scale) for positives, negatives in pairs]
            batches = [make_samples(*pair, -1.5, device) for pair in pairs]
            copy, *times = interleave(
                device,
                lambda: destination.copy_(source),
                *(lambda s=samples, f=loss: forward_backward(f, s) for samples in batches),
            )
            bandwidths.append(2 * source.nbytes / copy)
            moved = [2 * batch.logits.nbytes + batch.labels.nbytes for batch in batches]
            worst = max(later / earlier for earlier, later in zip(times, times[1:], strict=False))
            demanded = NEGATIVES_GROWTH if along == "negatives" else loss.growth
            curves.append(
                {
                    "what": loss.title,
                    "along": along,
                    "sizes": pairs,
                    "seconds": times,
                    "moved_bytes": moved,
                    "worst_doubling": worst,
                    "demanded": f"<= {demanded:g}",
                    "ok": worst <= demanded,
                }
            )
    bandwidth = statistics.median(bandwidths)
    for curve in curves:
        curve["roofline_seconds"] = [count / bandwidth for count in curve["moved_bytes"]]
    return {"copy_bytes_per_second": bandwidth, "curves": curves}


def peak_bytes(name: str, positives: int, negatives: int, device: str, threads: int) -> float:
    """Bytes per sample that a loss and its gradient take beyond their inputs, at their peak.

    The most that a process ever held never falls, so each loss gets a process of its own.
    """
    torch.set_num_threads(threads)
    samples = make_samples(positives, negatives, -1.5, device)
    forward_backward(LOSSES[name], make_samples(10, 1000, -1.5, device))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = highest_memory(device)
    forward_backward(LOSSES[name], samples)
    return (highest_memory(device) - before) / len(samples.logits)


def highest_memory(device: str) -> int:
    """Bytes that this process held at most so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage's ru_maxrss, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024


def measure_memory(device: str, scale: int, threads: int) -> tuple[list[dict], list[str]]:
    if device == "cpu" and sys.platform != "linux":
        return [], ["memory is measured on Linux only"]
    rows = []
    positives, negatives = 1000 // scale, 1_000_000 // scale
    for name, loss in LOSSES.items():
        with get_context("spawn").Pool(1) as pool:
            count = pool.apply(peak_bytes, (name, positives, negatives, device, threads))
        rows.append(
            {"what": loss.title, "size": f"{positives} x {negatives}", "bytes_per_sample": count}
        )
    return rows, []


def machine(device: str) -> dict:
    """What the times depend on."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def measure(device: str, quick: bool, only: Sequence[str], threads: int) -> dict:
    """Run what is named in `only`; returns what ``--json`` writes, without the command."""
    scale = 10 if quick else 1
    results = {
        "machine": machine(device),
        "quick": quick,
        "agreement": {},
        "comparisons": [],
        "notes": [],
        "growth": None,
        "memory": [],
    }
    for name in tqdm([name for name in SECTIONS if name in only], disable=None):
        if name in LOSSES:
            results["agreement"][name] = check_agreement(LOSSES[name], device)
            results["comparisons"] += compare_loss(LOSSES[name], device, scale)
        elif name == "pure":
            results["comparisons"] += compare_pure(device, scale)
        elif name == "iou":
            results["comparisons"] += compare_iou(device, scale)
        elif name == "soft_rank":
            rows, notes = compare_soft_rank(device, scale)
            results["comparisons"] += rows
            results["notes"] += notes
        elif name == "twins":
            results["comparisons"] += compare_twins(device, scale)
        elif name == "growth":
            results["growth"] = measure_growth(device, scale)
        elif name == "memory":
            results["memory"], notes = measure_memory(device, scale, threads)
            results["notes"] += notes
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--quick", action="store_true", help="a tenth of every size")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="NAME",
                        help=f"measure only these, of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write machine, command and all numbers")
    parser.add_argument("--plots", metavar="DIR", help="write pictures of the growth")
    parser.add_argument("--markdown", metavar="FILE", help="rewrite the tables of this device")
    args = parser.parse_args(arguments)
    if args.plots and "growth" not in args.only:
        parser.error("--plots shows the growth, which --only leaves out")
    if args.markdown:
        report.split_at_markers(args.markdown, args.device)  # an error now, not after minutes

    torch.set_num_threads(args.threads)
    results = {"command": f"python -m benchmarks.kernels {shlex.join(arguments)}"}
    results |= measure(args.device, args.quick, args.only, args.threads)
    if args.json:
        with atomic_write(args.json) as file:
            json.dump(results, file, indent=1)
    print(report.tables(results, "simple"))
    if args.plots:
        report.plot_growth(results, Path(args.plots) / f"kernels_{args.device}.png")
    if args.markdown:
        report.rewrite(args.markdown, args.device, results)


if __name__ == "__main__":
    main()
