import base64
import html
import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from corrdet.analysis.metrics import metrics
from corrdet.measures import bootstrap
from corrdet.report import TrainingFileError, read_training, write_report
from corrdet.report.classes import COLUMNS, COMPARED
from tests.helpers.problems import detections, ground_truth, random_problem
from tests.helpers.report import (
    HOSTILE,
    Page,
    assert_alone,
    measured,
    save_images,
    shifted,
    written,
)

ALWAYS = (
    "errors operating confusion density calibration shares bounds precision summary classes words"
).split()


def test_everything_of_two_files(problem, training, tmp_path):
    content, rows = problem
    results = measured(content, rows, shifted(rows, 4))
    save_images(tmp_path / "images", content)
    samples = bootstrap(results, 20)
    page = written(
        tmp_path / "report.html", results, samples,
        notes=["A <note>."], images=tmp_path / "images", training=[training],
    )  # fmt: skip
    assert page.sections == [*ALWAYS[:-1], "training", "pictures", "words"]
    assert_alone(page)
    assert "A &lt;note&gt;." in page.text
    assert len(page.text.encode()) < 3_000_000  # the images are noise
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="|url\()#([^")]*)', page.text):
        assert target in ids
    # Each figure has a text alternative and a caption.
    drawings = [a for a in page.of("div") if a.get("class") == "drawing"]
    assert len(drawings) == 2 + 2 + 2 + 3 + 3 + 7 and all(
        len(a["aria-label"]) > 60 for a in drawings
    )
    assert len(page.of("figure")) == len(page.of("figcaption"))
    pictures = page.of("img")
    assert len(pictures) > 8 and all("image" in picture["alt"] for picture in pictures)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]

    entries = metrics(results, samples)
    other = entries["others"][0]
    row = page.rows("summary")
    low, high = entries["bootstrap"]["intervals"]["AP"]
    (ap,) = (cells for name, cells in row.items() if re.match(r"AP[A-Z ][a-z]", name))
    assert ap[0] == f"{entries['AP']:.2f}[{low:.2f}, {high:.2f}]"
    low, high = other["bootstrap"]["differences"]["AP"]
    assert ap[2] == f"{other['differences']['AP']:+.2f}[{low:+.2f}, {high:+.2f}]" and high < 0
    # An interval without 0 is not enough where much is compared.
    p_values = other["bootstrap"]["p_values"]
    starred = [cells[0] for cells in page.tables["summary"] if cells[-1].count(" *[")]
    assert len(starred) == sum(p_values[key] < 0.05 for key in p_values if "dAP" not in key) > 0


@pytest.mark.usefixtures("without_figures")
def test_the_table_has_the_values_of_the_metrics(problem, tmp_path):
    content, rows = problem
    results = measured(content, rows, shifted(rows, 4))
    page = written(tmp_path / "report.html", results)
    entries = metrics(results, None)
    head, *body = page.tables["classes"]
    assert head[:6] == ["class", "file", "objects", "AP", "AP diff.", "beta_cls"]
    assert len(body) == 2 * 4
    places = {label: place for place, label in enumerate(head)}
    for index, row in enumerate(body):
        entry = [entries, *entries["others"]][index % 2]
        values = entry["per_class"][row[0]]
        assert row[1] == entry["name"] and len(row) == len(head)
        for key, label, _ in COLUMNS:
            expected = "n.d." if values[key] is None else values[key]
            assert row[places[label]] == (
                f"{expected:.2f}" if isinstance(expected, float) else str(expected)
            )
    first, second = (entry["per_class"][body[0][0]] for entry in (entries, *entries["others"]))
    for key in COMPARED:
        assert body[0][places[f"{key} diff."]] == ""
        assert body[1][places[f"{key} diff."]] == f"{second[key] - first[key]:+.2f}"


@pytest.mark.usefixtures("without_figures")
def test_one_file_has_no_differences(problem, tmp_path):
    content, rows = problem
    page = written(tmp_path / "report.html", measured(content, rows))
    assert page.sections == ALWAYS and page.tables["classes"][0][:2] == ["class", "objects"]
    assert {len(row) for row in page.tables["summary"]} == {1, 2}
    assert not page.of("img") and "differs" not in page.text


