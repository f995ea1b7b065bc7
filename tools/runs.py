"""Running train_net.py and reading what it wrote, for the demo and the comparison."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("AP", "AP50", "AP75", "beta_img", "beta_cls")
ABOUT_BETAS = """\
All in percent, higher is better. beta_img, beta_cls: rank correlation of score and IoU within an
image before post-processing, and within a class after it (thesis "Correlation Loss", chapter 3)."""


def train(config: str, output: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Train and evaluate in a process of its own, whose output is shown.

    Args:
        config: file, relative to the repository.
        output: OUTPUT_DIR.
        overrides: ``KEY VALUE ...``.

    Returns:
        the box results of the last evaluation, in percent.
    """
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(ROOT / config)]
    finished = subprocess.run([*command, "OUTPUT_DIR", str(output), *overrides])
    if finished.returncode:
        sys.exit(f"training failed: {' '.join(command)}\nits log is {output / 'log.txt'}")
    return read_results(output)


def read_results(output: Path) -> dict[str, float]:
    """The box results of the last evaluation in ``metrics.json``, without their ``bbox/``.

    With ``mask AP`` where masks were evaluated.
    """
    results: dict[str, float] = {}
    for line in (output / "metrics.json").read_text().splitlines():
        metrics = json.loads(line)
        if "bbox/AP" in metrics:
            results = {
                key.removeprefix("bbox/"): value
                for key, value in metrics.items()
                if key.startswith("bbox/")
            }
            if "segm/AP" in metrics:
                results["mask AP"] = metrics["segm/AP"]
    if not results:
        sys.exit(f"{output / 'metrics.json'} holds no evaluation")
    return results


def criterion_summary(output: Path) -> str:
    """The losses of a run, and the weights of its couplings, from the config that it wrote."""
    criterion = yaml.safe_load((output / "config.yaml").read_text())["MODEL"]["CRITERION"]
    couplings = [f"{name} ({criterion[name.upper()]['WEIGHT']})" for name in criterion["COUPLINGS"]]
    return ", ".join([criterion["CLASSIFICATION"], criterion["LOCALIZATION"], *couplings])


def table_row(name: str, results: dict[str, float]) -> list:
    """A row of a table with the columns COLUMNS."""
    return [name, *(results.get(column, float("nan")) for column in COLUMNS)]
