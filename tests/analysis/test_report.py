import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from corrdet.analysis import report
from corrdet.analysis.__main__ import main, metrics
from corrdet.analysis.report import TrainingFileError, read_training, write_report
from corrdet.evaluation import bootstrap, detections_from_coco, ground_truth_from_coco, measure
from tests.analysis.browser import Browser, find_browser
from tests.evaluation.problems import detections, ground_truth, random_problem

ALWAYS = ["summary", "density", "calibration", "shares", "bounds", "precision", "classes", "words"]
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&amp; '$title"
VOID = {"meta", "img", "input", "wbr", "br", "link"}


class Page(HTMLParser):
    """What tests ask of a page: elements with attributes, and texts of tables and captions."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] | None = None
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(attributes.get("class", ""), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.of("section")]

    def rows(self, table: str) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in self.tables[table]}


def measured(content, *of_files, iou_type="bbox"):
    gt = ground_truth_from_coco(content, iou_type)
    return [
        measure(gt, detections_from_coco(rows, gt, iou_type), iou_type=iou_type, name=f"file {n}")
        for n, rows in enumerate(of_files)
    ]


def written(path, results, samples=None, **options) -> Page:
    write_report(path, results, metrics(results, samples), **options)
    return Page(path.read_text(encoding="utf-8"))


def shifted(rows, by):
    return [{**row, "bbox": [row["bbox"][0] + by, *row["bbox"][1:]]} for row in rows]


def save_images(folder, content):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for image in content["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])


def assert_alone(page: Page) -> None:
    """The file asks for no other."""
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or (tag == "img" and value.startswith("data:image/"))
        assert tag not in ("link", "iframe", "object", "base")
    without_images = re.sub(r"data:image/jpeg;base64,[\w+/=]*", "", page.text)
    assert not re.search(r"https?:|[\"'(=]//|@import|url\((?!#)", without_images)
    assert "default-src 'none'" in page.text


@pytest.fixture
def problem():
    content, rows = random_problem(0, images=20)
    return content, rows


@pytest.fixture
def training(tmp_path):
    """A folder with what a training logs, and a last line that is being written."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"iteration": 20 * n + 19, "total_loss": 3 / (n + 1), "loss_cls": 2 / (n + 1),
         "loss_odd/<b>": 1.0, "AIC/mean": 0.5 - 0.001 * n, "AIC/sum": 40.0, "lr": 0.1,
         "correlation/spearman": float("nan") if n == 3 else n / 400,
         "positives/factor-mean": 1.5, "positives/factor-p10": 1.1, "positives/factor-p50": 1.4,
         "positives/factor-p90": 1.9}
        for n in range(400)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.json").write_text(text + '{"iteration": 80')
    return read_training(folder, "run")


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
    assert len(page.text.encode()) < 1_000_000
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="|url\()#([^")]*)', page.text):
        assert target in ids
    # Each figure has a text alternative and a caption.
    drawings = [a for a in page.of("div") if a.get("class") == "drawing"]
    assert len(drawings) == 2 + 3 + 3 + 7 and all(len(a["aria-label"]) > 60 for a in drawings)
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
    assert ap[2] == f"{other['differences']['AP']:+.2f} *[{low:+.2f}, {high:+.2f}]" and high < 0


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
        for key, label, _ in report.COLUMNS:
            expected = "n.d." if values[key] is None else values[key]
            assert row[places[label]] == (
                f"{expected:.2f}" if isinstance(expected, float) else str(expected)
            )
    first, second = (entry["per_class"][body[0][0]] for entry in (entries, *entries["others"]))
    for key in report.COMPARED:
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
    assert HOSTILE in page.tables["classes"][1][0]
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
        labels = re.findall(r"<strong>(class [^<]*score[^<]*)</strong>", page.text)
        assert labels == [
            "class 1: score 0.90, IoU 0.43",
            "class 1: score 0.05, IoU 0.80",
            "class 1: score 0.90, IoU 0.96",
        ]
        rectangles = [a for a in page.of("rect") if a.get("class") == "detection"]
        assert [float(a["width"]) for a in rectangles] == [50, 50, 50]

    @pytest.mark.parametrize(
        "file_name, expected",
        [
            ("gone.jpg", "gone.jpg is missing"),
            ("../1.jpg", "../1.jpg is outside of the folder"),
            ("/etc/hostname", "/etc/hostname is outside of the folder"),
            ("text.jpg", "text.jpg cannot be read"),
            ("small.png", "small.png has 9 x 9 pixels, its annotations are of 200 x 200"),
            ("", "an image has no file name"),
        ],
    )
    def test_what_cannot_be_drawn_is_said(self, tmp_path, file_name, expected):
        content = ground_truth([(1, 1, BOX)])
        folder = tmp_path / "images"
        save_images(folder, content)
        (folder / "text.jpg").write_text("no image")
        Image.new("RGB", (9, 9)).save(folder / "small.png")
        content["images"][0]["file_name"] = file_name
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

    def test_the_file_stays_small(self, problem, tmp_path, monkeypatch):
        content, rows = problem
        save_images(tmp_path / "images", content)
        results = measured(content, rows)
        path = tmp_path / "report.html"
        many = written(path, results, images=tmp_path / "images")
        monkeypatch.setattr(report, "MAX_BYTES", path.stat().st_size - 50_000)
        few = written(path, results, images=tmp_path / "images")
        assert path.stat().st_size <= report.MAX_BYTES + 200
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


