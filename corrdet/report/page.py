"""The report's page: its frame, style and script. One file, which asks the network for nothing."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from string import Template

# Series colours after Okabe and Ito, made darker on white and lighter on black where contrast asks
# for it.
STYLE = """
:root {
  color-scheme: light dark;
  --bg: #ffffff; --fg: #1b1f24; --muted: #566069; --grid: #dfe3e8; --panel: #f5f7f9;
  --accent: #0059a8;
  --s0: #0072b2; --s1: #c44e00; --s2: #00805c; --s3: #a63a7e; --s4: #7a6200; --s5: #3d4a9e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #14181d; --fg: #e8ebee; --muted: #a5afb9; --grid: #38414b; --panel: #1d232a;
    --accent: #7cc0ff;
    --s0: #56b4e9; --s1: #f58b45; --s2: #2fc79a; --s3: #e48fc4; --s4: #e0c341; --s5: #a3adf5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--bg); color: var(--fg); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
header, main, footer { max-width: 74rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.5rem 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .5rem;
  border-top: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
h1, h2, h3, h4, p, li, dd, figcaption, td, th, output, summary { overflow-wrap: anywhere; }
output { min-width: 0; }
p, ul, dl { max-width: 48rem; }
a { color: var(--accent); }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .5rem 1rem; background: var(--bg); z-index: 9; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; }
nav a { display: inline-block; padding: .25rem 0; }
.muted, .note, .what { color: var(--muted); }
.what { display: block; font-weight: normal; font-size: .85em; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--grid); border-radius: 6px; }
.tall { max-height: 85vh; overflow-y: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.summary { width: 100%; }
th, td { padding: .35rem .6rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
tr:last-child > * { border-bottom: 0; }
th:first-child, .text { text-align: left; }
thead th { background: var(--panel); font-weight: 600; vertical-align: bottom; }
.tall thead th { position: sticky; top: 0; z-index: 2; }
tbody th { font-weight: 600; background: var(--bg); }
.classes tbody th { position: sticky; left: 0; z-index: 1; }
.classes th:first-child { min-width: 7rem; max-width: 38vw; }
.classes td.text { min-width: 8rem; max-width: 14rem; overflow-wrap: break-word; }
.classes td { white-space: nowrap; }
.classes td.text { white-space: normal; }
.group th { background: var(--panel); text-align: left; }
.group span { position: sticky; left: .6rem; display: inline-block; max-width: calc(100vw - 4rem); }
.summary td { min-width: 6.5rem; overflow-wrap: normal; }
.summary thead th { min-width: 6.5rem; max-width: 14rem; overflow-wrap: break-word; }
.summary tbody th { min-width: 8.5rem; overflow-wrap: break-word; }
.interval { display: block; color: var(--muted); font-size: .85em; white-space: nowrap; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: .2rem 0;
  cursor: pointer; text-align: inherit; white-space: nowrap; }
th button::after { content: " \\2195"; color: var(--muted); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--accent); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--accent); }
.filter { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .5rem 0; }
.filter[hidden] { display: none; }
input[type=range] { flex: 1 1 12rem; max-width: 24rem; padding: 0; }
input { font: inherit; color: inherit; background: var(--bg); border: 1px solid var(--muted);
  border-radius: 6px; padding: .35rem .6rem; max-width: 100%; }
.figures { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%,
  26rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); }
.pictures .what { font-size: .8em; }
figure { margin: 0; min-width: 0; }
figure .drawing { max-width: 34rem; margin-bottom: .35rem; }
figure .drawing > svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .92rem; max-width: 40rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; padding: 0;
  margin: .25rem 0; font-size: .92rem; }
