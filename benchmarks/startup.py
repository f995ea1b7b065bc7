"""What the start of a training costs: seconds to the first batch, and memory, beside Detectron2's.

Each row is a run of its own, of one process or of several: load and check a data set, take a first
batch, make the evaluator of a test set of 5000 images. Both sides read the same files and have the
same number of loaders' workers; no model is built. Memory is a process's share of what it has with
others (Pss), with its loader's workers, looked at every second; its peak is the worst
process's. CPU seconds are those of the slowest process, and depend less on what else the machine
does: their ratio is what is judged.
"""

import argparse
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.coco_sized import make
from benchmarks.kernels import machine
from benchmarks.report import replace, split_at_markers
from corrdet.files import atomic_write

SIDES = ("Detectron2", "corrdet")
DEMANDED_SECONDS, DEMANDED_MEMORY = 1.0, 0.7
LOOK_EVERY = 1.0  # seconds; a look at gigabytes takes a while itself
SECTION = "startup"


@dataclass(frozen=True)
class Data:
    """What a data set is as large as.

    Attributes:
        name: for tables.
        images, objects: how many.
        polygons: whether objects have masks, and masks are trained.
        part_of: what it is a tenth of, and is extrapolated to.
    """

    name: str
    images: int
    objects: int
    polygons: bool
    part_of: str | None = None


COCO = Data("COCO", 118_000, 860_000, True)
TENTH = Data("a tenth of COCO", 11_800, 86_000, True)
OBJECTS365 = Data("a tenth of Objects365", 174_200, 2_540_700, False, "Objects365")
VAL = Data("val", 5_000, 36_500, True)
# Eight of Detectron2's processes at COCO's size take 30 GB.
RUNS = (
    (COCO, 1, SIDES),
    (COCO, 8, ("corrdet",)),
    (TENTH, 1, SIDES),
    (TENTH, 8, SIDES),
    (OBJECTS365, 1, SIDES),
)


# ---- A process that starts as a training does.


def start(side: str, train: str, test: str, *, masks: bool, workers: int) -> Iterator[str]:
    """Load what a training needs; yields a word after each step.

    Args:
        side: one of SIDES.
        train: annotation file and image folder, with a colon between.
        test: the same.
        masks: whether they are trained.
        workers: of the loader.
    """
    from detectron2.config import get_cfg
    from detectron2.data.datasets import register_coco_instances

    from corrdet import add_corrdet_config

    cfg = get_cfg()
    add_corrdet_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("benchmark_train",), ("benchmark_test",)
    for name, place in (("benchmark_train", train), ("benchmark_test", test)):
        register_coco_instances(name, {}, *place.split(":"))
    yield "imported"
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        if side == "corrdet":
            yield from _start_corrdet(cfg)
        else:
            yield from _start_detectron2(cfg)


def _start_corrdet(cfg) -> Iterator[str]:
    from corrdet.engine import CorrdetTrainer
    from corrdet.engine.test_sets import check_test_sets

    loader = CorrdetTrainer.build_train_loader(cfg)
    check_test_sets(CorrdetTrainer, cfg, is_own=False)
    yield "loader"
    next(loader)
    yield "batch"
    evaluator = CorrdetTrainer.build_evaluator(cfg, "benchmark_test")
    yield "evaluator"
    loader.close()
    del evaluator


def _start_detectron2(cfg) -> Iterator[str]:
    from detectron2.data import build_detection_train_loader
    from detectron2.evaluation import COCOEvaluator

    loader = iter(build_detection_train_loader(cfg))
    yield "loader"
    next(loader)
    yield "batch"
    evaluator = COCOEvaluator("benchmark_test", output_dir=cfg.OUTPUT_DIR)
    yield "evaluator"
    del loader, evaluator


