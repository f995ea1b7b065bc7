"""The commands in tools/."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model

from corrdet.engine import load_config
from corrdet.engine.weights import MissingWeightsError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs():
    return load("runs")


def test_the_last_evaluation_is_read(runs, tmp_path):
    lines = [
        {"iteration": 9, "bbox/AP": 1.0, "bbox/beta_cls": 2.0},
        {"iteration": 19, "bbox/AP": 30.5, "bbox/AP50": 60.0},
        {"iteration": 29, "loss_cls": 0.1},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = runs.read_results(tmp_path)
    assert results == {"AP": 30.5, "AP50": 60.0}
    row = runs.table_row("baseline", results)
    assert row[:3] == ["baseline", 30.5, 60.0] and len(row) == 1 + len(runs.COLUMNS)
    assert math.isnan(row[-1])


def test_a_run_without_evaluation_is_an_error(runs, tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 29, "loss_cls": 0.1}\n')
    with pytest.raises(SystemExit, match="holds no evaluation"):
        runs.read_results(tmp_path)


def test_a_training_that_fails_is_an_error(runs, tmp_path):
    with pytest.raises(SystemExit, match="training failed: .*train_net.py"):
        runs.train("configs/quick/retinanet_baseline.yaml", tmp_path, ["SOLVER.MAX_ITERS", "3"])


def write_run(folder, couplings=(), **metrics):
    """What the table reads of a finished training."""
    criterion = {
        "CLASSIFICATION": "sigmoid_focal",
        "LOCALIZATION": "giou",
        "COUPLINGS": list(couplings),
        "CORRELATION": {"WEIGHT": 0.15},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"MODEL": {"CRITERION": criterion}}))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "model_final.pth").touch()


def test_the_losses_of_a_run_are_read(runs, tmp_path):
    write_run(tmp_path / "a", ["correlation"])
    write_run(tmp_path / "b")
    assert runs.criterion_summary(tmp_path / "a") == "sigmoid_focal, giou, correlation (0.15)"
    assert runs.criterion_summary(tmp_path / "b") == "sigmoid_focal, giou"


class TestComparison:
    @pytest.fixture
    def compare(self, monkeypatch, tmp_path):
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        module = load("compare")
        monkeypatch.setattr(module, "ROOT", tmp_path)
        return module

    def table(self, compare, monkeypatch, capsys, *arguments):
        monkeypatch.setattr("sys.argv", ["compare.py", *arguments])
        compare.main()
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]

    def test_finished_trainings_are_shown(self, compare, monkeypatch, capsys, tmp_path):
        runs = tmp_path / "output" / "compare"
        write_run(runs / "fcos_baseline_seed1", **{"bbox/AP": 40.26, "bbox/beta_cls": 50.0})
        write_run(runs / "fcos_association_seed1", ["correlation"], **{"bbox/AP": 41.0})
        write_run(runs / "atss_baseline_seed2", **{"bbox/AP": 9.0})
        table = self.table(compare, monkeypatch, capsys, "--show", "--detectors", "atss,fcos")
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
        assert [row[0] for row in cells] == ["config", "fcos_baseline", "fcos_association"]
        assert cells[1][1:4] == ["sigmoid_focal, giou", "40.3", "nan"] and cells[1][-1] == "50.0"
        assert cells[2][1] == "sigmoid_focal, giou, correlation (0.15)"

    def test_masks_have_a_column_where_there_are_some(self, compare, monkeypatch, capsys, tmp_path):
        metrics = {"bbox/AP": 40.0, "segm/AP": 30.04}
        write_run(tmp_path / "output/compare/mask_rcnn_harmonicdet_seed1", **metrics)
        header, row = self.table(
            compare, monkeypatch, capsys, "--show", "--detectors", "mask_rcnn,fcos"
        )
        assert header.split("|")[-2].strip() == "mask AP" and row.split("|")[-2].strip() == "30.0"

    def test_every_config_of_a_detector_is_trained(self, compare, monkeypatch, capsys, tmp_path):
        trained = []

        def train(config, output, overrides):
            trained.append((config, output.name, overrides))
            write_run(output, **{"bbox/AP": 1.0})
            return {"AP": 1.0}

        monkeypatch.setattr(compare, "train", train)
        arguments = ("--seed", "3", "SOLVER.MAX_ITER", "9")
        rows = self.table(compare, monkeypatch, capsys, *arguments)
        losses = ["baseline", "concordance", "spearman"]
        assert trained == [
            (
                f"configs/quick/retinanet_{loss}.yaml",
                f"retinanet_{loss}_seed3",
                ["SEED", "3", "SOLVER.MAX_ITER", "9"],
            )
            for loss in losses
        ]
        assert len(rows) == 1 + len(losses)

    def test_detectors_whose_names_begin_alike(self, compare):
        def names(detector):
            return [Path(config).stem for config in compare.configs_of(detector)]

        assert names("paa") == ["paa_baseline", "paa_concordance"]
        assert names("paa_star") == ["paa_star_baseline", "paa_star_ape"]
        assert compare.configs_of("atss_neon_trees") == [
            "configs/photographs/atss_neon_trees_baseline.yaml",
            "configs/photographs/atss_neon_trees_concordance.yaml",
        ]

    def test_an_unknown_detector_is_an_error(self, compare, monkeypatch, capsys):
        with pytest.raises(SystemExit, match="got 'yolo'"):
            self.table(compare, monkeypatch, capsys, "--detectors", "atss,yolo")


def test_the_demo_ends_with_a_report(tiny_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    annotation = json.loads(Path(MetadataCatalog.get("tiny_val").json_file).read_text())
    image_id, category_id, (x, y, width, height) = itemgetter("image_id", "category_id", "bbox")(
        annotation["annotations"][0]
    )
    detection = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y + height / 4, width, height],
        "score": 0.9,
    }
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "coco_instances_results.json").write_text(json.dumps([detection]))
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 1.0}\n')
    load("demo").report({"baseline": tmp_path}, "tiny_val", tmp_path / "report")
    content = (tmp_path / "report" / "report.html").read_text()
    assert "score 0.90, IoU 0.6" in content and 'id="training"' in content
    assert "beta_cls" in capsys.readouterr().out


class TestDemo:
    @pytest.fixture
    def demo(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        return load("demo")

    def test_without_weights_it_says_so_and_takes_digits(self, demo, monkeypatch, capsys):
        def nothing(address):
            raise MissingWeightsError("no weights from there")

        monkeypatch.setattr(demo, "torchvision_weights", nothing)
        assert demo.choose() == demo.DIGITS
        assert "cannot be had: no weights from there" in capsys.readouterr().err
        monkeypatch.setattr(demo, "torchvision_weights", lambda address: None)
        monkeypatch.setattr(demo.corrdet.data, "prepare_neon_trees", lambda: None)
        assert demo.choose() == demo.PHOTOGRAPHS

    def test_all_configs_are_there(self, demo):
        for _, configs in (demo.PHOTOGRAPHS, demo.DIGITS):
            assert all((ROOT / config).is_file() for config in configs.values())

    def test_trainings_run_at_once(self, demo, tmp_path, monkeypatch, capsys):
        root = tmp_path / "repository"
        root.mkdir()
        # Each waits for the other.
        (root / "train_net.py").write_text(
            "import sys, time; from pathlib import Path\n"
            "output = Path(sys.argv[4]); (output / 'there').touch(); end = time.time() + 30\n"
            "while len(list(output.parent.glob('*/there'))) < 2 and time.time() < end:\n"
            "    time.sleep(0.05)\n"
            "print('the end of', output.name); sys.exit(time.time() > end or 'bad' in sys.argv[2])"
        )
        monkeypatch.setattr(demo, "ROOT", root)
        outputs = {name: tmp_path / name for name in "ab"}
        demo.train_all({"a": "good", "b": "good"}, outputs)
        assert "the end of b" in (tmp_path / "b" / "demo.log").read_text()
        with pytest.raises(SystemExit, match="training b failed, .*demo.log:\nthe end of b"):
            demo.train_all({"a": "good", "b": "bad"}, outputs)

    def test_progress(self, demo, tmp_path):
        assert demo.progress("a", tmp_path) == "a: starting"
        (tmp_path / "metrics.json").write_text('{"iteration": 19, "total_loss": 0.5}\n')
        assert demo.progress("a", tmp_path) == "a: iteration 19, loss 0.50"


class TestExport:
    CONFIG = str(ROOT / "configs/quick/atss_concordance.yaml")
    SPARSE_RCNN = str(ROOT / "configs/quick/sparse_rcnn_baseline.yaml")
    OVERRIDES = ("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.DENSE.SCORE_THRESH_TEST", "0.0101")
    # A program in another project, which has neither corrdet nor Detectron2.
    USER = """
