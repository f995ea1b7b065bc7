#!/usr/bin/env python
"""Convert a checkpoint of the original Sparse R-CNN (github.com/PeizeSun/SparseR-CNN) for corrdet.

Only names of parameters change. The result is for MODEL.WEIGHTS of a config with as many stages,
proposals and classes, and with the original's order of colors:
configs/sparse_rcnn/sparse_rcnn_R50_3x_300proposals.yaml for its R50_300pro_3x. Files that would run
code when they are loaded are refused.
"""

from corrdet.engine.conversion import conversion_command
from corrdet.engine.converters.sparse_rcnn import convert


def main() -> None:
    conversion_command(__doc__, convert)


if __name__ == "__main__":
    main()