def run_as_process(side: str, train: str, test: str, args: argparse.Namespace) -> None:
    """Start, print what each step took, and stay until the parent has looked."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    if world_size > 1:
        from corrdet.engine.launching import Place, join_group

        join_group(Place(rank, world_size, rank, "machine", args.url), "cpu")
    for step in start(side, train, test, masks=args.masks, workers=args.workers):
        times = os.times()
        line = {"step": step, "at": time.time(), "cpu": times.user + times.system}
        print(json.dumps({**line, "bytes": shared_out(os.getpid())}), flush=True)
        if step == "evaluator":
            sys.stdin.readline()
    os._exit(0)  # what is left is not measured


# ---- The process that looks.


class Watch(threading.Thread):
    """Looks at the memory of processes and their children until it is told to stop.

    Attributes:
        peaks: bytes of each process with its children, the most that were seen.
        peak_of_all: of all together, at one time.
        latest: bytes of each, when looked at last.
    """

    def __init__(self, pids: Sequence[int]):
        super().__init__(daemon=True)
        self._pids, self._ends = list(pids), threading.Event()
        self.peaks = [0] * len(self._pids)
        self.latest = [0] * len(self._pids)
        self.peak_of_all = 0

    def run(self) -> None:
        while not self._ends.wait(LOOK_EVERY):
            self.look()

    def look(self) -> None:
        self.latest = [shared_out(pid) for pid in self._pids]
        self.peaks = list(map(max, self.peaks, self.latest))
        self.peak_of_all = max(self.peak_of_all, sum(self.latest))

    def end(self) -> None:
        self._ends.set()
        self.join()
        self.look()


def shared_out(pid: int) -> int:
    """Bytes of a process and its descendants; pages that several have are divided among them."""
    size = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                size = 1024 * int(line.split()[1])
        for task in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            size += sum(map(shared_out, map(int, children)))
    return size


def measure(
    side: str, processes: int, train: str, test: str, *, masks: bool = True, workers: int = 2
) -> dict:
    """Seconds to each step, and bytes, of one run; see :func:`start`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks.startup", "--process", side, train, test]
    command += ["--workers", str(workers), "--url", url, *(["--masks"] if masks else [])]
    begin = time.time()
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    watch = Watch([process.pid for process in started])
    watch.start()
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}
    imported = 0
    errors = [threading.Thread(target=_drain, args=(process,)) for process in started]
    for thread in errors:
        thread.start()
    try:
        for process in started:
            line = {"step": None}
            while line["step"] != "evaluator":
                text = process.stdout.readline()
                if not text:
                    raise SystemExit(f"{side}: a process has failed: {_last_words(process)}")
                if not text.startswith('{"step"'):
                    continue
                line = json.loads(text)
                step = line["step"]
                seconds[step] = max(seconds.get(step, 0.0), line["at"] - begin)
                cpu[step] = max(cpu.get(step, 0.0), line["cpu"])
                if step == "imported":
                    imported = max(imported, line["bytes"])
        watch.end()
    finally:
        for process in started:
            process.kill()
            process.wait()
    return {
        "side": side, "processes": processes, "seconds": seconds, "cpu_seconds": cpu,
        "imported_bytes": imported, "peaks": watch.peaks, "peak_of_all": watch.peak_of_all,
        "held": watch.latest,
    }  # fmt: skip


_SAID: dict[int, list[str]] = {}


def _drain(process: subprocess.Popen) -> None:
    said = _SAID.setdefault(process.pid, [])
    for line in process.stderr:
        said.append(line)
        del said[:-20]


def _last_words(process: subprocess.Popen) -> str:
    return "".join(_SAID.get(process.pid, []))


def measure_all(folder: Path, quick: bool, workers: int) -> Iterator[dict]:
    """All of RUNS, in data sets that are made in the folder, with ``quick`` of a hundredth."""
    divisor = 100 if quick else 1

    def place(data: Data) -> str:
        own = folder / data.name.replace(" ", "_")
        if not (own / "instances.json").exists():
            images, objects = data.images // divisor, data.objects // divisor
            make(own, images, objects, polygons=data.polygons)
        return f"{own / 'instances.json'}:{own / 'images'}"

    for data, processes, sides in RUNS:
        for side in sides:
            row = measure(
                side, processes, place(data), place(VAL), masks=data.polygons, workers=workers
            )
            yield {"data": asdict(data), **row}


# ---- What is shown.


