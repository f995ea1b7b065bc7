import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

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
