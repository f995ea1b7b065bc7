"""A grid of trainings, as one YAML says it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from corrdet.errors import CorrdetError

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "baseline"
_KEYS = {"name", "opts", "seeds", "detectors", "losses"}


class GridError(CorrdetError, ValueError):
    """A grid that cannot be read."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        detector, loss: names in the grid.
        seed: of the training.
        config: file, relative to the repository.
        opts: ``KEY VALUE ...`` of train_net.py, without seed and folder.
    """

    detector: str
    loss: str
    seed: int
    config: str
    opts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of what is trained, but for the seed: another config or option is another run."""
        content = [*_texts(ROOT / self.config), *self.opts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        return f"{self.detector}-{self.loss}-{self.digest}-seed{self.seed}"


def _texts(path: Path) -> list[str]:
    """Of a config and those that it is based on, without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    base = (yaml.safe_load(text) or {}).get("_BASE_")
    return [text, *(_texts(path.parent / base) if base else [])]


@dataclass(frozen=True)
class Grid:
    """
    Attributes:
        name: of the study; its folder is called so.
        runs: seed by seed, so that every loss has one before any has two.
        claims: loss -> what its paper says it brings, in AP.
    """

    name: str
    runs: tuple[Run, ...]
    claims: dict[str, str]


def read_grid(path: str | Path) -> Grid:
    """
    Args:
        path: a YAML file with ``name``, ``seeds``, ``detectors`` (name -> ``config``, perhaps
            ``opts``, ``opts_of`` (loss -> options) and ``losses``, the names of those that it
            takes), ``losses`` (name -> ``opts``, perhaps ``claim``), of which one is ``baseline``,
            and ``opts`` for all. Options are mappings of keys to values.

    Raises:
        GridError: it is none.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GridError(f"{path} was not read: {error}") from error
    if not isinstance(content, dict) or not _KEYS - {"opts"} <= content.keys() <= _KEYS:
        keys = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise GridError(f"{path}: expected the keys {', '.join(sorted(_KEYS))}, got {keys}")
    losses = content["losses"]
    if BASELINE not in losses:
        raise GridError(f"{path}: expected a loss named {BASELINE!r}, got {', '.join(losses)}")
    runs = tuple(_runs(content, str(path)))
    claims = {name: loss["claim"] for name, loss in losses.items() if loss and "claim" in loss}
    return Grid(content["name"], runs, claims)


def _runs(content: dict, path: str) -> Iterator[Run]:
    losses = content["losses"]
    for seed in content["seeds"]:
        for detector, entry in content["detectors"].items():
            if not (ROOT / entry["config"]).is_file():
                raise GridError(f"{path}: {detector}: no config {entry['config']!r}")
            for loss in entry.get("losses", losses):
                if loss not in losses:
                    raise GridError(
                        f"{path}: {detector} takes {loss!r}, which is no loss of the grid: "
                        f"{', '.join(losses)}"
                    )
                options = {**content.get("opts", {}), **entry.get("opts", {})}
                options |= (losses[loss] or {}).get("opts", {})
                # A detector's own options for a loss come last.
                options |= entry.get("opts_of", {}).get(loss, {})
                words = [str(word) for pair in options.items() for word in pair]
                yield Run(detector, loss, int(seed), entry["config"], tuple(words))
