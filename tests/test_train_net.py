"""The command line, in processes of its own."""

import json
import subprocess
from pathlib import Path

import pytest


def run(arguments, **kwargs):
    return subprocess.run(arguments, capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which a training has run; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def weights(trained, tiny_command) -> Path:
    path = trained / "model_final.pth"
    if not path.exists():
        finished = run(tiny_command(trained))
        assert finished.returncode == 0, finished.stderr
        assert "eta" in finished.stdout or "eta" in finished.stderr
    return path


def results(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text().splitlines()[-1])


def test_eval_only_gives_what_training_ended_with(weights, trained, tiny_command, tmp_path):
    finished = run(tiny_command(tmp_path, "MODEL.WEIGHTS", weights, flags=["--eval-only"]))
    assert finished.returncode == 0, finished.stderr
    header, values = [line for line in finished.stdout.splitlines() if "copypaste:" in line][-2:]
    printed = dict(
        zip(
            header.split("copypaste: ")[1].split(","),
            values.split("copypaste: ")[1].split(","),
            strict=False,
        )
    )
    expected = results(trained)
    assert {"AP", "AP50", "AP75", "beta_cls", "beta_img"} <= printed.keys()
    for name, value in printed.items():
        assert float(value) == pytest.approx(expected[f"bbox/{name}"], abs=1e-4, nan_ok=True)
    assert not (tmp_path / "model_final.pth").exists()


def test_detectron2s_model_zoo_layout_of_weights_loads(weights, tiny_command, tmp_path):
    import pickle

    import torch

    model = torch.load(weights, weights_only=True)["model"]
    path = tmp_path / "zoo.pkl"
    arrays = {name: value.numpy() for name, value in model.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    finished = run(tiny_command(tmp_path, "MODEL.WEIGHTS", path, flags=["--eval-only"]))
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    "flags, overrides, message",
    [
        ([], ["SOLVER.MAX_ITERS", 3], "did you mean 'SOLVER.MAX_ITER'"),
        ([], ["MODEL.CRITERION.COUPLINGS", "('corelation',)"], "did you mean 'correlation'"),
        ([], ["DATASETS.TRAIN", "('nothing',)"], "unknown data set 'nothing'"),
        ([], ["MODEL.WEIGHTS", "gone.pth"], "no weights at 'gone.pth'"),
        (["--eval-only"], [], "--eval-only needs weights: MODEL.WEIGHTS"),
        (["--eval-only"], ["MODEL.WEIGHTS", "gone.pth"], "no weights at 'gone.pth'"),
        ([], ["DATASETS.REGISTER", "('x=gone.json:.',)"], "no annotation file gone.json"),
        ([], ["SOLVER.BASE_LR", 1e30, "SOLVER.OPTIMIZER", "SGD"], "training stopped at iteration"),
    ],
)
def test_errors_end_with_one_line_that_says_what_is_wrong(
    flags, overrides, message, tiny_command, tmp_path
):
    finished = run(tiny_command(tmp_path, *overrides, flags=flags))
    assert finished.returncode == 1
    last = finished.stderr[finished.stderr.rindex("error: ") :]
    assert message in last
    assert "Traceback" not in last
    assert not list(tmp_path.glob("*.pth"))


def test_help_is_detectron2s(tmp_path):
    import sys

    root = Path(__file__).resolve().parent.parent
    finished = run([sys.executable, str(root / "train_net.py"), "--help"])
    for argument in ("--config-file", "--resume", "--eval-only", "--num-gpus", "--dist-url"):
        assert argument in finished.stdout
