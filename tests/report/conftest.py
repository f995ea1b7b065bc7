import json

import pytest

from corrdet.report import read_training
from tests.helpers.problems import random_problem
from tests.helpers.report import without_figures  # noqa: F401


@pytest.fixture
def problem():
    content, rows = random_problem(0, images=20)
    return content, rows


@pytest.fixture
def training(tmp_path):
    """A folder with what a training logs, and a last line that is being written."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"iteration": 20 * n + 19, "total_loss": 3 / (n + 1), "loss_cls": 2 / (n + 1),
         "loss_odd/<b>": 1.0, "AIC/mean": 0.5 - 0.001 * n, "AIC/sum": 40.0, "lr": 0.1,
         "correlation/spearman": float("nan") if n == 3 else n / 400,
         "positives/factor-mean": 1.5, "positives/factor-p10": 1.1, "positives/factor-p50": 1.4,
         "positives/factor-p90": 1.9}
        for n in range(400)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.json").write_text(text + '{"iteration": 80')
    return read_training(folder, "run")
