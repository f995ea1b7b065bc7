"""The command line, in processes of its own."""

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.disks import small_disk
from tests.helpers.training import ROOT

pytestmark = pytest.mark.slow


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


def assert_prints_results_of(folder, finished):
    assert finished.returncode == 0, finished.stderr
    header, values = [line for line in finished.stdout.splitlines() if "copypaste:" in line][-2:]
    printed = dict(
        zip(
            header.split("copypaste: ")[1].split(","),
            values.split("copypaste: ")[1].split(","),
            strict=False,
        )
    )
    expected = results(folder)
    assert {"AP", "AP50", "AP75", "beta_cls", "beta_img"} <= printed.keys()
    for name, value in printed.items():
        assert float(value) == pytest.approx(expected[f"bbox/{name}"], abs=1e-4, nan_ok=True)


def test_eval_only_gives_what_training_ended_with(weights, trained, tiny_command, tmp_path):
    overrides = "MODEL.WEIGHTS", weights, "TEST.REPORT", True
    finished = run(tiny_command(tmp_path, *overrides, flags=["--eval-only"]))
    assert_prints_results_of(trained, finished)
    assert not (tmp_path / "model_final.pth").exists()
    report = tmp_path / "inference" / "tiny_val" / "report.html"
    assert f"report: {report}" in finished.stdout
    for text in ("<html", "beta_<wbr>cls", "AIC-mean", 'id="pictures"'):
        assert text in report.read_text()