@pytest.fixture(scope="module")
def browser():
    with Browser(find_browser()) as browser:
        yield browser


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory):
    """As the command writes it, with long and hostile names, images and a training."""
    folder = tmp_path_factory.mktemp("report")
    content, rows = random_problem(0, images=20)
    for number, category in enumerate(content["categories"]):
        category["name"] = f"{HOSTILE} {number}" if number else "a_very_long_name" * 5
    for name, data in (("gt", content), ("a", rows), (f"{'long' * 20}", shifted(rows, 4))):
        (folder / f"{name}.json").write_text(json.dumps(data))
    save_images(folder / "images", content)
    (folder / "metrics.json").write_text(
        "".join(json.dumps({"iteration": n, "total_loss": 1 / (n + 1)}) + "\n" for n in range(9))
    )
    main(["--ground-truth", str(folder / "gt.json"), "--output", str(folder),
          "--detections", str(folder / "a.json"), str(folder / f"{'long' * 20}.json"),
          "--images", str(folder / "images"), "--training", str(folder), "--bootstrap", "100",
          ])  # fmt: skip
    # The command's metrics.json is where the training's was: reports are of what was read before.
    return folder / "report.html"


def names(browser):
    return browser.run(
        "Array.from(document.querySelectorAll('.classes tbody tr')).filter(r => !r.hidden)"
        ".map(r => r.cells[0].textContent)"
    )


def column(browser, index):
    return browser.run(
        "Array.from(document.querySelectorAll('.classes tbody tr'))"
        f".map(r => r.cells[{index}].textContent)"
    )


def values_of(cells):
    return [float(cell) for cell in cells if cell != "n.d."]


