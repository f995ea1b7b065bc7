"""The benchmark of starts: its data, its watch, its table, and one small run."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import coco_sized, startup
from corrdet.coco import read


def test_made_up_data(tmp_path):
    path, root = coco_sized.make(tmp_path / "a", 60, 400)
    again, _ = coco_sized.make(tmp_path / "b", 60, 400)
    assert path.read_bytes() == again.read_bytes()
    file = read(path)
    assert len(file.content["images"]) == 60 and len(file.content["annotations"]) == 400
    file.check("segm")
    for row in file.content["images"][::7]:
        with Image.open(root / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"])
    path, _ = coco_sized.make(tmp_path / "c", 5, 10, polygons=False)
    assert "segmentation" not in json.loads(path.read_text())["annotations"][0]


def test_memory_is_counted_with_children_and_shared_pages_once(tmp_path):
    size = 40_000_000
    with open(tmp_path / "pages", "wb+") as file:
        file.truncate(size)
        script = """
            import mmap, sys
            with open(sys.argv[1], "r+b") as file:
                pages = mmap.mmap(file.fileno(), 0)
            sum(pages[::4096])
            print("ready", flush=True)
            sys.stdin.read()
        """
        words = [sys.executable, "-c", "if 1:" + script, file.name]
        started = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
        ]
        for process in started:
            process.stdout.readline()
        one = startup.shared_out(started[0].pid)
        assert size / 2 < one < size
        assert startup.shared_out(os.getpid()) > sum(
            map(startup.shared_out, [p.pid for p in started])
        )
        watch = startup.Watch([started[0].pid])
        watch.look()
        for process in started:
            process.communicate(b"")
        watch.look()
        assert watch.peaks == [watch.peak_of_all] and watch.peak_of_all >= one - 5e6
        assert watch.latest == [0]


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(startup, "COCO", startup.Data("COCO", 3000, 6000, True))
    small = startup.Data("a tenth of Objects365", 3000, 6000, False, "Objects365")
    monkeypatch.setattr(startup, "VAL", startup.Data("val", 500, 1000, True))
    monkeypatch.setattr(
        startup, "RUNS", ((startup.COCO, 2, ("corrdet",)), (small, 1, startup.SIDES))
    )
    page, path = tmp_path / "page.md", tmp_path / "startup.json"
    page.write_text("<!-- startup: begin -->\n<!-- startup: end -->\n")
    arguments = ["--quick", "--workers", "0", "--folder", str(tmp_path / "data")]
    startup.main([*arguments, "--json", str(path), "--markdown", str(page)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["side"], len(row["peaks"])) for row in rows] == [
        ("corrdet", 2), ("Detectron2", 1), ("corrdet", 1),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["seconds"]["imported"] < row["seconds"]["loader"] < row["seconds"]["batch"]
        assert min(row["peaks"]) > 1e8 and row["cpu_seconds"]["batch"] > 0
    shown = page.read_text()
    assert shown.count("Extrapolated to Objects365, not measured") == 2
    assert "| COCO " in shown and "`python -m benchmarks.startup --quick" in shown
    assert "GB at the peak" in capsys.readouterr().out
