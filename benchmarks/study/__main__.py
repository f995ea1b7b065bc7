"""Train what is missing of a grid, or report what there is.

A run that was interrupted goes on from its last checkpoint, one that is finished is skipped, and
one that another process or machine is at is left to it.
"""

import argparse
import os
import sys
from pathlib import Path

from corrdet.errors import errors_in_one_line
from corrdet.files import atomic_write

from .grid import read_grid
from .report import forest_plot, markdown
from .running import read_results, run_all


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("grid", help="YAML, such as benchmarks/study/two_cores.yaml")
    parser.add_argument("--folder", type=Path, help="of the study; output/study/NAME if not given")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count(),
        help="trainings at once: on a CPU one for each core, as by default; on a GPU as many as "
        "its memory takes",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--report", action="store_true", help="only the table and the figure")
    parser.add_argument("--dry-run", action="store_true", help="only list what is missing")
    args = parser.parse_args(arguments)
    with errors_in_one_line():
        grid = read_grid(args.grid)
        folder = args.folder or Path("output") / "study" / grid.name
        if args.report:
            return _report(grid, folder)
        done = {result["run"] for result in read_results(folder)}
        missing = [run for run in grid.runs if run.name not in done]
        print(f"{len(grid.runs)} runs, {len(missing)} of them missing, in {folder}")
        if args.dry_run:
            print("\n".join(run.name for run in missing))
            return 0
        failures = run_all(missing, folder, max(args.processes, 1), max(args.threads, 1))
    for name, why in failures.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    return 1 if failures else 0


def _report(grid, folder: Path) -> int:
    results = read_results(folder)
    text = markdown(grid, results)
    print(text)
    with atomic_write(folder / "report.md") as file:
        file.write(text)
    forest_plot(grid, results, folder / "effects.svg")
    print(f"{folder / 'report.md'}\n{folder / 'effects.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
