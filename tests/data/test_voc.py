from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from corrdet.data.voc import VocError, VocFolderError, convert_voc, main


def voc_object(name="car", box=(1, 1, 10, 20), difficult=0) -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object>"
    )


class Folder:
    """A VOC data set being written; images are 40 x 30 (w x h)."""

    def __init__(self, root: Path) -> None:
        self.annotations, self.images = root / "Annotations", root / "Images"
        self.annotations.mkdir()
        self.images.mkdir()

    def add(self, stem: str, *objects: str, size=(40, 30), file_name: str | None = None) -> None:
        Image.new("RGB", (40, 30)).save(self.images / f"{stem}.jpg")
        width, height = size
        (self.annotations / f"{stem}.xml").write_text(
            f"<annotation><filename>{file_name or stem + '.jpg'}</filename>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            f"{''.join(objects)}</annotation>"
        )

    def convert(self, **options) -> dict:
        return convert_voc(self.annotations, self.images, **options)

    def problems(self, **options) -> list[str]:
        with pytest.raises(VocError) as caught:
            self.convert(**options)
        return caught.value.problems


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_boxes_and_ids(folder):
    folder.add("b", voc_object("dog", (1, 1, 40, 30)), voc_object("cat", (5, 6, 5, 6)))
    folder.add("a")
    dataset = folder.convert()
    assert [c["name"] for c in dataset["categories"]] == ["cat", "dog"]
    assert [i["file_name"] for i in dataset["images"]] == ["a.jpg", "b.jpg"]
    whole, pixel = dataset["annotations"]
    assert whole["bbox"] == [0, 0, 40, 30] and whole["area"] == 1200
    assert pixel["bbox"] == [4, 5, 1, 1]  # both corners belong to a VOC box
    assert (whole["category_id"], pixel["category_id"]) == (2, 1)
    assert {whole["image_id"], pixel["image_id"]} == {2}


