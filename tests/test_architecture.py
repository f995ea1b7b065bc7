"""The arrows of docs/architecture.md: what a room may import, and that nothing runs in a circle."""

import ast
from graphlib import TopologicalSorter

import pytest

from tests.helpers.training import ROOT

BASE = {"errors", "names", "options", "config_keys", "files", "arrays_only", "activation", "wheels"}
# A room and the rooms that it is on, beside the base.
ON = {
    "ops": set(),
    "matching": {"ops"},
    "losses": {"ops"},
    "modeling": {"ops", "losses", "matching", "measures"},
    "coco": set(),
    "measures": {"coco"},
    "report": {"coco", "measures"},
    # ops, losses: for the figures of the docs
    "analysis": {"coco", "measures", "report", "ops", "losses"},
    "data": {"ops", "coco"},
    "engine": {"ops", "losses", "modeling", "coco", "measures", "report", "analysis", "data"},
    "integrations": {"losses", "matching", "modeling"},
    "config": {"losses", "matching", "modeling", "data", "engine"},
}
PACKAGE = ROOT / "corrdet"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path) -> set[str]:
    """Modules of corrdet that a file imports, also within functions, but not for types alone."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(up + (node.module or "").split(".")).strip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return {name for name in found if name in MODULES}


def room_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    room = room_of(module_of(path))
    others = {room_of(name) for name in imports_of(path)} - BASE - {room, ""}
    if room not in ("", "env"):  # the package's front door opens every room
        assert others <= ON.get(room, set())


def test_nothing_runs_in_a_circle():
    graph = {module_of(path): imports_of(path) - {module_of(path), "corrdet"} for path in FILES}
    # A package lists what is in it; its modules import each other by their files.
    packages = {module_of(path) for path in FILES if path.name == "__init__.py"}
    for package in packages:
        graph.pop(package, None)
    TopologicalSorter(
        {name: needed - packages for name, needed in graph.items()}
    ).prepare()  # CycleError
