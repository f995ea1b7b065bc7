#!/usr/bin/env python
"""Train detectors with and without the losses of the papers, under the same seed, and compare."""

import argparse
import sys
from pathlib import Path

from runs import ABOUT_BETAS, COLUMNS, ROOT, criterion_summary, read_results, table_row, train
from tabulate import tabulate

FOLDERS = [ROOT / "configs" / name for name in ("quick", "photographs")]


def configs_of(detector: str) -> list[str]:
    """A detector's small configs, relative to the repository, the baseline first."""
    paths = [path for folder in FOLDERS for path in sorted(folder.glob(f"{detector}_*.yaml"))]
    # The loss is the last word: paa_star_ape is not one of paa.
    found = [path for path in paths if path.stem.rpartition("_")[0] == detector]
    found.sort(key=lambda path: not path.stem.endswith("_baseline"))
    return [f"configs/{path.parent.name}/{path.name}" for path in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--detectors",
        default="retinanet",
        help="as the names in configs/quick and configs/photographs begin: atss,fcos",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--show", action="store_true", help="only the table, of the trainings that are finished"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... for every training")
    args = parser.parse_args()
    configs = []
    for detector in args.detectors.split(","):
        found = configs_of(detector)
        if not found:
            folders = " or ".join(str(folder) for folder in FOLDERS)
            sys.exit(f"expected a detector with configs in {folders}, got {detector!r}")
        configs += found
    rows = []
    for number, config in enumerate(configs, 1):
        name = Path(config).stem
        output = ROOT / "output" / "compare" / f"{name}_seed{args.seed}"
        if not args.show:
            print(f"==== {number} of {len(configs)}: {name}", flush=True)
            overrides = ["SEED", str(args.seed), *args.opts]
            results = train(config, output, overrides)
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
