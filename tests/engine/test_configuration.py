from argparse import Namespace
from pathlib import Path

import pytest

from corrdet.data.register import RegistrationError
from corrdet.engine import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quick/retinanet_concordance.yaml")


def load(file=QUICK, *opts):
    return load_config(Namespace(config_file=str(file), opts=[str(opt) for opt in opts]))


def test_file_and_overrides():
    cfg = load(QUICK, "MODEL.CRITERION.CORRELATION.WEIGHT", "0.7", "SEED", "3")
    assert cfg.MODEL.CRITERION.COUPLINGS == ("correlation",)
    assert cfg.MODEL.CRITERION.CORRELATION.COEFFICIENT == "concordance"
    assert cfg.MODEL.CRITERION.CORRELATION.WEIGHT == 0.7
    assert cfg.SEED == 3
    assert cfg.is_frozen()


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.name)
def test_every_config_loads(file):
    load(file)


@pytest.mark.parametrize(
    "yaml",
    [
        "SEED: !!python/object/apply:os.mkdir [{trap}]",
        "SEED: !!python/object/new:os.mkdir [{trap}]",
        "_BASE_: {base}",
    ],
)
def test_a_malicious_config_does_not_run(tmp_path, yaml):
    trap, base, config = tmp_path / "trap", tmp_path / "base.yaml", tmp_path / "config.yaml"
    base.write_text(f"SEED: !!python/object/apply:os.mkdir [{trap}]\n")
    config.write_text(yaml.format(trap=trap, base=base))
    with pytest.raises(ConfigError, match="could run code"):
        load(config)
    assert not trap.exists()


def test_a_malicious_override_does_not_run(tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(ConfigError):
        load(QUICK, "SEED", f"__import__('os').mkdir('{trap}')")
    assert not trap.exists()


class TestBadInput:
    def test_missing_file(self):
        with pytest.raises(ConfigError, match="no config file at 'nowhere.yaml'"):
            load("nowhere.yaml")

    def test_no_yaml(self, tmp_path):
        (tmp_path / "bad.yaml").write_text("MODEL: [1,\n")
        with pytest.raises(ConfigError, match="bad.yaml is not valid YAML"):
            load(tmp_path / "bad.yaml")

    def test_unknown_key_in_the_file(self, tmp_path):
        (tmp_path / "bad.yaml").write_text("MODEL:\n  CRITERION:\n    COUPLING: [correlation]\n")
        with pytest.raises(ConfigError, match="'MODEL.CRITERION.COUPLING'; did you mean "
                                              "'MODEL.CRITERION.COUPLINGS'"):  # fmt: skip
            load(tmp_path / "bad.yaml")

    def test_unknown_key_on_the_command_line(self):
        message = "command line: unknown config key 'SOLVER.MAX_ITERS'; did you mean 'SOLVER.MAX_I"
        with pytest.raises(ConfigError, match=message):
            load(QUICK, "SOLVER.MAX_ITERS", 3)
        with pytest.raises(ConfigError, match="did you mean 'MODEL.CRITERION.CORRELATION.WEIGHT'"):
            load(QUICK, "MODEL.CRITERIA.CORRELATION.WEIGHT", 3)

    def test_odd_number_of_overrides(self):
        with pytest.raises(ConfigError, match="KEY VALUE pairs, got an odd number"):
            load(QUICK, "SOLVER.MAX_ITER")

    def test_value_of_the_wrong_type(self):
        with pytest.raises(ConfigError, match="SOLVER.MAX_ITER"):
            load(QUICK, "SOLVER.MAX_ITER", "many")

    @pytest.mark.parametrize(
        "key, value, message",
        [
            ("MODEL.META_ARCHITECTURE", "CorrdetRetina", "did you mean 'CorrdetRetinaNet'"),
            ("MODEL.BACKBONE.NAME", "build_resnet_backbon", "did you mean 'build_resnet_backbone'"),
            ("MODEL.ANCHOR_GENERATOR.NAME", "AnchorGenerator", "'DefaultAnchorGenerator'"),
            ("DATASETS.TRAIN", "('digit_train',)", "did you mean 'digits_train'"),
            ("DATASETS.TEST", "('digits_vall',)", "did you mean 'digits_val'"),
        ],
    )
    def test_unknown_names(self, key, value, message):
        with pytest.raises(ConfigError, match=f"{key}: unknown .*{message}"):
            load(QUICK, key, value)

    def test_missing_data(self):
        with pytest.raises(RegistrationError, match="no annotation file"):
            load(QUICK, "DATASETS.REGISTER", "('mine=gone.json:images',)")
