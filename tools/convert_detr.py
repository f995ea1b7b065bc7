#!/usr/bin/env python
"""Convert a checkpoint of the original DETR (github.com/facebookresearch/detr) for corrdet.

Names of the backbone's parameters change, and the classifier keeps the 80 classes of COCO out of 91
ids: the others have no objects. The result is for MODEL.WEIGHTS of configs/detr/detr_R50.yaml, from
detr-r50-e632da11.pth. Files that would run code when they are loaded are refused.
"""

from corrdet.engine.conversion import conversion_command
from corrdet.engine.converters.detr import convert


def main() -> None:
    conversion_command(__doc__, convert)


if __name__ == "__main__":
    main()
