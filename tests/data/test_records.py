"""Images in one piece of memory: what comes out is what went in, also in other processes."""

import copy
import os
import pickle
import tempfile
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from corrdet.coco import AnnotationError
from corrdet.coco.masks import MaskError
from corrdet.data.classes import follow_classes
from corrdet.data.records import Records, by_one_process, share, write_records
from corrdet.errors import WriteError
from tests.helpers.problems import as_lists
from tests.helpers.two_processes import start_group

LOCK = threading.Lock()  # which cannot be pickled


def dicts() -> list[dict]:
    polygon = np.array([1.0, 2.0, 30.0, 4.0, 5.0, 60.0])
    return [
        {"file_name": "0.jpg", "annotations": [{"segmentation": [polygon, 2 * polygon], "id": 1}]},
        {"file_name": "1.jpg"},
        {"file_name": "2.jpg", "annotations": []},
        {
            "file_name": "3.jpg",
            "annotations": [
                {"segmentation": [[1, 2, 3, 4, 5, 6]], "bbox": [1, 2, 3, 4]},
                {"segmentation": {"size": [1, 2], "counts": "11"}},
                {"bbox": np.zeros(4)},
            ],
        },
    ]


@pytest.mark.parametrize("where", ["memory", "file", "another process"])
def test_what_comes_out_is_what_went_in(where, tmp_path):
    given, before = dicts(), dicts()
    if where == "file":
        path = tmp_path / "records"
        with open(path, "wb") as file:
            write_records(file, iter(given), {"extra": 1})
        records = Records.mapped(str(path))
        path.unlink()
    else:
        records = Records.of(given, {"extra": 1})
    if where == "another process":
        records = pickle.loads(pickle.dumps(records))
    assert as_lists(given) == as_lists(before)
    assert len(records) == 4 and records.extra == {"extra": 1}
    assert as_lists(list(records)) == as_lists(given)
    assert records[-1]["file_name"] == records[3]["file_name"] == "3.jpg"
    with pytest.raises(IndexError):
        records[4]
    polygons = records[0]["annotations"][0]["segmentation"]
    assert polygons[1].dtype == np.float64
    polygons[1] *= 0  # which is nobody else's
    assert as_lists(records[0]) == as_lists(given[0])
    assert len(Records.of([])) == 0


def test_polygons_take_the_memory_of_their_numbers():
    polygon = np.arange(600.0)
    records = Records.of([{"annotations": [{"segmentation": [polygon] * 50}]}])
    assert len(records._buffer) < 1.05 * 50 * polygon.nbytes


def load(name: str, log: str) -> list[dict]:
    """A function of the catalog that says who has called it."""
    with open(log, "a") as file:
        file.write(f"{name} {comm.get_rank()}\n")
    classes = ["a", "b"] if name == "first" else ["b", "a"]
    MetadataCatalog.get(name).set(
        thing_classes=classes, thing_dataset_id_to_contiguous_id={7: 0, 9: 1}, of_its_own=LOCK
    )
    return [{"file_name": name, "annotations": [{"category_id": 0}]}]


def make(log: str) -> tuple[list[dict], list[str]]:
    joined = load("first", log)
    second = load("second", log)
    return joined + follow_classes("second", second, "first", ["a", "b"]), ["extra"]


def in_two_processes(rank: int, folder: str) -> None:
    start_group(rank, folder)
    tempfile.tempdir = folder
    log = f"{folder}/log"
    for name in ("first", "second"):
        DatasetCatalog.register(name, partial(load, name, log))
    records = share(partial(make, log), ["first", "second"])
    outcome: dict = {"records": list(records), "extra": records.extra}
    comm.synchronize()
    outcome["left"] = [p.name for p in Path(folder).iterdir() if "corrdet" in p.name]
    outcome["classes"] = {
        n: list(MetadataCatalog.get(n).thing_classes) for n in ("first", "second")
    }
    outcome["ids"] = MetadataCatalog.get("second").thing_dataset_id_to_contiguous_id
    outcome["calls"] = Path(log).read_text()
    comm.synchronize()
    # As it would be here if this process had loaded it.
    outcome["again"] = DatasetCatalog.get("second")[0]["annotations"][0]["category_id"]
    errors = (AnnotationError("a bad box"), MaskError(3, "not one"), KeyError("of a bug"))
    outcome["errors"] = []
    for error in errors:
        try:
            by_one_process(partial(throw, error), [])
        except Exception as caught:
            outcome["errors"].append((type(caught).__name__, str(caught)))
    tempfile.tempdir = "/dev/full/none"
    try:
        share(lambda: ([], None), [])
    except WriteError as error:
        outcome["errors"].append((type(error).__name__, str(error)))
    torch.save(outcome, f"{folder}/{rank}.pt")
    comm.synchronize()


def throw(error: Exception):
    raise copy.copy(error) if not isinstance(error, MaskError) else error


@pytest.mark.slow
def test_one_process_loads_for_two(tmp_path):
    torch.multiprocessing.spawn(in_two_processes, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    # An error of several arguments is not pickled: the other process has its text.
    assert second["errors"].pop(1) == ("CorrdetError", "mask 3: not one")
    assert first["errors"].pop(1) == ("MaskError", "mask 3: not one")
    assert first == second
    assert first["calls"] == "first 0\nsecond 0\n" and not first["left"]
    categories = [r["annotations"][0]["category_id"] for r in first["records"]]
    assert categories == [0, 1] and first["extra"] == ["extra"] and first["again"] == 1
    assert first["classes"] == {"first": ["a", "b"], "second": ["a", "b"]}
    assert first["ids"] == {7: 1, 9: 0}
    kinds, words = zip(*first["errors"], strict=True)
    assert kinds[0] == "AnnotationError" and words[0] == "a bad box"
    assert (kinds[1], words[1]) == ("KeyError", "'of a bug'")
    assert kinds[2] == "WriteError" and "TMPDIR" in words[2]


def test_a_full_folder_of_temporary_files(monkeypatch, tmp_path):
    from corrdet.data import records

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(records, "write_records", full)
    words = "No space left on device.* TMPDIR names another folder"
    with ExitStack() as stack, pytest.raises(WriteError, match=words):
        records._written([], None, stack)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left(monkeypatch, tmp_path):
    from corrdet.data import records

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".corrdet-images.abcdefgh.tmp").write_text("of a dead one")
    with ExitStack() as first:
        path = records._written(dicts(), 1, first)
        with ExitStack() as second:  # another training does not take what is in use
            other = records._written(dicts(), 2, second)
            assert sorted(map(str, tmp_path.iterdir())) == sorted([path, other])
            assert Records.mapped(path).extra == 1
    assert not list(tmp_path.iterdir())