@pytest.mark.browser
class TestInBrowser:
    @pytest.mark.parametrize("width, dark", [(375, False), (320, True), (1280, True)])
    def test_it_opens_alone_and_fits(self, browser, whole_report, width, dark):
        browser.open(whole_report, width=width, dark=dark)
        assert browser.errors() == []
        others = [url for url in browser.requests() if not url.startswith("data:")]
        assert others == [whole_report.resolve().as_uri()]
        assert browser.run("document.documentElement.scrollWidth") <= width
        # All pictures are there, and all figures have a size.
        assert browser.run("document.images.length") > 8
        assert browser.run("Array.from(document.images).every(i => i.naturalWidth > 50)")
        assert browser.run(
            "Array.from(document.querySelectorAll('.drawing > svg')).every("
            "s => s.getBoundingClientRect().height > 100)"
        )
        # Nothing sticks out of its figure, and tables scroll in their own boxes.
        assert browser.run(
            "Array.from(document.querySelectorAll('.scroll')).every("
            f"s => s.getBoundingClientRect().right <= {width})"
        )

    @pytest.mark.parametrize("dark", [False, True])
    def test_text_and_curves_are_readable(self, browser, whole_report, dark):
        browser.open(whole_report, dark=dark)
        colors = browser.run("""(() => {
            const probe = document.body.appendChild(document.createElement("i"));
            const get = (value) => { probe.style.color = value; return getComputedStyle(probe).color; };
            const names = ["bg", "fg", "muted", "accent", "s0", "s1", "s2", "s3", "s4", "s5", "panel"];
            return Object.fromEntries(names.map(n => [n, get(`var(--${n})`)]));
        })()""")  # noqa: E501
        page_color = browser.run("getComputedStyle(document.body).backgroundColor")
        assert page_color == colors["bg"]
        assert (luminance(page_color) < 0.1) == dark
        for background in ("bg", "panel"):
            for name in ("fg", "muted", "accent"):
                assert contrast(colors[name], colors[background]) >= 4.5, name
        assert all(contrast(colors[f"s{i}"], colors["bg"]) >= 4 for i in range(6))
        # Figures follow the page: the text of an axis has its colour.
        label = "getComputedStyle(document.querySelector('#calibration-0 svg text')).fill"
        assert browser.run(label) == colors["fg"]

    def test_sorting_by_mouse(self, browser, whole_report):
        browser.open(whole_report)
        before = column(browser, 3)
        assert "n.d." in before and values_of(before) != sorted(values_of(before))
        head = "document.querySelectorAll('.classes thead th')[3]"
        for order, reverse in (("descending", True), ("ascending", False)):
            browser.run(f"{head}.querySelector('button').click()")
            after = column(browser, 3)
            assert values_of(after) == sorted(values_of(before), reverse=reverse)
            assert "n.d." in after[-1] and sorted(after) == sorted(before)
            assert browser.run(f"{head}.getAttribute('aria-sort')") == order
            status = browser.run("document.getElementById('classes-table-status').textContent")
            assert status == f"8 of 8 rows, sorted by AP, {order}"
        browser.run("document.querySelectorAll('.classes thead button')[0].click()")
        assert browser.run(f"{head}.getAttribute('aria-sort')") == "none"
        assert names(browser)[0] == names(browser)[1]

    def test_sorting_and_filtering_by_keyboard(self, browser, whole_report):
        browser.open(whole_report)
        browser.press("Tab")
        focused = "document.activeElement.textContent"
        assert browser.run(focused) == "Skip to the summary"
        assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
        browser.press("Enter", "\r")
        assert browser.run("location.hash") == "#summary"
        browser.run("document.getElementById('classes-table-filter').focus()")
        for letter in "LONG":
            browser.press(letter, letter)
        shown = names(browser)
        # Names of files count too.
        assert 0 < len(shown) < 8
        for _ in range(8):
            browser.press("Tab")
            if browser.run(focused) == "objects":
                break
        assert browser.run("document.activeElement.tagName") == "BUTTON"
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
        browser.press(" ", " ")
        objects = values_of(column(browser, 2))
        assert objects == sorted(objects, reverse=True)
        assert sorted(names(browser)) == sorted(shown)
        browser.press("Enter", "\r")
        assert values_of(column(browser, 2)) == sorted(objects)
        assert browser.errors() == []

    @pytest.mark.usefixtures("without_figures")
    def test_a_script_in_a_name_would_not_run(self, browser, tmp_path, problem):
        """Were the escaping to fail, the page's policy would stop it."""
        content, rows = problem
        path = tmp_path / "report.html"
        written(path, measured(content, rows))
        text = path.read_text().replace("<h1>", "<h1><script>window.ran = 1</script>")
        path.write_text(text)
        browser.open(path)
        assert browser.run("window.ran") is None and browser.errors()


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