import sys, torch, torchvision
sys.modules.update({"corrdet": None, "detectron2": None})
path, image = sys.argv[1:3]
detect = torch.jit.load(path) if path.endswith(".ts") else torch.export.load(path).module()
torch.save(detect(torch.load(image)), sys.argv[3])
"""

    @pytest.mark.parametrize("suffix", [".pt2", ".ts"])
    def test_detections_in_a_process_without_corrdet(self, suffix, tiny_digits, tmp_path):
        weights, exported = tmp_path / "weights.pth", tmp_path / f"detector{suffix}"
        options = ["MODEL.WEIGHTS", str(weights), *self.OVERRIDES]
        cfg = load_config(Namespace(config_file=self.CONFIG, opts=options))
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        torch.save({"model": model.state_dict()}, weights)
        tool = [sys.executable, str(ROOT / "tools" / "export_model.py")]
        size = ["--image-size", "160", "160"] if suffix == ".pt2" else []
        arguments = ["--config-file", self.CONFIG, "--output", str(exported), *size, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        finished = subprocess.run([*tool, *arguments], env=environment, capture_output=True)
        assert finished.returncode == 0, finished.stderr.decode()

        pixels = read_image(DatasetCatalog.get("tiny_val")[0]["file_name"], cfg.INPUT.FORMAT)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()
        torch.save(image, tmp_path / "image.pt")
        arguments = [str(exported), tmp_path / "image.pt", tmp_path / "detections.pt"]
        subprocess.run([sys.executable, "-c", self.USER, *arguments], check=True, cwd=tmp_path)
        boxes, scores, classes = torch.load(tmp_path / "detections.pt")
        with torch.no_grad():
            expected = model([{"image": image}])[0]["instances"]
        assert len(expected) > 10
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
        assert torch.equal(classes, expected.pred_classes)

    @pytest.mark.parametrize(
        "output, overrides, message",
        [
            ("detector.onnx", [], "--output must end with .pt2 or .ts, got 'detector.onnx'"),
            ("detector.ts", ["--image-size", "64", "64"], "--image-size takes .* for .pt2"),
            ("detector.pt2", ["--image-size", "0", "64"], "--image-size takes two positive"),
            ("detector.pt2", [], "was not written: it needs weights: MODEL.WEIGHTS"),
            ("detector.pt2", ["MODEL.WEIGHTS", "gone.pth"], "no weights at 'gone.pth'"),
            ("weights.pth/detector.pt2", ["MODEL.WEIGHTS", "weights.pth"], "was not written: "),
            (
                "detector.pt2",
                ["MODEL.WEIGHTS", "weights.pth"],
                r"none of the 1 tensors in weights.pth has a name and shape of the model's",
            ),
            (
                "detector.pt2",
                ["--config-file", SPARSE_RCNN, "MODEL.WEIGHTS", "weights.pth"],
                "expected a dense detector of corrdet, without masks, got CorrdetSparseRCNN",
            ),
        ],
    )
    def test_what_cannot_be_exported(
        self, output, overrides, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        torch.save({"model": {"other.weight": torch.zeros(1)}}, "weights.pth")
        arguments = ["--config-file", self.CONFIG, "--output", output, *overrides]
        monkeypatch.setattr(sys, "argv", ["export_model.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            load("export_model").main()
        assert re.search(message, f"{stopped.value} {capsys.readouterr().err}")
        assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_the_backbone_of_a_checkpoint_of_mmdetection():
    names = ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.2.bn3.bias"]
    weights = {f"backbone.{name}": torch.zeros(1) for name in names}
    weights |= {"neck.lateral_convs.0.conv.weight": torch.zeros(1)}
    weights |= {"bbox_head.retina_cls.weight": torch.zeros(1)}
    assert set(load("convert_backbone").convert(weights)) == {
        "stem.conv1.weight",
        "stem.conv1.norm.running_mean",
        "res2.0.conv1.weight",
        "res5.2.conv3.norm.bias",
    }
