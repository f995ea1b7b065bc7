#!/usr/bin/env python
"""Train the same detector with and without correlation losses, under the same seed, and compare."""

import argparse

from runs import ABOUT_BETAS, COLUMNS, ROOT, coupling_weights, table_row, train
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
        output = ROOT / "output" / "compare" / f"{loss}_seed{args.seed}"
        results = train(
            f"configs/quick/retinanet_{loss}.yaml",
            output,
            ["SEED", str(args.seed), *args.opts],
        )
        name, *values = table_row(loss, results)
        rows.append([name, coupling_weights(output), *values])
    print()
    # Weights as they are: rounded like the results, 0.15 would be shown as 0.1.
    headers = ("loss", "weight", *COLUMNS)
    print(tabulate(rows, headers, floatfmt=".1f", tablefmt="github", disable_numparse=[1]))
    print(f"\n{ABOUT_BETAS}")


if __name__ == "__main__":
    main()
