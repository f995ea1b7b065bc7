"""Annotation files of strangers: a line of what is wrong, in bounded time and memory."""

import json
import re
import subprocess
import sys

import pytest

from tests.helpers.hostile import ANNOTATIONS, MASKS, SECONDS, XML
from tests.helpers.training import ROOT

CASES = [
    *(("train boxes", name, expected) for name, (_, expected) in ANNOTATIONS.items()),
    *(("measure boxes", name, expected) for name, (_, expected) in ANNOTATIONS.items()),
    *(("train masks", name, expected) for name, (_, expected) in MASKS.items()),
    *(("measure masks", name, expected) for name, (_, expected) in MASKS.items()),
    *(("voc", name, expected) for name, (_, expected) in XML.items()),
    *(
        (kind, name, expected)
        for kind in ("train boxes", "measure boxes")
        for name, expected in (
            ("nested 10 000 times", "lists in lists"),
            ("objects nested 10 000 times", "lists in lists"),
            ("empty", "expected JSON"),
        )
    ),
    ("train boxes", "a decompression bomb", "bomb.png: DecompressionBombError"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of all files, in one process, of which the memory is limited."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.helpers.hostile", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]}\n{done.stderr}"
    return {(line["kind"], line["name"]): line for line in lines}


@pytest.mark.parametrize("kind, name, expected", CASES, ids=lambda value: str(value)[:50])
def test_what_becomes_of_it(outcomes, kind, name, expected):
    outcome = outcomes[kind, name]
    if expected is None:
        assert outcome["message"] is None
    else:
        assert outcome["message"] is not None, "it was taken as it is"
        assert re.search(expected, outcome["message"])
        assert len(outcome["message"]) < 1000
    assert outcome["seconds"] < SECONDS


def test_names_that_lead_out_of_the_folder(tmp_path):
    """As data sets that are lists of paths have them: what is there is opened as an image."""
    import numpy as np
    from PIL import Image

    from corrdet.data.coco import load_registered
    from corrdet.data.image_checks import ImageReadError, check_image_headers
    from corrdet.data.register import register_from_config
    from tests.helpers.hostile import changed

    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "secret").write_text("secret")
    for number, name in enumerate(["../a.png", str(tmp_path / "a.png"), "../secret"]):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(changed("images", file_name=name)))
        register_from_config([f"out{number}{tmp_path.name}={path}:{tmp_path / 'images'}"])
        dicts = load_registered(f"out{number}{tmp_path.name}")
        if name == "../secret":
            with pytest.raises(ImageReadError) as caught:
                check_image_headers("out", dicts)
            assert "cannot identify" in str(caught.value)
        else:
            assert len(check_image_headers("out", dicts)) == 1
