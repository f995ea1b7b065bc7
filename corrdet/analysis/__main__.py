"""Measures of the agreement of scores and boxes, for results of any detector in any framework.

``python -m corrdet.analysis --ground-truth gt.json --detections a.json [b.json ...] --output DIR``
takes COCO-format files, prints a table, and writes ``metrics.json`` and ``report.html``. With
several results files, the others are compared with the first, on the same images. docs/measures.md
tells what the measures mean.
"""

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from corrdet.coco import FORMATS, IOU_TYPES
from corrdet.errors import WriteError, errors_in_one_line
from corrdet.files import ReadError, atomic_write
from corrdet.measures.ranking import LRP_THRESHOLDS
from corrdet.report import read_training, write_report

from .export import FORMS, write_tables
from .metrics import MIN_SAMPLES, analyze, metrics, names_of, table
from .provenance import provenance


def _check_output(folder: str, files: Sequence[str]) -> None:
    """
    Raises:
        WriteError: the files cannot be written.
    """
    if not folder:
        raise WriteError("--output: expected a folder, got nothing")
    for path in files:
        if os.path.isdir(path):
            raise WriteError(f"--output: expected a place for a file, got the folder {path}")
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise WriteError(f"--output: expected a folder, got the file {existing}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise WriteError(f"--output: expected a folder to write to, got {existing}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="corrdet.analysis", description=__doc__.splitlines()[0])
    parser.add_argument("--ground-truth", required=True, help="COCO annotation file")
    parser.add_argument(
        "--detections", required=True, nargs="+", metavar="FILE", help="COCO results files"
    )
    parser.add_argument("--output", required=True, help="folder for metrics.json and report.html")
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox", help="default: bbox")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="of the results: auto for COCO's, ultralytics', torchvision's and Hugging Face's; "
        "coco for COCO's alone; xyxy where boxes are x1, y1, x2, y2 (default: auto)",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out rows that cannot be used, and count them, in place of an error",
    )
    parser.add_argument(
        "--lrp-thresholds",
        choices=LRP_THRESHOLDS,
        default="scores",
        help="what oLRP is a minimum over: every detection's score, or 0:0.01:1 as it was defined "
        "in 2018 (default: scores)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="of an image and class that are evaluated (default: 100, as by COCO); where the "
        "annotations are those of LVIS, of an image (default: 300)",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help=f"samples of the images for confidence intervals, {MIN_SAMPLES} or more; 0 for none "
        "(default: 1000)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the images, for pictures of the most inconsistent detections",
    )
    parser.add_argument(
        "--training",
        nargs="+",
        default=[],
        metavar="DIR",
        help="output folders of trainings, for their curves (Detectron2's metrics.json)",
    )
    parser.add_argument(
        "--export",
        nargs="+",
        choices=FORMS,
        default=[],
        metavar="FORM",
        help="write the tables to --output too: csv, markdown, latex (with booktabs)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    args = parser.parse_args(arguments)
    if args.bootstrap != 0 and args.bootstrap < MIN_SAMPLES:
        parser.error(f"expected 0 or at least {MIN_SAMPLES} for --bootstrap, got {args.bootstrap}")
    if args.max_detections is not None and args.max_detections < 1:
        parser.error(f"expected at least 1 for --max-detections, got {args.max_detections}")
    if args.seed < 0:
        parser.error(f"expected a number of 0 or more for --seed, got {args.seed}")
    path = os.path.join(args.output, "metrics.json")
    report = os.path.join(args.output, "report.html")
    with errors_in_one_line():
        # First what can fail at once.
        _check_output(args.output, (path, report))
        for folder in args.training:
            if not os.path.isfile(os.path.join(folder, "metrics.json")):
                raise ReadError(f"--training: expected a folder with metrics.json, got {folder}")
        runs = [
            read_training(folder, name)
            for folder, name in zip(args.training, names_of(args.training), strict=True)
        ]
        if args.images is not None and not os.path.isdir(args.images):
            raise ReadError(f"--images: expected a folder, got {args.images}")
        results, samples = analyze(
            args.ground_truth,
            args.detections,
            iou_type=args.iou_type,
            form=args.format,
            skip_bad=args.skip_bad,
            lrp_thresholds=args.lrp_thresholds,
            max_detections=args.max_detections,
            samples=args.bootstrap,
            seed=args.seed,
        )
        content = metrics(results, samples)
        command = sys.argv[1:] if arguments is None else arguments
        content["made"] = provenance([args.ground_truth, *args.detections], command)
        notes = content["notes"]
        with atomic_write(path) as file:
            json.dump(content, file, indent=1, allow_nan=False)
        for form in args.export:
            write_tables(args.output, content, form)
        problems = write_report(
            report,
            results,
            content,
            notes=notes,
            images=args.images,
            training=runs,
            progress=True,
        )
    # A console that lacks a character shows its number.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(table(results, samples, width))
    notes += [f"Not drawn: {problem}." for problem in problems]
    print("\n".join(["", *notes, f"All of it, by class too: {path}", f"With figures: {report}"]))


if __name__ == "__main__":
    main()
