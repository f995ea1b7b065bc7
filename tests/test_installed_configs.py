"""corrdet.configs: the configs by name, in the source code and in an installed package."""

import shutil
from pathlib import Path

import pytest

from corrdet import configs
from corrdet.errors import ConfigError
from tests.helpers.training import ROOT


def test_configs_by_name():
    expected = str(ROOT / "configs/quick/retinanet_concordance.yaml")
    assert configs.find("quick/retinanet_concordance") == expected
    assert configs.find("quick/retinanet_concordance.yaml") == expected
    assert all(Path(configs.find(name)).is_file() for name in configs.names())
    assert "quick/retinanet_concordance" in configs.names()


def test_unknown_configs():
    with pytest.raises(ConfigError, match="did you mean 'quick/retinanet_concordance'"):
        configs.find("quick/retinanet_concordanse")


def test_those_of_an_installed_package(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "configs/quick", tmp_path / "configs_installed/quick")
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "configs.py"))
    assert configs.find("quick/retinanet_concordance").startswith(str(tmp_path))
