#!/usr/bin/env python
"""Export a trained dense detector to a file that runs without corrdet and Detectron2.

    python tools/export_model.py --config-file FILE --output model.pt2 MODEL.WEIGHTS model_final.pth

The suffix says what is written: .pt2 a program of torch.export, .ts TorchScript. Both take an
image, (3, H, W) float32 in 0..255 with channels in the order of INPUT.FORMAT, resized as for
training, and give boxes (D, 4) in its pixels, scores (D,) and classes (D,). They need torchvision's
operators:

    import torch, torchvision
    detect = torch.export.load("model.pt2").module()    # or torch.jit.load("model.ts")
    boxes, scores, classes = detect(image)

The file runs on the device of MODEL.DEVICE.
"""

import argparse
from pathlib import Path

import torch

from corrdet.engine import CorrdetTrainer, StrictCheckpointer, check_run, load_config
from corrdet.errors import ConfigError, errors_in_one_line
from corrdet.files import atomic_write
from corrdet.modeling import check_exportable, export_detector, trace_detector

SUFFIXES = (".pt2", ".ts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE", help="with suffix .pt2 or .ts")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of all images; for .pt2 only, and needed for DSSD and RefineDet. Otherwise any size "
        "whose sides are larger than the largest stride, 128 for P7",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args()
    suffix = Path(args.output).suffix
    if suffix not in SUFFIXES:
        parser.error(f"--output must end with {' or '.join(SUFFIXES)}, got {args.output!r}")
    if args.image_size and (suffix != ".pt2" or min(args.image_size) < 1):
        parser.error("--image-size takes two positive numbers, for .pt2")
    with errors_in_one_line(f"{args.output} was not written: "):
        export(args, suffix)
    print(f"{args.output} written")


def export(args: argparse.Namespace, suffix: str) -> None:
    """
    Raises:
        ConfigError: a config that cannot be used, no weights, or no dense detector.
        WeightsReadError, CheckpointError: weights that cannot be read, or of another model.
    """
    cfg = load_config(args)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("it needs weights: MODEL.WEIGHTS path/to/model_final.pth")
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()  # it needs no data
    check_run(cfg, eval_only=True)
    with atomic_write(args.output, "wb") as file:  # an error now, not after minutes
        model = CorrdetTrainer.build_model(cfg)
        try:
            check_exportable(model)
        except TypeError as error:
            raise ConfigError(str(error)) from error
        StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        if suffix == ".ts":
            torch.jit.save(trace_detector(model), file)
        else:
            size = tuple(args.image_size) if args.image_size else None
            torch.export.save(export_detector(model, size), file)


if __name__ == "__main__":
    main()
