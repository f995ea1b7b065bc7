#!/usr/bin/env python
"""Train detectors with and without the losses of the papers, under the same seed, and compare."""

import argparse
import sys

from runs import ABOUT_BETAS, COLUMNS, ROOT, criterion_summary, read_results, table_row, train
from tabulate import tabulate

QUICK = ROOT / "configs" / "quick"


def configs_of(detector: str) -> list[str]:
    """The names of a detector's quick configs, the baseline first."""
    names = (path.stem for path in sorted(QUICK.glob(f"{detector}_*.yaml")))
    # The loss is the last word: paa_star_ape is not one of paa.
    config_names = [name for name in names if name.rpartition("_")[0] == detector]
    return sorted(config_names, key=lambda name: not name.endswith("_baseline"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--detectors", default="retinanet", help="as the names in configs/quick begin: atss,fcos"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--show", action="store_true", help="only the table, of the trainings that are finished"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... for every training")
    args = parser.parse_args()
    names = []
    for detector in args.detectors.split(","):
        found = configs_of(detector)
        if not found:
            sys.exit(f"expected a detector with configs in {QUICK}, got {detector!r}")
        names += found
    rows = []
    for number, name in enumerate(names, 1):
        output = ROOT / "output" / "compare" / f"{name}_seed{args.seed}"
        if not args.show:
            print(f"==== {number} of {len(names)}: {name}", flush=True)
            overrides = ["SEED", str(args.seed), *args.opts]
            results = train(f"configs/quick/{name}.yaml", output, overrides)
        elif (output / "model_final.pth").exists():
            results = read_results(output)
        else:
            continue
        name, *values = table_row(name, results)
        rows.append([name, criterion_summary(output), *values, results.get("mask AP")])
    headers = ["config", "losses", *COLUMNS, "mask AP"]
    if all(row[-1] is None for row in rows):
        headers.pop()
        rows = [row[:-1] for row in rows]
    print()
    print(tabulate(rows, headers, floatfmt=".1f", tablefmt="github"))
    print(f"\n{ABOUT_BETAS}")


if __name__ == "__main__":
    main()
