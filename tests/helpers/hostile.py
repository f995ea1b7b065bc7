"""Annotation files of strangers, and what becomes of each in a process of little memory.

Run as a command, it goes through the cases and prints a line of JSON for each.
"""

import copy
import json
import logging
import resource
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

MEMORY = 4 << 30  # bytes of addresses; libraries alone reserve about 2.5 GB
SECONDS = 5.0  # of the processor, for one file

BASE = {
    "images": [{"id": 1, "file_name": "a.png", "width": 50, "height": 40}],
    "categories": [{"id": 1, "name": "crate"}],
    "annotations": [
        {
            "id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100,
            "iscrowd": 0, "segmentation": [[1, 2, 11, 2, 11, 12]],
        }
    ],
}  # fmt: skip


def changed(part: str, **values) -> dict:
    content = copy.deepcopy(BASE)
    content[part][0].update(values)
    return content


def large(side: int, segmentation) -> dict:
    content = changed("images", width=side, height=side)
    content["annotations"][0]["segmentation"] = segmentation
    return content


DEEP: list = []
for _ in range(900):
    DEEP = [DEEP]
FAR = [[0.0, 0.0, 39_000.0, 39_000.0] * 2000]

# name -> (content of the file, what the message has; None where the file is good)
ANNOTATIONS = {
    "good": (BASE, None),
    "class names that are numbers": (changed("categories", name=7), "text as name, got .*7"),
    "no class name": (changed("categories", name=None), "text as name, got nothing"),
    "a class name that is a list": (changed("categories", name=["a"]), "text as name, got .*list"),
    "null file_name": (changed("images", file_name=None), "text as file_name, got nothing"),
    "numeric file_name": (changed("images", file_name=3), "text as file_name, got .*3"),
    "empty file_name": (changed("images", file_name=""), "text as file_name, got .*''"),
    "file_name with a zero byte": (changed("images", file_name="a\0b"), "text as file_name, got"),
    "iscrowd as a text": (changed("annotations", iscrowd="0"), "iscrowd to be 0 or 1, got .*'0'"),
    "a box of texts": (changed("annotations", bbox=["1", "2", "3", "4"]), "four numbers"),
    "a box of truths": (changed("annotations", bbox=[True] * 4), "four numbers"),
    "a box of nothing": (changed("annotations", bbox=[None] * 4), "four numbers|expected .x, y"),
    "a box of 400 digits": (changed("annotations", bbox=[10**400, 1, 2, 3]), "four numbers"),
    "a box of 1e300": (changed("annotations", bbox=[1e300] * 4), "outside|no width|finite"),
    "ids that are lists": (changed("annotations", id=[1]), "whole number or a text as id, got"),
    "an image_id that is a list": (changed("annotations", image_id=[1]), "number or a text"),
    "a category_id that is an object": (changed("annotations", category_id={}), "number or a text"),
    "an image id that is a list": (changed("images", id=[1]), "whole number or a text as id, got"),
    "a category id that is deep": (changed("categories", id=DEEP), "whole number or a text as id"),
    "ids as texts, of images numbers": (changed("annotations", image_id="1"), "image_id"),
    "a width as a text": (changed("images", width="50"), "whole number of pixels as width, .*'50'"),
    "a width of 1e9": (changed("images", width=1e9), "whole number of pixels as width"),
    "a height of 30 digits": (changed("images", height=10**30), "number of pixels as height"),
    "images that are an object": ({**BASE, "images": {}}, "expected a list 'images'"),
    "annotations that are a text": ({**BASE, "annotations": "a"}, "expected a list 'annotations'"),
    "rows that are nothing": ({**BASE, "annotations": [None]}, "has no id|an object with image_id"),
    "a file that is a list": ([BASE], "expected an object"),
    "a file that is a number": (3, "expected an object"),
}  # fmt: skip
MASKS = {
    "good": (BASE, None),
    "runs of a mask of 1e6 x 1e6": (
        large(10**6, {"size": [10**6, 10**6], "counts": [0, 10**12]}),
        "at most 2147483647 pixels|neither polygons nor",
    ),
    "the same, compressed": (
        large(10**6, {"size": [10**6, 10**6], "counts": "0Pfnooo3"}), "at most 2147483647 pixels",
    ),
    "polygons in 1e6 x 1e6": (
        large(10**6, [[0, 0, 1e6, 0, 1e6, 1e6]]), "at most 2147483647 pixel|the file has 50 x 40",
    ),
    "runs of another size": (
        changed("annotations", segmentation={"size": [10**6, 10**6], "counts": [0, 10**12]}),
        "neither polygons nor|at most 2147483647 pixels|mask of .height, width",
    ),
    "a run longer than the image": (
        changed("annotations", segmentation={"size": [40, 50], "counts": [10**30]}),
        "neither polygons nor|runs of 2000 pixels",
    ),
    "a negative run": (
        changed("annotations", segmentation={"size": [40, 50], "counts": [-1, 2001]}),
        "neither polygons nor|counts of pixels",
    ),
    "runs that are texts": (
        changed("annotations", segmentation={"size": [40, 50], "counts": ["a"]}),
        "neither polygons nor|counts of pixels",
    ),
    "a mask without a size": (
        changed("annotations", segmentation={"size": None, "counts": None}),
        "neither polygons nor|a size of|polygons or a mask",
    ),
    "polygons of texts": (changed("annotations", segmentation=[["a"] * 6]), "polygon"),
    "polygons of nothing": (changed("annotations", segmentation=[[None] * 6]), "polygon"),
    "polygons of 400 digits": (changed("annotations", segmentation=[[10**400] * 6]), "polygon"),
    "polygons that are deep": (changed("annotations", segmentation=[DEEP * 6]), "polygon"),
    "an outline of 1e8 pixels": (large(40_000, FAR), "an outline of at most 2000000 pixels"),
}  # fmt: skip