def table(results: dict) -> str:
    """As Markdown."""
    rows, notes = [], []
    for row in results["rows"]:
        other = _beside(results["rows"], row)
        peak, seconds = max(row["peaks"]), row["seconds"]["batch"]
        compared = ["", ""]
        if other is not None and row["side"] == "corrdet":
            time_ratio = row["cpu_seconds"]["batch"] / other["cpu_seconds"]["batch"]
            memory_ratio = peak / max(other["peaks"])
            compared = [
                f"{time_ratio:.2f} {_mark(time_ratio, DEMANDED_SECONDS)}",
                f"{memory_ratio:.2f} {_mark(memory_ratio, DEMANDED_MEMORY)}",
            ]
        rest = sorted(row["peaks"])[:-1]
        rows.append(
            [
                row["data"]["name"], row["processes"], row["side"], f"{seconds:.0f}",
                f"{row['cpu_seconds']['batch']:.0f}", compared[0], _gigabytes(peak), compared[1],
                _gigabytes(rest[len(rest) // 2]) if rest else "", _gigabytes(row["peak_of_all"]),
            ]
        )  # fmt: skip
        if row["data"]["part_of"]:
            notes.append(_extrapolated(row))
    headers = [
        "data", "processes", "", "s to the first batch", "CPU s", f"ratio, <= {DEMANDED_SECONDS:g}",
        "GB at the peak", f"ratio, <= {DEMANDED_MEMORY:g}", "GB, median of the others", "GB, all",
    ]  # fmt: skip
    where = results["machine"]
    shown = tabulate(rows, headers, "github", disable_numparse=True)
    lines = [f"Machine: {where['cores']} cores of {where['cpu']}, torch {where['torch']}", shown]
    return "\n\n".join([*lines, *notes])


def _extrapolated(row: dict) -> str:
    """Ten times what came on top of importing."""
    seconds, first = row["seconds"]["batch"], row["seconds"]["imported"]
    peak, base = max(row["peaks"]), row["imported_bytes"]
    return (
        f"Extrapolated to {row['data']['part_of']}, not measured: {row['side']} "
        f"{first + 10 * (seconds - first):.0f} s, {_gigabytes(base + 10 * (peak - base))} GB."
    )


def _beside(rows: Sequence[dict], row: dict) -> dict | None:
    """Detectron2's row of the same data and number of processes."""
    for other in rows:
        if other["side"] != "corrdet" and all(
            other[key] == row[key] for key in ("data", "processes")
        ):
            return other
    return None


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _mark(ratio: float, demanded: float) -> str:
    return "ok" if ratio <= demanded else "above"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of every size")
    parser.add_argument("--workers", type=int, default=2, help="of each loader (default: 2)")
    parser.add_argument("--folder", help="where the data are made and kept; by default they go")
    parser.add_argument("--json", metavar="FILE", help="write machine, command and all numbers")
    parser.add_argument("--markdown", metavar="FILE", help="rewrite the table of this page")
    for flag in ("--process", "--url", "--masks"):  # of the processes that are measured
        options = {"--process": {"nargs": 3}, "--masks": {"action": "store_true"}}.get(flag, {})
        parser.add_argument(flag, help=argparse.SUPPRESS, **options)
    args = parser.parse_args(arguments)
    if args.process:
        run_as_process(*args.process, args)
    if args.markdown:
        split_at_markers(args.markdown, SECTION)  # an error now, not after minutes
    results: dict = {
        "command": f"python -m benchmarks.startup {shlex.join(arguments)}".strip(),
        "machine": {**machine("cpu"), "cores": os.cpu_count()},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        for row in measure_all(Path(args.folder or temporary), args.quick, args.workers):
            results["rows"].append(row)
            print(f"{row['data']['name']}: {row['side']} x {row['processes']}", file=sys.stderr)
            if args.json:  # what is done stays, as all of it takes a while
                with atomic_write(args.json) as file:
                    json.dump(results, file, indent=1)
    print(table(results))
    if args.markdown:
        replace(args.markdown, SECTION, f"`{results['command']}`\n\n{table(results)}")


if __name__ == "__main__":
    main()
