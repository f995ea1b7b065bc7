"""The report in a browser."""

import json
import re

import pytest

from corrdet.analysis.__main__ import main
from tests.helpers.browser import Browser, find_browser
from tests.helpers.problems import random_problem
from tests.helpers.report import HOSTILE, measured, save_images, shifted, written


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
    @pytest.mark.slow
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
        assert browser.run(focused) == "Skip to the numbers"
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

    @pytest.mark.slow
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