.swatch { width: 2rem; height: .75rem; margin-right: .4rem; vertical-align: middle; fill: none; }
@media (min-width: 60rem) {
  .beside { display: grid; grid-template-columns: minmax(0, 34rem) minmax(16rem, 1fr);
    gap: 1.5rem; align-items: center; }
}
details { font-size: .9rem; margin: .35rem 0; }
.errors details { border-top: 1px solid var(--grid); margin: 0; }
.errors summary { color: inherit; padding: .45rem 0; }
.errors summary strong { display: inline-block; min-width: 3rem; }
.errors .bar { display: flex; align-items: center; gap: .6rem; padding-left: 1rem; }
.errors .bar i { display: block; height: .8rem; min-width: 2px; border-radius: 2px; flex: none; }
.errors .track { flex: 1 1 8rem; max-width: 26rem; }
.errors .bar span { white-space: nowrap; }
@media (max-width: 40rem) {
  .errors .bar { flex-wrap: wrap; gap: 0 .6rem; }
  .errors .track { flex-basis: 100%; max-width: none; }
  .errors .bar span { white-space: normal; }
}
summary { cursor: pointer; color: var(--accent); padding: .2rem 0; }
.picture { position: relative; background: var(--panel); }
.picture img { display: block; width: 100%; height: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.picture rect { fill: none; vector-effect: non-scaling-stroke; }
.picture .under { stroke: #000; stroke-width: 5; }
.picture .object { stroke: #fff; stroke-width: 2.5; stroke-dasharray: 7 4; }
.picture .detection { stroke: #ffb000; stroke-width: 2.5; }
.key { display: inline-block; width: 2rem; height: .7rem; margin-right: .4rem; background: #000;
  vertical-align: middle; }
.key i { display: block; margin-top: .25rem; border-top: .2rem dashed #fff; }
.key i.solid { border-top: .2rem solid #ffb000; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin-left: 0; }
footer { margin: 3rem auto 2rem; color: var(--muted); font-size: .9rem; }
@media print {
  :root {
    color-scheme: light;
    --bg: #fff; --fg: #000; --muted: #444; --grid: #bbb; --panel: #f2f2f2; --accent: #000;
    --s0: #0072b2; --s1: #c44e00; --s2: #00805c; --s3: #a63a7e; --s4: #7a6200; --s5: #3d4a9e;
  }
  body { font-size: 10pt; }
  nav, .skip, .filter, details { display: none; }
  .scroll { overflow: visible; max-height: none; border: 0; }
  .classes { font-size: 6.5pt; width: 100%; }
  .classes th, .classes td { padding: .15rem .2rem; position: static !important;
    white-space: normal; min-width: 0 !important; }
  th button { white-space: normal; }
  th button::after { content: "" !important; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

# The slider of thresholds, sorting and filtering of the table of classes. Without a script the
# tables are there all the same.
SCRIPT = """
"use strict";
document.querySelectorAll(".operating").forEach((part) => {
  const files = JSON.parse(part.dataset.points);
  const slider = part.querySelector("input");
  const output = part.querySelector("output");
  const show = () => {
    const row = Number(slider.value);
    const shown = (file) => ["precision", "recall", "F1", "LRP"].map((key) => {
      const value = file.curves[key][row];
      return key + " " + (value === null ? "n.d." : value.toFixed(2));
    }).join(", ");
    output.textContent = (row / 100).toFixed(2) + ": " + files.map((file) =>
      (files.length > 1 ? file.name + ": " : "") + shown(file)).join("; ");
  };
  slider.addEventListener("input", show);
  part.hidden = false;
  show();
});
document.querySelectorAll("table.classes").forEach((table) => {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const status = document.getElementById(table.id + "-status");
  const input = document.getElementById(table.id + "-filter");
  let sorted = "";
  const report = () => {
    const shown = rows.filter((row) => !row.hidden).length;
    status.textContent = shown + " of " + rows.length + " rows" + sorted;
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    const isText = head.classList.contains("text");
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      // Names from A, numbers from the largest; then the other way round.
      const isAscending = before === "none" ? isText : before === "descending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
      const sign = isAscending ? 1 : -1;
      const keys = new Map(rows.map((row) => {
        const text = row.cells[column].textContent;
        return [row, isText ? text : parseFloat(text)];
      }));
      rows.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        if (isText) return sign * x.localeCompare(y, undefined, { numeric: true });
        // What is not defined comes last, in either direction.
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return sign * (x - y);
      });
      body.append(...rows);
      sorted = ", sorted by " + button.textContent + (isAscending ? ", ascending" : ", descending");
      report();
    });
  });
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    rows.forEach((row) => {
      const names = Array.from(row.cells).filter((cell, i) => heads[i].classList.contains("text"));
      const text = names.map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !text.includes(wanted);
    });
    report();
  });
  input.closest("[hidden]").hidden = false;
  report();
});
"""

# The policy lets a browser run the script above and no other, and load nothing. It stands behind
# the escaping of names, should that ever fail.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src '$script_hash'; base-uri 'none'; form-action 'none'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#summary">Skip to the numbers</a>
<header>
<h1>$title</h1>
$introduction
<nav aria-label="Sections"><ul>
$links
</ul></nav>
</header>
<main>
$sections
</main>
<footer>Made by corrdet. docs/measures.md of corrdet has the formulas.
$made</footer>
<script>$script</script>
</body>
</html>
""")


def page(
    title: str, introduction: str, sections: Sequence[tuple[str, str, str]], made: str = ""
) -> str:
    """A whole page.

    Args:
        title: as text.
        introduction: as HTML.
        sections: id, heading as text and content as HTML of each.
        made: of what, as HTML.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return PAGE.substitute(
        title=escape(title),
        introduction=introduction,
        links="\n".join(
            f'<li><a href="#{key}">{escape(heading)}</a></li>' for key, heading, _ in sections
        ),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-heading">\n'
            f'<h2 id="{key}-heading" tabindex="-1">{escape(heading)}</h2>\n{content}\n</section>'
            for key, heading, content in sections
        ),
        made=made,
        style=STYLE,
        script=SCRIPT,
        script_hash=f"sha256-{digest}",
    )