def test_names_from_files_are_text(problem, training, tmp_path):
    content, rows = problem
    for number, category in enumerate(content["categories"]):
        category["name"] = f"{HOSTILE} {number} \ud800"
    for image in content["images"]:
        image["file_name"] = f"{image['id']}'\"<script>&.png"
    save_images(tmp_path / "images", content)
    results = [replace(result, name=HOSTILE) for result in measured(content, rows)]
    page = written(
        tmp_path / "report.html", results, notes=[HOSTILE], images=tmp_path / "images",
        training=[replace(training, name=HOSTILE)],
    )  # fmt: skip
    assert len(page.of("script")) == 1 and page.text.count("<script") == 1
    assert not [1 for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    assert all(attributes["src"].startswith("data:") for attributes in page.of("img"))
    assert page.of("img") and html.escape(HOSTILE) in page.text
    assert HOSTILE in page.tables["classes"][1][0] and "\\ud800" in page.tables["classes"][1][0]
    assert_alone(page)


def test_the_same_results_give_the_same_file(problem, tmp_path):
    content, rows = problem
    save_images(tmp_path / "images", content)
    for name in "ab":
        written(tmp_path / f"{name}.html", measured(content, rows), images=tmp_path / "images")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


BOX = (10, 10, 50, 50)


@pytest.mark.parametrize(
    "content, rows",
    [
        (ground_truth([(1, 1, BOX)]), []),
        (ground_truth([(1, 1, BOX)]), [(1, 1, BOX, 0.9)]),
        (ground_truth([(1, 1, BOX)]), [(1, 2, BOX, 0.9)]),
        (ground_truth([(1, 1, BOX), (2, 1, BOX, 1)], categories=(1,)), [(2, 1, BOX, 0.0)]),
        (ground_truth([(1, 1, BOX), (2, 1, BOX)], categories=(1,)),
         [(1, 1, BOX, 1.0), (2, 1, (12, 10, 50, 50), 0.5)]),
    ],
    ids=["no detection", "one", "one of another class", "one in a crowd", "one class"],
)  # fmt: skip
def test_little_is_enough(content, rows, tmp_path):
    save_images(tmp_path / "images", content)
    results = measured(content, detections(rows))
    page = written(
        tmp_path / "report.html", results, bootstrap(results, 3), images=tmp_path / "images"
    )
    assert page.sections == [*ALWAYS[:-1], "pictures", "words"]
    assert ">nan" not in page.text and "inf<" not in page.text
    assert ("holds no detection" in page.text) == (not rows)
    assert ("No detection in file 0" in page.text) == (not rows)
    assert "n.d.: not defined." in page.text


@pytest.mark.usefixtures("without_figures")
def test_a_file_without_detections_beside_one_with(problem, tmp_path):
    content, rows = problem
    page = written(tmp_path / "report.html", measured(content, [], rows))
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert "density-1" in ids and "density-0" not in ids
    assert "No detection in file 0" in page.text


@pytest.mark.usefixtures("without_figures")
def test_masks(tmp_path):
    content, rows = random_problem(1, images=6, masks=True)
    save_images(tmp_path / "images", content)
    results = measured(content, rows, iou_type="segm")
    page = written(tmp_path / "report.html", results, images=tmp_path / "images")
    assert (
        page.of("img") and "masks compared" in page.text and "Boxes are drawn around" in page.text
    )


@pytest.mark.usefixtures("without_figures")
class TestErrors:
    def test_each_type_has_a_bar_with_its_cost(self, problem, tmp_path):
        content, rows = problem
        results = measured(content, rows, shifted(rows, 4))
        samples = bootstrap(results, 20)
        page = written(tmp_path / "report.html", results, samples)
        entries = metrics(results, samples)
        other = entries["others"][0]
        for name, error in entries["errors"].items():
            start = page.text.index(f'<details id="errors-{name}">')
            part = page.text[start : page.text.index("</details>", start)]
            first, second = re.findall(r"width:([\d.]+)%", part)
            low, high = entries["bootstrap"]["intervals"][f"dAP50_{name}"]
            assert f"<span>{error['cost']:.2f} [{low:.2f}, {high:.2f}]</span>" in part
            assert f"; {other['differences'][f'dAP50_{name}']:+.2f}" in part
            assert f">{error['count']} errors<" in part
            assert (float(first) > float(second)) == (error["cost"] > other["errors"][name]["cost"])
        assert not page.of("img")

    def test_each_bar_opens_its_pictures(self, tmp_path):
        half = (10, 10, 50, 20)
        content = ground_truth([(1, 1, BOX), (1, 2, (120, 120, 40, 40)), (2, 1, (20, 20, 80, 80))])
        rows = [
            (1, 1, BOX, 0.9),
            (1, 1, (10, 10, 50, 48), 0.8),
            (1, 1, half, 0.7),
            (1, 2, half, 0.6),
            (1, 1, (60, 60, 9, 9), 0.5),
            (1, 1, (120, 120, 40, 40), 0.4),
        ]
        save_images(tmp_path / "images", content)
        results = measured(content, detections(rows))
        page = written(tmp_path / "report.html", results, images=tmp_path / "images")
        for name, expected in (
            ("Cls", "class 1: score 0.40, object: class 2"),
            ("Loc", "class 1: score 0.70"),
            ("Both", "class 2: score 0.60, object: class 1"),
            ("Dupe", "class 1: score 0.80"),
            ("Bkg", "class 1: score 0.50"),
            ("Miss", "class 1, missed"),
        ):  # fmt: skip
            start = page.text.index(f'<details id="errors-{name}">')
            part = page.text[start : page.text.index("</details>", start)]
            assert part.count("<img") == 1 and f"<strong>{expected}</strong>" in part

    def test_federated_annotations_have_none(self, problem, tmp_path):
        content, rows = problem
        content["images"][0]["neg_category_ids"] = []
        page = written(tmp_path / "report.html", measured(content, rows))
        assert "Of federated annotations (LVIS) errors have no types" in page.text


@pytest.mark.usefixtures("without_figures")
class TestPictures:
    def test_the_most_inconsistent_are_chosen(self, tmp_path):
        content = ground_truth([(image, 1, BOX) for image in (1, 2, 3)], images=(1, 2, 3))
        rows = [
            (1, 1, (30, 10, 50, 50), 0.9),  # IoU 0.43
            (1, 1, (10, 10, 50, 40), 0.05),  # IoU 0.8
            (2, 1, (10, 10, 50, 48), 0.9),  # IoU 0.96, unsure by little
            (3, 1, (120, 120, 9, 9), 0.99),  # of no object: not a matter of placing
        ]
        save_images(tmp_path / "images", content)
        page = written(tmp_path / "report.html", measured(content, detections(rows)),
                       images=tmp_path / "images")  # fmt: skip
        part = page.text[page.text.index('<section id="pictures"') :]
        labels = re.findall(r"<strong>(class [^<]*score[^<]*)</strong>", part)
        assert labels == [
            "class 1: score 0.90, IoU 0.43",
            "class 1: score 0.05, IoU 0.80",
            "class 1: score 0.90, IoU 0.96",
        ]
        rectangles = re.findall(r'<rect class="detection"[^>]* width="([^"]*)"', part)
        assert [float(width) for width in rectangles] == [50, 50, 50]

    @pytest.mark.parametrize(
        "file_name, expected",
        [
            ("gone.jpg", "gone.jpg is missing"),
            ("../1.jpg", "../1.jpg is outside of the folder"),
            ("C:\\a\\..\\1.jpg", "C:\\a\\..\\1.jpg is outside of the folder"),
            ("/etc/hostname", "/etc/hostname is outside of the folder"),
            ("text.jpg", "text.jpg cannot be read"),
            ("small.png", "small.png has 9 x 9 pixels, its annotations are of 200 x 200"),
            (None, "an image has no file name"),
        ],
    )
    def test_what_cannot_be_drawn_is_said(self, tmp_path, file_name, expected):
        content = ground_truth([(1, 1, BOX)])
        folder = tmp_path / "images"
        save_images(folder, content)
        (folder / "text.jpg").write_text("no image")
        Image.new("RGB", (9, 9)).save(folder / "small.png")
        content["images"][0]["file_name"] = file_name
        if file_name is None:
            del content["images"][0]["file_name"]
        results = measured(content, detections([(1, 1, (10, 10, 50, 40), 0.05)]))
        path = tmp_path / "report.html"
        (problem,) = write_report(path, results, metrics(results, None), images=folder)
        assert problem.startswith(expected)
        page = Page(path.read_text())
        assert not page.of("img") and html.escape(f"Not drawn: {problem}.") in page.text

    def test_a_turned_photograph_is_seen_as_its_annotations_see_it(self, tmp_path):
        content = ground_truth([(1, 1, BOX)])
        content["images"][0] |= {"width": 100, "height": 200}
        (tmp_path / "images").mkdir()
        image = Image.new("RGB", (200, 100))
        exif = image.getexif()
        exif[0x0112] = 6  # to be turned by a quarter
        image.save(tmp_path / "images" / "1.jpg", exif=exif)
        results = measured(content, detections([(1, 1, (10, 10, 50, 40), 0.05)]))
        page = written(tmp_path / "report.html", results, images=tmp_path / "images")
        (picture,) = page.of("img")
        assert int(picture["height"]) > int(picture["width"])

    def test_half_a_turn_is_seen_too(self, tmp_path):
        content = ground_truth([(1, 1, BOX)])
        (tmp_path / "images").mkdir()
        image = Image.new("RGB", (200, 200))
        image.paste((255, 0, 0), (140, 140, 190, 190))  # the object, once turned
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(tmp_path / "images" / "1.jpg", exif=exif)
        results = measured(content, detections([(1, 1, (10, 10, 50, 40), 0.05)]))
        page = written(tmp_path / "report.html", results, images=tmp_path / "images")
        (picture,) = page.of("img")
        shown = Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
        assert shown.getpixel((30, 30))[0] > 200 > 50 > shown.getpixel((120, 120))[0]

    @pytest.mark.parametrize("file_name", ["{}/sub/1.jpg", "C:\\images\\sub\\1.jpg", "sub\\1.jpg"])
    def test_paths_of_other_machines(self, tmp_path, file_name):
        content = ground_truth([(1, 1, BOX)])
        folder = tmp_path / "images"
        (folder / "sub").mkdir(parents=True)
        Image.new("RGB", (200, 200)).save(folder / "sub" / "1.jpg")
        content["images"][0]["file_name"] = file_name.format(folder)
        results = measured(content, detections([(1, 1, (10, 10, 50, 40), 0.05)]))
        assert written(tmp_path / "report.html", results, images=folder).of("img")

    def test_the_file_stays_small(self, problem, tmp_path, monkeypatch):
        content, rows = problem
        save_images(tmp_path / "images", content)
        results = measured(content, rows)
        path = tmp_path / "report.html"
        many = written(path, results, images=tmp_path / "images")
        limit = path.stat().st_size - 50_000
        monkeypatch.setattr("corrdet.report.writing.MAX_BYTES", limit)
        few = written(path, results, images=tmp_path / "images")
        assert path.stat().st_size <= limit + 200
        assert 0 < len(few.of("img")) < len(many.of("img"))
        assert "pictures are left out to keep the file small" in few.text


class TestTraining:
    def test_curves(self, problem, training, tmp_path):
        content, rows = problem
        page = written(tmp_path / "report.html", measured(content, rows), training=[training])
        assert "training" in page.sections and "pictures" not in page.sections
        names = re.findall(r'<figure id="training-([^"]*)"', page.text)
        assert [name.split("-")[0] for name in names] == [
            "AIC", "AIC", "correlation", "positives", "total", "loss", "loss",
        ]  # fmt: skip
        assert "Loss: odd/&lt;b&gt;" in page.text and "Positives: factor" in page.text
        assert len(training.values["correlation/spearman"][0]) == 399

    @pytest.mark.usefixtures("without_figures")
    def test_nothing_to_draw(self, problem, tmp_path):
        (tmp_path / "metrics.json").write_text('{"iteration": 0, "bbox/AP": 1.0}\n')
        content, rows = problem
        page = written(
            tmp_path / "report.html", measured(content, rows),
            training=[read_training(tmp_path, "<i>")],
        )  # fmt: skip
        assert "logged in the metrics of &lt;i&gt;" in page.text

    def test_iterations_that_were_trained_twice_count_once(self, tmp_path):
        lines = [(0, 1.0), (1, 2.0), (1, 5.0)]
        text = "".join(json.dumps({"iteration": i, "loss_cls": v}) + "\n" for i, v in lines)
        (tmp_path / "metrics.json").write_text(text)
        iterations, values = read_training(tmp_path, "run").values["loss_cls"]
        assert iterations.tolist() == [0, 1] and values.tolist() == [1, 5]

    @pytest.mark.parametrize("text", ["[1]\n", "{\n{}\n", '{"iteration": "x"}\n', "{"])
    def test_another_file(self, tmp_path, text):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(TrainingFileError, match="line 1: expected a JSON object"):
            read_training(tmp_path, "run")
