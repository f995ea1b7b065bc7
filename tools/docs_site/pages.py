"""The pages of the site that are made from the code, as Markdown."""

import inspect
import json
from pathlib import Path

from corrdet import losses
from corrdet.losses.registry import RegisteredLoss
from corrdet.losses.weight import WEIGHT_OPTIONS
from corrdet.options import Key

from .examples import REGISTRIES, cost, example, machine

ROOT = Path(__file__).resolve().parents[2]
TITLES = {
    "classification": "Classification losses",
    "localization": "Localization losses",
    "couplings": "Couplings",
}
# Pictures of docs/figures that are about one loss, drawn as in its paper.
FIGURES = {
    "association": "association_surfaces.png",
    "harmonic": "harmonic_gradient.png",
    "iou_balanced_smooth_l1": "iou_balanced_gradient.png",
    "correlation": "soft_rank_regimes.png",
}


def all_losses() -> list[tuple[str, str]]:
    """Kind and name of each, by kind."""
    return [(kind, name) for kind, registry in REGISTRIES.items() for name in sorted(registry)]


def loss_page(kind: str, name: str) -> str:
    """Formula, picture, lines, options, cost and source of one loss."""
    loss = REGISTRIES[kind][name]
    reference = cost("classification", "sigmoid_focal")
    parts = [
        f"# `{name}`\n",
        f"**Definition:** {loss.definition}.\n",
        f"**When to use it:** {loss.use}.\n" if loss.use else "",
        f"**Gradient reaches:** {loss.reaches}.\n" if loss.reaches else "",
        f"**Heads:** {' and '.join(loss.activations)}.\n",
        f"![the gradient of {name}](../figures/gradients/{name}.png)\n",
        _about_the_picture(kind),
        f"```python\n{example(kind, name)}```\n",
        _options(kind, loss),
        _functions(loss),
        "## Cost\n",
        f"{cost(kind, name):.1f} ms forward and backward for 20 000 samples of 80 classes with 200 "
        f"positives, where `sigmoid_focal` takes {reference:.1f} ms: on {machine()}.\n",
        "## Source\n",
        f"{loss.source}. " if loss.source else "",
        f"Code: [{_path(loss)}](../../{_path(loss)}).\n",
    ]
    if name in FIGURES:
        parts.append(f"![{name}](../figures/{FIGURES[name]})\n")
    return "\n".join(part for part in parts if part)


def gallery() -> str:
    """All pictures of gradients, and those of docs/figures."""
    lines = [
        "# Gallery\n",
        "Every picture is drawn by the losses as they are coded, and autograd.\n",
    ]
    for kind, title in TITLES.items():
        lines.append(f"## {title}\n")
        for own, name in all_losses():
            if own == kind:
                lines.append(f"### [`{name}`](losses/{name}.md)\n")
                lines.append(f"![the gradient of {name}](figures/gradients/{name}.png)\n")
    lines.append("## As in the papers\n")
    lines += [f"![{name}](figures/{figure})\n" for name, figure in sorted(FIGURES.items())]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """A notebook with the outputs that it was saved with."""
    cells = json.loads(path.read_text())["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output.get("name") == "stderr":  # progress bars
                continue
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![](data:image/png;base64,{image})")
            elif text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _about_the_picture(kind: str) -> str:
    if kind == "localization":
        return "A square box is shifted to one side; the gradient's size is that of one positive.\n"
    what = "What it adds to the gradient" if kind == "couplings" else "The gradient"
    return (
        f"{what} at the logits of 147 positives of three IoUs, and of 49 negatives, all of one "
        "batch, by their score. A negative value moves the score up.\n"
    )


def _options(kind: str, loss: RegisteredLoss) -> str:
    options: dict[str, Key] = dict(loss.options)
    if kind == "couplings":
        options |= WEIGHT_OPTIONS
    if not options:
        return ""
    rows = [
        f"| `{option}` | {loss.weight if option == 'weight' else key.default!r} "
        f"| {key.range.expected} | {key.line} |"
        for option, key in options.items()
    ]
    return "\n".join(
        ["## Options\n", "| name | default | values | |", "| --- | --- | --- | --- |", *rows, ""]
    )


def _functions(loss: RegisteredLoss) -> str:
    """The pure functions of the loss's module, with their docstrings."""
    module = inspect.getmodule(loss.function)
    public = [
        name
        for name in losses.__all__
        if inspect.isfunction(function := getattr(losses, name))
        and function.__module__ == module.__name__
    ]
    return "\n".join(f"::: corrdet.losses.{name}\n" for name in public)


def _path(loss: RegisteredLoss) -> str:
    path = inspect.getsourcefile(inspect.unwrap(loss.function))
    return str(Path(path).resolve().relative_to(ROOT))
