import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from corrdet.analysis import pictures
from corrdet.analysis.pictures import main


@pytest.fixture
def files(tiny_digits, tmp_path):
    """Ground truth, and a results file that finds every object with a score."""
    metadata = MetadataCatalog.get("tiny_val")
    content = json.loads(Path(metadata.json_file).read_text())
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [a["bbox"][0], a["bbox"][1], a["bbox"][2] * rng.uniform(0.6, 1), a["bbox"][3]],
            "score": rng.uniform(0.3, 1),
        }
        for a in content["annotations"]
    ]
    detections = tmp_path / "results.json"
    detections.write_text(json.dumps(results))
    return [
        "--ground-truth", metadata.json_file, "--detections", str(detections),
        "--images", metadata.image_root, "--output", str(tmp_path / "pictures"),
    ]  # fmt: skip


def test_pictures_are_drawn(files, tmp_path):
    main([*files, "--count", "3"])
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert len(written) == 4 and "score_against_iou.png" in written
    for name in written:
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_no_detection_is_a_clear_error(files, tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no detection: nothing to draw"):
        main(files)
    assert not (tmp_path / "pictures").exists()


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the pictures of detections, kept instead of written."""
    axes = []
    monkeypatch.setattr("corrdet.analysis.pictures._save", lambda f, _: axes.append(f.axes[0]))
    yield axes
    pictures.plt.close("all")


def test_the_surest_detections_are_drawn_last_and_labelled_inside(files, drawn, tmp_path):
    _, ground_truth, _, path, _, images, *_ = files
    results = json.loads(Path(path).read_text())
    for index, result in enumerate(results):
        result["score"] = 0.99 - 0.6 * index / len(results)
        if index % 2:
            result["bbox"][0] = 159 - result["bbox"][2]  # at the right border
            result["bbox"][1] = 0.0
    Path(path).write_text(json.dumps(results))
    pictures.draw_detections(pictures.load_results(ground_truth, path), images, str(tmp_path))
    assert len(drawn) == 8
    for axes in drawn:
        scores = [float(text.get_text().split()[1]) for text in axes.texts]
        assert scores == sorted(scores) and all(score >= 0.5 for score in scores)
        axes.figure.canvas.draw()
        image = axes.get_window_extent()
        for text in axes.texts:
            label = text.get_window_extent()
            assert image.x0 <= label.x0 and label.x1 <= image.x1 and label.y1 <= image.y1
    assert sum(len(axes.texts) for axes in drawn) == sum(r["score"] >= 0.5 for r in results) > 4