def test_same_boxes_as_detectron2(folder, tmp_path):
    from detectron2.data.datasets import load_voc_instances
    from detectron2.structures import BoxMode

    folder.add("a", voc_object(box=(3, 4, 20, 30)), voc_object(box=(1.5, 2, 7, 8)))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    # Two lines: Detectron2 cannot iterate over a list of one.
    (tmp_path / "ImageSets" / "Main" / "all.txt").write_text("a\na\n")
    theirs = load_voc_instances(str(tmp_path), "all", ["car"])[0]["annotations"]
    ours = folder.convert()["annotations"]
    for their, our in zip(theirs, ours, strict=True):
        assert their["bbox"] == BoxMode.convert(our["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


def test_zero_based_boxes(folder):
    folder.add("a", voc_object(box=(0, 0, 40, 30)))
    assert "try zero_based" in folder.problems()[0]
    assert folder.convert(zero_based=True)["annotations"][0]["bbox"] == [0, 0, 40, 30]


@pytest.mark.parametrize(("option", "crowds"), [("crowd", [0, 1]), ("keep", [0, 0]), ("drop", [0])])
def test_difficult_objects(folder, option, crowds):
    folder.add("a", voc_object(), voc_object(difficult=1))
    annotations = folder.convert(difficult=option)["annotations"]
    assert [annotation["iscrowd"] for annotation in annotations] == crowds


def test_result_loads_in_detectron2(folder, tmp_path):
    from detectron2.data.datasets import load_coco_json

    folder.add("a", voc_object(), voc_object(difficult=1))
    output = tmp_path / "out" / "voc.json"
    arguments = ["--annotations", str(folder.annotations), "--images", str(folder.images)]
    assert main([*arguments, "--output", str(output)]) == 0
    (record,) = load_coco_json(str(output), str(folder.images))
    assert Path(record["file_name"]).is_file()
    assert len(record["annotations"]) == 2


def test_image_is_found_by_the_name_of_the_xml(folder):
    folder.add("a", file_name="C:\\somewhere\\else\\a.tif")
    assert folder.convert()["images"][0]["file_name"] == "a.jpg"


def test_every_problem_is_named(folder):
    folder.add("box", voc_object(), voc_object("van", (9, 9, 8, 20)), voc_object(box=(1, 1, 43, 9)))
    folder.add("nan", voc_object(box=("nan", 1, 2, 3)), voc_object(box=("", 1, 2, 3)))
    folder.add("size", size=(30, 40))
    folder.add("gone")
    (folder.images / "gone.jpg").unlink()
    folder.add("torn")
    (folder.annotations / "torn.xml").write_text("<annotation><size>")
    folder.add("other")
    (folder.annotations / "other.xml").write_text("<svg/>")
    folder.add("broken")
    (folder.images / "broken.jpg").write_bytes(b"no image")
    problems = folder.problems()
    expected = [
        ("box.xml: object 1 (van)", "degenerate"),
        ("box.xml: object 2 (car)", "outside of the 40 x 30 image"),
        ("nan.xml: object 0 (car)", "no proper box"),
        ("nan.xml: object 1 (car)", "no proper box"),
        ("size.xml", "says size 30 x 40, but size.jpg is 40 x 30"),
        ("gone.xml", "gone.jpg is not in"),
        ("torn.xml", "not well-formed"),
        ("other.xml", "root is <svg>"),
        ("broken.xml", "cannot be read"),
    ]
    for start, words in expected:
        assert any(p.startswith(start) and words in p for p in problems), (start, problems)
    assert len(problems) == len(expected)


def test_two_files_for_one_image(folder):
    folder.add("a", voc_object())
    folder.add("b", voc_object(), file_name="a.jpg")
    assert folder.problems() == ["b.xml: is of a.jpg, as a.xml is already"]


def test_size_is_that_of_the_turned_image(folder):
    folder.add("a", voc_object(box=(1, 1, 30, 40)), size=(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 30)).save(folder.images / "a.jpg", exif=exif)
    (image,) = folder.convert()["images"]
    assert (image["width"], image["height"]) == (30, 40)


def test_unknown_class(folder):
    folder.add("a", voc_object("car"), voc_object("bus"))
    assert folder.problems(classes=["car", "van"]) == [
        "a.xml: object 1 (bus) is of a class that is not among car, van"
    ]
    dataset = folder.convert(classes=["van", "car", "bus"])
    assert [a["category_id"] for a in dataset["annotations"]] == [2, 3]


def test_twenty_problems_are_listed(folder):
    folder.add("a", *[voc_object(box=(5, 5, 2, 2))] * 25)
    with pytest.raises(VocError) as caught:
        folder.convert()
    message = str(caught.value)
    assert len(caught.value.problems) == 25
    assert "object 19 " in message and "object 20 " not in message and "and 5 more" in message


def test_skipping_leaves_out_what_is_bad(folder, capsys):
    folder.add("a", voc_object(), voc_object(box=(9, 9, 8, 20)))
    folder.add("b", size=(1, 1))
    dataset = folder.convert(on_error="skip")
    assert len(dataset["images"]) == len(dataset["annotations"]) == 1
    warnings = capsys.readouterr().err
    assert "a.xml: object 1" in warnings and "b.xml" in warnings


LAUGHS = '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY e0 "haha">{entities}]>{body}'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_quickly(folder, encoding):
    folder.add("a", voc_object())
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    text = LAUGHS.format(entities=entities, body="<annotation>&e12;</annotation>")
    (folder.annotations / "a.xml").write_text(text, encoding=encoding)
    started = time.monotonic()
    (problem,) = folder.problems()
    assert "DOCTYPE" in problem
    assert time.monotonic() - started < 5


def test_external_entities_are_not_read(folder, tmp_path):
    (tmp_path / "secret").write_text("car")
    folder.add("a")
    (folder.annotations / "a.xml").write_text(
        f'<!DOCTYPE annotation [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
        "<annotation><filename>&x;</filename></annotation>"
    )
    assert "DOCTYPE" in folder.problems()[0]


def test_file_name_cannot_leave_the_folder(folder, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "outside.jpg")
    folder.add("a", file_name="../outside.jpg")
    (folder.images / "a.jpg").unlink()
    assert "outside.jpg is not in" in folder.problems()[0]


def test_command_line(folder, tmp_path):
    folder.add("a", voc_object(), voc_object(box=(9, 9, 8, 20)))
    output = tmp_path / "voc.json"
    command = [sys.executable, "-m", "corrdet.data.voc", "--annotations", str(folder.annotations)]
    command += ["--images", str(folder.images), "--output", str(output)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1 and not output.exists()
    assert "a.xml: object 1" in failed.stderr and "Traceback" not in failed.stderr
    done = subprocess.run([*command, "--skip-bad"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RuntimeWarning" not in done.stderr
    assert len(json.loads(output.read_text())["annotations"]) == 1


def test_missing_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no .xml files"):
        folder.convert()
    with pytest.raises(FileNotFoundError, match="absent"):
        convert_voc(tmp_path / "absent", folder.images)


def test_splits_of_one_folder_have_one_list_of_classes(folder, tmp_path):
    folder.add("a", voc_object("van"))
    folder.add("b", voc_object("car"))
    folder.add("c", voc_object("bus"))
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text("a\nb\n\n")
    val.write_text("c  1\n", encoding="utf-8-sig")
    first, second = folder.convert(image_set=train), folder.convert(image_set=val)
    assert [image["file_name"] for image in first["images"]] == ["a.jpg", "b.jpg"]
    assert [image["file_name"] for image in second["images"]] == ["c.jpg"]
    assert first["categories"] == second["categories"]
    assert [category["name"] for category in first["categories"]] == ["bus", "car", "van"]
    assert [a["category_id"] for a in first["annotations"]] == [3, 2]
    val.write_text("c\nd\n")
    assert folder.problems(image_set=val) == [f"val.txt: d has no XML file in {folder.annotations}"]
    val.write_text("\n")
    with pytest.raises(VocFolderError, match="names no image"):
        folder.convert(image_set=val)
    # Splits in folders of their own.
    output = tmp_path / "voc.json"
    command = ["--annotations", str(folder.annotations), "--images", str(folder.images)]
    command += ["--output", str(output)]
    assert main([*command, "--image-set", str(train), "--classes", "car", "van", "bus"]) == 0
    assert main([*command, "--image-set", str(train), "--classes-of", str(output)]) == 0
    names = [category["name"] for category in json.loads(output.read_text())["categories"]]
    assert names == ["car", "van", "bus"]
    assert main([*command, "--image-set", str(tmp_path / "none.txt")]) == 1


def test_folders_in_the_folder_and_capital_suffixes(folder):
    folder.add("a", voc_object())
    for name in ("x", "y"):
        (folder.annotations / name).mkdir()
        (folder.images / name).mkdir()
        text = (folder.annotations / "a.xml").read_text()
        (folder.annotations / name / "b.XML").write_text(text.replace("a.jpg", "b.jpg"))
        Image.new("RGB", (40, 30)).save(folder.images / name / "b.jpg")
    names = [image["file_name"] for image in folder.convert()["images"]]
    assert names == ["a.jpg", "x/b.jpg", "y/b.jpg"]


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((1, 1, 42, 30), [0, 0, 40, 30]),
        ((5, 5, 41, 31.5), [4, 4, 36, 26]),
        ((5, -1, 41, 30), [4, 0, 36, 30]),
    ],
)
def test_an_overhang_of_two_pixels_is_clipped_and_counted(folder, box, clipped):
    folder.add("a", voc_object(box=box), voc_object())
    warnings = []
    annotations = folder.convert(warn=warnings.append)["annotations"]
    assert annotations[0]["bbox"] == clipped
    assert warnings == ["clipped 1 box(es) that overhang their image by at most 2 pixels"]


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "windows-1252", "utf-16", "utf-8"])
def test_declared_encodings(folder, encoding):
    name = "caf\u00e9" if encoding == "windows-1252" else "\u8eca"
    folder.add("a", voc_object(name))
    text = (folder.annotations / "a.xml").read_text(encoding="utf-8")
    declared = f'<?xml version="1.0" encoding="{encoding}"?>{text}'
    (folder.annotations / "a.xml").write_text(declared, encoding=encoding)
    assert folder.convert()["categories"] == [{"id": 1, "name": name}]
    (folder.annotations / "a.xml").write_text(declared.replace(encoding, "klingon"))
    assert "not well-formed" in folder.problems()[0]


def test_boxes_of_one_pixel(folder):
    folder.add("a", voc_object(box=(5, 5, 5, 5)))
    assert folder.convert()["annotations"][0]["bbox"] == [4, 4, 1, 1]
    assert "degenerate" in folder.problems(zero_based=True)[0]