def test_killed_while_writing_an_evaluation_or_a_report(weights, tiny_command, tmp_path):
    overrides = ("MODEL.WEIGHTS", weights, "TEST.REPORT", True)
    flags = ["--eval-only", "--import", ROOT / "tests/helpers/faults.py"]
    words = tiny_command(tmp_path, *overrides, flags=flags)
    for folder, name in (("inference", "measures.json"), ("inference/tiny_val", "report.html")):
        killed = run(words, env={**os.environ, "FAULT": f"killed at {name}"})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        left = [path.name for path in (tmp_path / folder).iterdir()]
        assert name not in left
        assert any(other.startswith(f".{name}.") for other in left)
    finished = run(words, env={**os.environ, "FAULT": ""})
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "inference/tiny_val/report.html").is_file()
    assert json.loads((tmp_path / "inference/measures.json").read_text())["bbox"]
    assert not list(tmp_path.rglob(".*.tmp"))
    # As much space as for all, but for half of the report.
    pages = {p: -(-p.stat().st_size // 4096) for p in tmp_path.rglob("*.*") if p.is_file()}
    half = pages.pop(tmp_path / "inference/tiny_val/report.html") // 2
    pages[tmp_path / "log.txt"] //= 2  # of three runs, two of which did not end
    out = tmp_path / "small"
    left = 4096 * (sum(pages.values()) + half)
    assert 4096 * half > 20_000
    with small_disk(out, 8 * 2**20, left) as limit:
        assert_full(
            run(tiny_command(out, *overrides, flags=["--eval-only"]), preexec_fn=limit), out
        )
        assert (out / "inference/measures.json").exists()


def assert_full(finished, out):
    assert finished.returncode == 1, finished.stderr
    assert re.search("^error: .* was not written: (No space|File too)", finished.stderr, re.M)
    assert "Traceback" not in finished.stderr
    assert not list(out.rglob("report.html")) and not list(out.rglob(".*.tmp"))


def test_a_full_disk_while_an_evaluation_is_written(weights, tiny_command, tmp_path):
    out = tmp_path / "out"
    overrides = ("MODEL.WEIGHTS", weights, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.001)
    with small_disk(out, 4 * 2**20, 120_000) as limit:
        finished = run(tiny_command(out, *overrides, flags=["--eval-only"]), preexec_fn=limit)
        assert_full(finished, out)
        assert not (out / "inference/measures.json").exists()


def test_eval_only_with_several_views(weights, tiny_command, tmp_path):
    overrides = [
        "MODEL.WEIGHTS", weights,
        "MODEL.RETINANET.SCORE_THRESH_TEST", 0.005,
        "TEST.AUG.ENABLED", True,
        "TEST.AUG.MIN_SIZES", "(80, 96)",
        "TEST.AUG.FLIP", False,
    ]  # fmt: skip
    finished = run(tiny_command(tmp_path, *overrides, flags=["--eval-only"]))
    assert finished.returncode == 0, finished.stderr
    first, second = re.findall("copypaste: (AP,.*)", finished.stdout)
    assert "beta_img" in first and "beta_img" not in second
    for folder in ("inference", "inference_TTA"):
        assert json.loads((tmp_path / folder / "coco_instances_results.json").read_text())


def test_detectron2s_model_zoo_layout_of_weights_loads(weights, trained, tiny_command, tmp_path):
    model = torch.load(weights, weights_only=True)["model"]
    path = tmp_path / "zoo.pkl"
    arrays = {name: value.numpy() for name, value in model.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    finished = run(tiny_command(tmp_path, "MODEL.WEIGHTS", path, flags=["--eval-only"]))
    assert_prints_results_of(trained, finished)


def test_eval_only_refuses_weights_that_are_not_all_of_the_model(weights, tiny_command, tmp_path):
    model = torch.load(weights, weights_only=True)["model"]
    del model["head.cls_score.weight"]
    torch.save({"model": model}, tmp_path / "part.pth")
    overrides = ["MODEL.WEIGHTS", tmp_path / "part.pth"]
    finished = run(tiny_command(tmp_path, *overrides, flags=["--eval-only"]))
    assert finished.returncode == 1
    assert (
        "error: the weights are of another model: 1 parameters are missing or have another "
        "shape, head.cls_score.weight among them" in finished.stderr
    )


@pytest.mark.parametrize(
    "flags, overrides, message",
    [
        ([], ["SOLVER.MAX_ITERS", 3], "did you mean 'SOLVER.MAX_ITER'"),
        ([], ["MODEL.CRITERION.COUPLINGS", "('corelation',)"], "did you mean 'correlation'"),
        ([], ["DATASETS.TRAIN", "('nothing',)"], "unknown data set 'nothing'"),
        ([], ["MODEL.WEIGHTS", "gone.pth"], "no weights at 'gone.pth'"),
        (["--num-gpus", "999"], [], "--num-gpus is 999, and MODEL.DEVICE 'cpu': expected at most"),
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


def test_help_is_detectron2s():
    finished = run([sys.executable, str(ROOT / "train_net.py"), "--help"])
    for argument in ("--config-file", "--resume", "--eval-only", "--num-gpus", "--dist-url"):
        assert argument in finished.stdout


@pytest.mark.parametrize(
    "flags, overrides, message",
    [
        (
            [],
            ["MODEL.CRITERION.CORRELATION.COEFFICIENT", "spaerman"],
            "MODEL.CRITERION.CORRELATION",
        ),
        ([], ["DATASETS.TEST", "('coco_2017_val',)"], "DATASETS.TEST: data set 'coco_2017_val' is"),
        ([], ["MODEL.DEVICE", "cuda"], "MODEL.DEVICE is 'cuda', but torch sees no CUDA GPU"),
    ],
)
def test_what_is_known_to_fail_fails_before_anything_is_printed(
    flags, overrides, message, tiny_command, tmp_path
):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    finished = run(tiny_command(tmp_path, *overrides, flags=flags), env=environment)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith(f"error: {message}"), finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(workers, tiny_digits, tiny_command, tmp_path):
    json_file, root = tiny_digits["train"].removeprefix("tiny_train=").split(":")
    content = json.loads(Path(json_file).read_text())
    # Its header is whole, so that it is found when it is read.
    whole = (Path(root) / content["images"][0]["file_name"]).read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    for image in content["images"]:
        image["file_name"] = str(tmp_path / "broken.jpg")
    (tmp_path / "broken.json").write_text(json.dumps(content))
    entries = (*tiny_digits.values(), f"broken={tmp_path}/broken.json:{root}")
    finished = run(
        tiny_command(
            tmp_path / "output",
            "DATASETS.REGISTER",
            entries,
            "DATASETS.TRAIN",
            ("broken",),
            "DATALOADER.NUM_WORKERS",
            workers,
        )  # fmt: skip
    )
    assert finished.returncode == 1
    *_, last = finished.stderr.splitlines()
    assert last.startswith(f"error: cannot read image {tmp_path}/broken.jpg (")
    assert last.endswith("with DATASETS.SKIP_UNREADABLE True.")
    printed = finished.stdout + finished.stderr
    assert "Exception during training: cannot read image" in printed
    assert "Traceback" not in printed


def test_the_loss_of_the_readme_is_trained_with(tiny_command, tmp_path):
    section = (ROOT / "README.md").read_text().split("## Your own detector, your own loss")[1]
    blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)
    (source,) = [text for _, text in blocks if "@COUPLINGS.register" in text]
    (command,) = [text for _, text in blocks if "--import" in text]
    (tmp_path / "my_losses.py").write_text(source)
    arguments = shlex.split(command.replace("\\\n", " "))
    place = arguments.index("--import")
    assert arguments[place + 1] == "my_losses.py"
    overrides = arguments[place + 2 :]
    finished = run(
        tiny_command(tmp_path, *overrides, "SOLVER.MAX_ITER", 20, "DATASETS.TEST", (),
                     flags=["--import", tmp_path / "my_losses.py"])
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert results(tmp_path)["loss_gap"] > 0


def test_an_error_in_an_imported_file_keeps_its_traceback(tiny_command, tmp_path):
    (tmp_path / "mine.py").write_text("raise ValueError('mine')\n")
    finished = run(tiny_command(tmp_path, flags=["--import", tmp_path / "mine.py"]))
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr and finished.stderr.endswith("ValueError: mine\n")


# Each has corrdet's own code raise a ValueError that is nobody's message to the user, or an error
# that is one: in the training process, or where images are made ready.
IN_TRAINING = """
import torch
from corrdet.engine import CorrdetTrainer
from corrdet.errors import ConfigError
from corrdet.losses import pearson_correlation

def run_step(self):
    {statement}

CorrdetTrainer.run_step = run_step
"""
IN_THE_LOADER = """
import torch
from corrdet.data import ImageReadError, build_train_loader
from corrdet.engine import CorrdetTrainer
from corrdet.losses import pearson_correlation

def mapper(record):
    {statement}

mapper.__module__ = "__main__"  # it is sent to processes that do not import this file
CorrdetTrainer.build_train_loader = staticmethod(lambda cfg: build_train_loader(cfg, mapper))
"""
BUG = "pearson_correlation(torch.zeros(2), torch.zeros(3))"
PLACES = {
    "training": (IN_TRAINING, "raise ConfigError('first line\\nsecond line')"),
    "loader": (IN_THE_LOADER, "raise ImageReadError('first line\\nsecond line')"),
}


@pytest.mark.parametrize("place", ["training", "loader"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_bug_keeps_its_traceback_and_a_users_error_has_none(
    place, processes, tiny_command, tmp_path
):
    template, users_error = PLACES[place]

    def train(statement):
        (tmp_path / "patch.py").write_text(template.format(statement=statement))
        command = tiny_command(
            tmp_path / "output",
            *("DATALOADER.NUM_WORKERS", 1, "DATASETS.TEST", "()"),
            flags=[
                *("--import", tmp_path / "patch.py"),
                *("--num-gpus", processes, "--dist-url", "auto"),
            ],
        )
        finished = run(command)
        assert finished.returncode == 1
        return finished.stderr, finished.stdout + finished.stderr

    errors, printed = train(BUG)
    assert "Traceback" in errors and "error: " not in errors
    assert re.search(r'corrdet/losses/correlation.py", line \d+, in .*\n.*raise ValueError', errors)
    if place == "loader":
        assert "in DataLoader worker process 0" in errors
        assert re.search(r", line \d+, in mapper", errors)

    errors, printed = train(users_error)
    assert "Traceback" not in printed, printed
    ranks = re.findall("^error: (?:rank ([01]): )?first line\nsecond line$", errors, re.MULTILINE)
    assert ranks and len(ranks) == len(set(ranks)) and set(ranks) <= {"", "0", "1"}
    assert (ranks == [""]) == (processes == 1)
    assert "Exception during training: first line" in printed
