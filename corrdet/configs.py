"""The configs that come with corrdet, for ``--config-file``, wherever it is installed."""

from pathlib import Path

from .errors import ConfigError
from .names import unknown_name


def folder() -> Path:
    """The folder of the configs: of an installed package, or of the source code."""
    installed = Path(__file__).with_name("configs_installed")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """The names that :func:`find` knows, such as ``"quick/retinanet_concordance"``."""
    files = folder().glob("*/*.yaml")
    return sorted(file.relative_to(folder()).with_suffix("").as_posix() for file in files)


def find(name: str) -> str:
    """The path of a config.

    Args:
        name: such as ``"quick/retinanet_concordance"``, with or without ``.yaml``.

    Raises:
        ConfigError: there is no such config.
    """
    path = folder() / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise ConfigError(unknown_name("config", name, names()))
    return str(path)