def png(width: int, height: int) -> bytes:
    """A file of a few bytes with as many pixels as asked for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


def voc(body: str) -> str:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    return f"<annotation>{body}<object><name>crate</name>{box}</object></annotation>"


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
XML = {
    "good": (voc("<filename>a.png</filename>"), None),
    "billion laughs": (
        f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>{voc("<filename>&l11;</filename>")}',
        "document type declaration",
    ),
    "billion laughs in UTF-16": (
        ('<?xml version="1.0" encoding="utf-16"?>' +
         f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>{voc("&l11;")}').encode("utf-16"),
        "document type declaration",
    ),
    "an entity of this machine": (
        f'<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>{voc("<filename>&f;</filename>")}',
        "document type declaration",
    ),
    "nested 200 000 times": ("<a>" * 200_000 + "</a>" * 200_000, "root is <a>"),
    "nested 200 000 times, in an annotation": (
        voc("<a>" * 200_000 + "</a>" * 200_000 + "<filename>a.png</filename>"), None,
    ),
    "a name that leads out of the folder": (voc("<filename>../a.png</filename>"), None),
    "a decompression bomb": (voc("<filename>bomb.png</filename>"), "bomb"),
    "a size of 1e9": (
        voc("<filename>a.png</filename><size><width>1e9</width><height>1</height></size>"),
        "says size 1e9 x 1",
    ),
    "no XML": ("\0\1", "not well-formed"),
    "a codec that is no encoding": (b'<?xml version="1.0" encoding="zip"?><annotation/>', "XML"),
}  # fmt: skip


def outcome(use: Callable) -> dict:
    from corrdet.errors import CorrdetError

    start = time.process_time()
    try:
        use()
        message = None
    except CorrdetError as error:
        message = str(error)
    except BaseException as error:
        message = f"BUG {type(error).__name__}: {error}"
    return {"message": message, "seconds": time.process_time() - start}


def main(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from corrdet.coco import read_ground_truth
    from corrdet.data.checks import check_dataset
    from corrdet.data.coco import load_registered
    from corrdet.data.image_checks import check_image_headers
    from corrdet.data.register import register_from_config
    from corrdet.data.voc import convert_voc

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "a.png")
    (folder / "bomb.png").write_bytes(png(2**30, 2**30))
    number = 0

    def report(kind: str, name: str, use: Callable) -> None:
        print(json.dumps({"kind": kind, "name": name, **outcome(use)}), flush=True)

    def train(path: Path, masks: bool) -> None:
        nonlocal number
        number += 1
        register_from_config([f"hostile{number}={path}:{folder}"])
        dicts = load_registered(f"hostile{number}", masks=masks)
        check_image_headers(
            f"hostile{number}", check_dataset(f"hostile{number}", dicts, check_masks=masks)
        )

    for kind, cases in (("boxes", ANNOTATIONS), ("masks", MASKS)):
        for name, (content, _) in cases.items():
            path = folder / "annotations.json"
            path.write_text(json.dumps(content))
            report(f"train {kind}", name, lambda: train(path, kind == "masks"))  # noqa: B023
            iou_type = "segm" if kind == "masks" else "bbox"
            report(f"measure {kind}", name, lambda: read_ground_truth(path, iou_type))  # noqa: B023
    for name, text in {
        "nested 10 000 times": "[" * 10_000 + "]" * 10_000,
        "objects nested 10 000 times": '{"a":' * 10_000 + "1" + "}" * 10_000,
        "empty": "",
    }.items():
        path = folder / "annotations.json"
        path.write_text(text)
        report("train boxes", name, lambda: train(path, False))  # noqa: B023
        report("measure boxes", name, lambda: read_ground_truth(path))  # noqa: B023
    path.write_text(json.dumps(changed("images", file_name="bomb.png", width=2**16, height=2**16)))
    report("train boxes", "a decompression bomb", lambda: train(path, False))
    for name, (text, _) in XML.items():
        (folder / "xml").mkdir(exist_ok=True)
        content = text if isinstance(text, bytes) else text.encode()
        (folder / "xml" / "a.xml").write_bytes(content)
        report("voc", name, lambda: convert_voc(folder / "xml", folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
