#!/usr/bin/env python
"""Train the same detector with and without correlation losses, under the same seed, and compare."""

import argparse

from runs import COLUMNS, ROOT, table_row, train
from tabulate import tabulate

LOSSES = ("baseline", "concordance", "spearman")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... for every training")
    args = parser.parse_args()
    rows = []
    for number, loss in enumerate(LOSSES, 1):
        print(f"==== {number} of {len(LOSSES)}: {loss}", flush=True)
        results = train(
            f"configs/quick/retinanet_{loss}.yaml",
            ROOT / "output" / "compare" / f"{loss}_seed{args.seed}",
            ["SEED", str(args.seed), *args.opts],
        )
        rows.append(table_row(loss, results))
    print()
    print(tabulate(rows, ("loss", *COLUMNS), floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
