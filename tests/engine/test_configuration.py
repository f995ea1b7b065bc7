import sys
from argparse import Namespace
from pathlib import Path

import pytest

from corrdet.data.register import RegistrationError
from corrdet.engine import (
    ConfigError,
    CorrdetTrainer,
    check_gpus,
    check_output,
    check_run,
    import_modules,
    load_config,
)
from corrdet.engine.ranges import check_channels
from corrdet.modeling.core import config_checks

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quick/retinanet_concordance.yaml")
PAIRS = ["ab", "bc", "cd", "de", "ef", "fg", "gh"]  # names of anchors, each ten times in the next


def load(file=QUICK, *opts):
    return load_config(Namespace(config_file=str(file), opts=[str(opt) for opt in opts]))


def test_file_and_overrides():
    cfg = load(QUICK, "MODEL.CRITERION.CORRELATION.WEIGHT", "0.7", "SEED", "3")
    assert cfg.MODEL.CRITERION.COUPLINGS == ("correlation",)
    assert cfg.MODEL.CRITERION.CORRELATION.COEFFICIENT == "concordance"
    assert cfg.MODEL.CRITERION.CORRELATION.WEIGHT == 0.7
    assert cfg.SEED == 3
    assert cfg.is_frozen()


@pytest.mark.slow
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

    def test_missing_base(self, tmp_path):
        config = tmp_path / "config.yaml"
        config.write_text("_BASE_: nowhere.yaml\n")
        with pytest.raises(
            ConfigError, match="nowhere.yaml, the _BASE_ of .*config.yaml, was not read: No such"
        ):
            load(str(config))

    def test_no_yaml(self, tmp_path):
        (tmp_path / "bad.yaml").write_text("MODEL: [1,\n")
        with pytest.raises(ConfigError, match="bad.yaml is not valid YAML: line 2, .*") as caught:
            load(tmp_path / "bad.yaml")
        assert "\n" not in str(caught.value)
        (tmp_path / "bad.yaml").write_text("SEED: 1\nMODEL:\n  FPN: {NORM: [}\n")
        with pytest.raises(ConfigError, match=r"YAML: line 3, column 16: while parsing a flow"):
            load(tmp_path / "bad.yaml")
        for content in (b"SEED: \xff", b"SEED: \x00"):
            (tmp_path / "bad.yaml").write_bytes(content)
            with pytest.raises(ConfigError, match="bad.yaml is not") as caught:
                load(tmp_path / "bad.yaml")
            assert "\n" not in str(caught.value)

    def test_a_base_at_an_address(self, tmp_path):
        (tmp_path / "config.yaml").write_text("_BASE_: https://example.com/base.yaml\n")
        with pytest.raises(ConfigError, match="_BASE_ is the address https://example.com/base.y"):
            load(tmp_path / "config.yaml")

    def test_an_address_that_gives_nothing(self):
        with pytest.raises(ConfigError, match="^http://127.0.0.1:9/c.yaml was not read: .*refused"):
            load("http://127.0.0.1:9/c.yaml")

    @pytest.mark.slow
    @pytest.mark.parametrize("text, message", [
        ("[" * 10_000, "not valid YAML: .*too deep"),
        ("a" * 2_000_000, "more than 1000000 bytes"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in PAIRS),
            "more than 100000 values",
        ),
        ("SEED: &a [*a]\n", "more than 100000 values"),
    ], ids=["depth", "length", "anchors", "itself"])  # fmt: skip
    def test_bombs(self, text, message, tmp_path):
        (tmp_path / "bomb.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f"bomb.yaml .*{message}"):
            load(tmp_path / "bomb.yaml")

    @pytest.mark.parametrize("text, message", [
        ("", "bad.yaml is empty: expected keys"),
        ("# SEED: 1\n", "bad.yaml is empty: expected keys"),
        ("- SEED: 1\n", "bad.yaml holds a list: expected keys"),
        ("SEED\n", "bad.yaml holds a str: expected keys"),
        ("_BASE_: bad.yaml\n", "its _BASE_ leads back to itself: bad.yaml -> bad.yaml"),
        ("_BASE_: middle.yaml\n", "leads back to itself: middle.yaml -> end.yaml -> middle.yaml"),
        ("_BASE_: empty.yaml\n", "empty.yaml is empty"),
        ("_BASE_: [empty.yaml]\n", "empty.yaml is empty"),
        ("_BASE_: 3\n", "_BASE_ must be the path of a config file, got 3"),
        ("_BASE_:\n", "_BASE_ must be the path of a config file, got None"),
        ("MODEL:\n", "MODEL: expected keys below it, such as MODEL.LOAD_PROPOSALS, got None"),
        ("MODEL:\n  FPN: 3\n", "bad.yaml: MODEL.FPN: expected keys below it, .*, got 3"),
        ("1: 2\n", "bad.yaml: 1 is no text: expected the name of a key"),
    ])  # fmt: skip
    def test_yaml_without_keys(self, text, message, tmp_path):
        (tmp_path / "bad.yaml").write_text(text)
        (tmp_path / "empty.yaml").write_text("")
        (tmp_path / "middle.yaml").write_text("_BASE_: end.yaml\n")
        (tmp_path / "end.yaml").write_text("_BASE_: ./middle.yaml\n")
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / "bad.yaml")

    def test_two_bases_may_have_the_same_base(self, tmp_path):
        (tmp_path / "bottom.yaml").write_text("SEED: 7\n")
        for name in ("left", "right"):
            (tmp_path / f"{name}.yaml").write_text("_BASE_: bottom.yaml\n")
        (tmp_path / "top.yaml").write_text(f"_BASE_: [left.yaml, right.yaml, {QUICK}]\n")
        assert load(tmp_path / "top.yaml", "SEED", 7).SEED == 7

    def test_no_yaml_file(self, tmp_path):
        (tmp_path / "lazy.py").write_text("raise SystemExit('it ran')\n")
        with pytest.raises(ConfigError, match="lazy.py is Python, .*LazyConfig.*expected a YAML"):
            load(tmp_path / "lazy.py")
        with pytest.raises(ConfigError, match="is a folder: expected a YAML file"):
            load(tmp_path)

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


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.CRITERION.COUPLINGS", "('corelation',)", "did you mean 'correlation'"),
        ("MODEL.CRITERION.LOCALIZATION", "smoothl1", "did you mean 'smooth_l1'"),
        ("MODEL.CRITERION.CORRELATION.COEFFICIENT", "spaerman", "did you mean 'spearman'"),
        ("MODEL.CRITERION.CORRELATION.STRENGTH", 0, "STRENGTH must be .*> 0"),
        ("MODEL.CRITERION.CORRELATION.STRENGTH", "abc", "STRENGTH must be .*> 0"),
        ("MODEL.CRITERION.CORRELATION.WEIGHT", -1.0, "must be >= 0"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.1, "set MODEL.CRITERION.SMOOTH_L1.BETA"),
    ],
)
def test_losses_are_checked(key, value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(QUICK, key, value)
    assert str(caught.value).startswith(key.rpartition(".")[0][:14])
    # Detectron2's detectors do not read options.
    stages, levels = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5", "p6"]
    other = [
        "GeneralizedRCNN",
        "MODEL.BACKBONE.NAME", "build_resnet10_fpn_backbone",
        "MODEL.FPN.IN_FEATURES", stages,
        "MODEL.RPN.IN_FEATURES", levels,
    ]  # fmt: skip
    unset = "MODEL.CRITERION.COUPLINGS", "()"
    if key.count(".") > 2 or "RETINANET" in key:
        load(QUICK, key, value, "MODEL.META_ARCHITECTURE", *other, *unset)


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "MODEL.CRITERION.COUPLINGS",
            "correlation",
            "expected a tuple such as \"('correlation',)\", got the text 'correlation'",
        ),
        ("INPUT.MIN_SIZE_TRAIN", 320, 'expected a tuple such as "(320,)", got 320'),
        ("SOLVER.MAX_ITER", "ten", "expected an integer such as 40000, got the text 'ten'"),
        ("SOLVER.MAX_ITER", 2.5, "expected an integer such as 40000, got 2.5"),
        ("SOLVER.BASE_LR", "abc", "expected a number such as 0.001, got the text 'abc'"),
        ("TEST.BETA_IMG", 1, "expected True or False, got 1"),
        ("OUTPUT_DIR", 3, "expected a text such as './output', got 3"),
        ("MODEL.CRITERION", 3, "expected keys below it, such as MODEL.CRITERION.CLASSIFICATION"),
    ],
)
def test_values_of_the_wrong_type_are_explained(key, value, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load("", key, value)
    assert f"the command line: {key}: {message}" in str(caught.value)
    yaml = "VERSION: 2\n"
    for depth, part in enumerate(key.split(".")):
        yaml += "\n" * (depth > 0) + "  " * depth + f"{part}:"
    (tmp_path / "bad.yaml").write_text(f"{yaml} {value}\n")
    with pytest.raises(ConfigError, match="bad.yaml: ") as caught:
        load(tmp_path / "bad.yaml")
    assert f"{key}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("INPUT.CROP.PROBABILITY", 1.5, r"must be in \[0, 1\], got 1.5"),
        (
            "INPUT.CROP.MIN_SIZE_BEFORE",
            "(400, 0)",
            r"must be a list of numbers, .*got \(400, 0\)",
        ),
        ("INPUT.FIXED_SIZE", "(512,)", r"must be \(height, width\) in pixels"),
        ("SOLVER.OPTIMIZER", "ADAM", "unknown name 'ADAM'; did you mean 'ADAMW'"),
        ("DATASETS.REGISTER", "(3,)", "must be a tuple of texts"),
        ("SOLVER.MAX_ITER", 0, "must be >= 1, got 0"),
        ("SOLVER.MAX_ITER", -5, "must be >= 1, got -5"),
        ("SOLVER.IMS_PER_BATCH", 0, "must be >= 1, got 0"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "must be >= 1, got 0"),
        ("SOLVER.CHECKPOINT_PERIOD", -1, "must be >= 1, got -1"),
        ("SOLVER.BASE_LR", "-0.1", "must be >= 0, got -0.1"),
        ("SOLVER.STEPS", "(20, 10)", r"must be iterations in ascending order.* got \(20, 10\)"),
        ("SOLVER.STEPS", "(0, 10)", r"must be iterations in ascending order, each >= 1"),
        ("SOLVER.STEPS", "('a',)", r"must be iterations in ascending order, each >= 1"),
        ("SOLVER.WARMUP_ITERS", -1, "must be >= 0, got -1"),
        ("SOLVER.WARMUP_FACTOR", 2.0, r"must be in \[0, 1\], got 2.0"),
        ("SOLVER.WARMUP_METHOD", "liner", "unknown name 'liner'; did you mean 'linear'"),
        ("TEST.EVAL_PERIOD", -1, "must be >= 0, got -1"),
        ("VIS_PERIOD", -1, "must be >= 0, got -1"),
        ("DATALOADER.RANDOM_SUBSET_RATIO", 0.0, r"must be in \(0, 1\], got 0.0"),
        ("DATALOADER.RANDOM_SUBSET_RATIO", 1.5, r"must be in \(0, 1\], got 1.5"),
        ("DATALOADER.NUM_WORKERS", -1, ""),
        ("DATALOADER.REPEAT_THRESHOLD", "-1.0", ""),
        ("DATASETS.TRAIN", "(3,)", "must be a tuple of texts"),
        ("DATASETS.TEST", "(None,)", "must be a tuple of texts"),
        ("SOLVER.REFERENCE_WORLD_SIZE", -1, ""),
        ("SOLVER.WEIGHT_DECAY_BIAS", "x", ""),
        ("SEED", 2**40, r"must be below 2 \*\* 32"),
        ("TEST.EXPECTED_RESULTS", "(1,)", r"must be a list of entries such as \['bbox', 'AP'"),
        ("TEST.EXPECTED_RESULTS", "(('bbox', 'AP', 'x', 1),)", "must be a list of entries"),
        ("INPUT.FORMAT", "XYZ", "unknown name 'XYZ'; did you mean|: unknown name"),
        ("INPUT.FORMAT", "F", "unknown name 'F'"),
        ("INPUT.MASK_FORMAT", "bitmaks", "unknown name 'bitmaks'; did you mean 'bitmask'"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "must be at least one whole number of pixels"),
        ("INPUT.MIN_SIZE_TRAIN", "('a',)", "must be at least one whole number of pixels"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choose", "unknown name 'choose'; did you mean 'choice'"),
        ("INPUT.MAX_SIZE_TEST", 0, ""),
        ("INPUT.RANDOM_FLIP", "horizontally", "unknown name .* did you mean 'horizontal'"),
        ("MODEL.PIXEL_MEAN", "('a',)", "must be at least one finite number"),
        ("MODEL.PIXEL_STD", "(0.0, 1.0, 1.0)", "must be at least one number, each positive"),
        ("MODEL.PIXEL_STD", "(1.0,)", "must have a number for each of the 3 channels"),
        ("MODEL.RESNETS.NORM", "GBN", "unknown name 'GBN'"),
        ("MODEL.FPN.NORM", "GBN", "unknown name 'GBN'"),
        ("MODEL.FPN.IN_FEATURES", "('res9',)", "unknown output of the ResNet 'res9'"),
        ("MODEL.FPN.IN_FEATURES", "()", "must be at least one name of a feature"),
        ("MODEL.FPN.IN_FEATURES", "('res3', 'res5')", "must be stages that follow each other"),
        ("MODEL.FPN.OUT_CHANNELS", 30, "must be a multiple of 32, as MODEL.FPN.NORM is 'GN'"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "()", "must be a list of positive numbers, or one for"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "((1,), (2,))", "must be one list .* of the 5 of"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "((),)", "must be a list of positive numbers"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", "(0.5, 0.4)", "must be ascending numbers"),
        ("MODEL.RETINANET.IOU_LABELS", "(0, 1)", "must be one more than IOU_THRESHOLDS"),
        ("MODEL.RETINANET.NORM", "GBN", "unknown name 'GBN'"),
        ("MODEL.RETINANET.NUM_CONVS", 0, "must be >= 1 with MODEL.RETINANET.NORM 'BN'"),
        ("MODEL.RETINANET.NUM_CLASSES", 0, ""),
    ],
)
def test_ranges_of_values_that_every_run_reads(key, value, message):
    with pytest.raises(ConfigError, match=f"^{key}:? {message}"):
        load(QUICK, key, value)


@pytest.mark.parametrize("enabled, key, value, message", [
    ("INPUT.CROP", "TYPE", "relativ", "unknown name 'relativ'; did you mean 'relative'"),
    ("INPUT.CROP", "SIZE", "(0.5,)", r"must be \(height, width\), each positive"),
    ("INPUT.CROP", "SIZE", "(40, 40)", r"must be shares of the image, each in \(0, 1\]"),
    ("SOLVER.CLIP_GRADIENTS", "CLIP_TYPE", "nrom", "unknown name 'nrom'; did you mean 'norm'"),
    ("SOLVER.CLIP_GRADIENTS", "CLIP_VALUE", "-1.0", "must be"),
    ("SOLVER.CLIP_GRADIENTS", "NORM_TYPE", "-1.0", "must be positive or inf"),
    ("TEST.AUG", "MIN_SIZES", "('a',)", "must be at least one whole number of pixels"),
    ("TEST.AUG", "MAX_SIZE", "0", "must be"),
])  # fmt: skip
def test_ranges_where_they_are_read(enabled, key, value, message):
    load(QUICK, f"{enabled}.{key}", value)
    with pytest.raises(ConfigError, match=f"^{enabled}.{key}:? {message}"):
        load(QUICK, f"{enabled}.{key}", value, f"{enabled}.ENABLED", True)


@pytest.mark.parametrize("overrides", [
    ("INPUT.MIN_SIZE_TRAIN", "(0,)"),
    ("INPUT.MIN_SIZE_TEST", 0),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(100, 200)"),
    ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(40, 50)"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "((32,),)"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "(32, 64)"),
    ("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "(100.0,)", "MODEL.PIXEL_STD", "(1.0,)"),
    ("TEST.EXPECTED_RESULTS", "(('bbox', 'AP', 38.5, 0.2),)"),
])  # fmt: skip
def test_right_values_are_taken(overrides):
    cfg = load(QUICK, *overrides)
    check_channels(cfg)


RCNN = str(ROOT / "configs/quick/faster_rcnn_baseline.yaml")


@pytest.mark.parametrize("key, value, message", [
    ("MODEL.RPN.IN_FEATURES", "()", "must be at least one name"),
    ("MODEL.RPN.IOU_LABELS", "(0, 1)", "must be one more than IOU_THRESHOLDS"),
    ("MODEL.RPN.HEAD_NAME", "StandardRPN", "unknown name .* did you mean 'StandardRPNHead'"),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l1", "unknown name 'l1'"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RPM", "unknown name 'RPM'"),
    ("MODEL.ROI_HEADS.NAME", "CorrdetROIHead", "must be 'CorrdetROIHeads' or"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "('a',)", "must be ascending numbers"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "(0,)", "must be ascending numbers, each positive"),
    ("MODEL.RPN.CONV_DIMS", "(0,)", "must be at least one number of channels"),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "must be >= 1 with NUM_CONV 0"),
    ("MODEL.ROI_BOX_HEAD.NAME", "", "unknown name ''"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlin", "unknown name .* did you mean 'ROIAlign'"),
    ("MODEL.ROI_BOX_HEAD.NORM", "XX", "unknown name 'XX'"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "((1,), (2,))", "must be one list .* of MODEL.RPN"),
])  # fmt: skip
def test_ranges_of_rcnn(key, value, message):
    with pytest.raises(ConfigError, match=f"^{key}:? {message}"):
        load(RCNN, key, value)


@pytest.mark.parametrize("key, value, message", [
    ("MODEL.RESNETS.DEPTH", 51, "must be one of 18, 34, 50, 101, 152, got 51"),
    ("MODEL.RESNETS.DEPTH", 18, "|MODEL.RESNETS.RES2_OUT_CHANNELS must be 64"),
    ("MODEL.RESNETS.OUT_FEATURES", "('res6',)", "unknown output of the ResNet 'res6'"),
    ("MODEL.RESNETS.RES5_DILATION", 3, "must be one of 1, 2, got 3"),
    ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "(True,)", "must be four of True or False"),
])  # fmt: skip
def test_ranges_of_detectron2s_resnets(key, value, message):
    file = ROOT / "configs/Base-RetinaNet.yaml"
    load(file)
    with pytest.raises(ConfigError, match=f"^({key}:? {message})"):
        load(file, key, value)


@pytest.mark.parametrize("name, message", [
    ("gpu", "MODEL.DEVICE is 'gpu': expected cpu, cuda"),
    ("cuda:99", "MODEL.DEVICE is 'cuda:99', but torch sees"),
    ("cuda:x", "MODEL.DEVICE is 'cuda:x': expected cpu, cuda"),
    ("meta", "MODEL.DEVICE is 'meta', on which torch computes nothing"),
])  # fmt: skip
def test_devices(name, message, tmp_path):
    cfg = load(QUICK, "MODEL.DEVICE", name, "OUTPUT_DIR", tmp_path)
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_run(cfg)


@pytest.mark.parametrize("file, key", [
    ("retinanet_concordance", "MODEL.RESNETS.NORM"),
    ("retinanet_concordance", "MODEL.FPN.NORM"),
    ("retinanet_concordance", "MODEL.RETINANET.NORM"),
    ("faster_rcnn_baseline", "MODEL.ROI_BOX_HEAD.NORM"),
    ("atss_concordance", "MODEL.DENSE.NORM"),
])  # fmt: skip
def test_norms_are_those_of_the_installed_detectron2(file, key, monkeypatch):
    path = ROOT / f"configs/quick/{file}.yaml"
    installed = {*config_checks.NORM.names}
    monkeypatch.setattr(
        config_checks, "get_norm", lambda norm, channels: dict.fromkeys(installed)[norm]
    )
    load(path, key, "LN")
    installed.remove("LN")  # which came after Detectron2 0.6
    with pytest.raises(ConfigError, match=f"^{key} is 'LN', which Detectron2 .* not have: expec"):
        load(path, key, "LN")


def test_groups_of_channels():
    message = "MODEL.RESNETS.RES2_OUT_CHANNELS must be a multiple of 32, as MODEL.RESNETS.NORM is"
    with pytest.raises(ConfigError, match=message):
        load(QUICK, "MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.RES2_OUT_CHANNELS", 16)


def test_channels_are_those_of_the_format_unless_the_loader_is_ones_own(tmp_path):
    class Trainer(CorrdetTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            raise NotImplementedError

    six = "MODEL.PIXEL_MEAN", [1.0] * 6, "MODEL.PIXEL_STD", [1.0] * 6
    cfg = load(QUICK, *six, "OUTPUT_DIR", tmp_path, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()")
    check_run(cfg, trainer=Trainer)
    message = r"MODEL.PIXEL_MEAN must have a number for each of the 3 channel\(s\) of INPUT.FORMAT"
    with pytest.raises(ConfigError, match=message):
        check_run(cfg, trainer=CorrdetTrainer)


def test_integers_are_numbers(tmp_path):
    (tmp_path / "integers.yaml").write_text(
        f"_BASE_: {QUICK}\nMODEL:\n  CRITERION:\n    CORRELATION:\n      WEIGHT: 1\n"
    )
    cfg = load(tmp_path / "integers.yaml", "SOLVER.BASE_LR", 1)
    assert type(cfg.MODEL.CRITERION.CORRELATION.WEIGHT) is type(cfg.SOLVER.BASE_LR) is float
    assert cfg.MODEL.CRITERION.CORRELATION.WEIGHT == cfg.SOLVER.BASE_LR == 1


class TestImports:
    def test_module_and_file(self, tmp_path, monkeypatch):
        for name in ("corrdet_test_module", "corrdet_test_file"):
            (tmp_path / f"{name}.py").write_text(
                "from pathlib import Path\nPath(__file__).with_suffix('.imported').mkdir()\n"
            )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", list(sys.path))
        for _ in range(2):  # the second time changes nothing
            import_modules(["corrdet_test_module", "./corrdet_test_file.py"])
        assert len(list(tmp_path.glob("*.imported"))) == 2

    @pytest.mark.parametrize("module", ["no_such_module", "os.no_such_module", "gone.py"])
    def test_what_is_not_there(self, module):
        with pytest.raises(ConfigError, match=f"^--import: no .*'{module}'"):
            import_modules([module])

    def test_errors_in_a_module_are_its_own(self, tmp_path):
        (tmp_path / "broken.py").write_text("import no_such_module\n")
        for _ in range(2):
            with pytest.raises(ModuleNotFoundError, match="no_such_module"):
                import_modules([str(tmp_path / "broken.py")])


class OwnScheduler(CorrdetTrainer):
    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        raise NotImplementedError


class TestRun:
    @pytest.fixture(autouse=True)
    def in_a_folder_of_its_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # OUTPUT_DIR is relative

    def test_gpus(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        check_gpus(1)
        with pytest.raises(ConfigError, match=r"--num-gpus is 8, but torch sees 0 CUDA GPU\(s\)"):
            check_gpus(8)
        check_run(load())
        with pytest.raises(ConfigError, match="MODEL.DEVICE is 'cuda', .*: MODEL.DEVICE cpu"):
            check_run(load(QUICK, "MODEL.DEVICE", "cuda"))

    def test_weights(self, tmp_path):
        with pytest.raises(ConfigError, match="^--eval-only needs weights: MODEL.WEIGHTS"):
            check_run(load(), eval_only=True)
        cfg = load(QUICK, "MODEL.WEIGHTS", "gone.pth", "OUTPUT_DIR", tmp_path)
        for options in ({}, {"resume": True}, {"eval_only": True}):
            with pytest.raises(ConfigError, match="^MODEL.WEIGHTS: no weights at 'gone.pth'"):
                check_run(cfg, **options)
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
        check_run(cfg, resume=True)
        check_run(load(QUICK, "MODEL.WEIGHTS", "detectron2://x.pkl"), eval_only=True)

    def test_data(self, tmp_path):
        options = "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATASETS.TEST", "('digits_val',)"
        cfg = load(ROOT / "configs/retinanet/retinanet_R50_1x_spearman.yaml", *options)
        message = "DATASETS.TRAIN: data set 'coco_2017_train' is not .*instances_train2017.json"
        with pytest.raises(ConfigError, match=f"{message}.*DETECTRON2_DATASETS"):
            check_run(cfg)
        cfg = load(ROOT / "configs/ssd/ssd300_R50_voc.yaml", *options)
        message = "DATASETS.TRAIN: data set 'voc_2007_trainval' is not .*Main/trainval.txt"
        with pytest.raises(ConfigError, match=f"{message}.*DETECTRON2_DATASETS"):
            check_run(cfg)
        check_run(load(QUICK, "MODEL.WEIGHTS", QUICK), eval_only=True)

    def test_output(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/output", ""):
            message = f"^OUTPUT_DIR is '{folder}', into which nothing can be written"
            with pytest.raises(ConfigError, match=message):
                check_output(str(folder))
        assert (tmp_path / "file").read_text() == "mine"
        check_output(str(tmp_path / "new" / "folder"))
        assert not list((tmp_path / "new" / "folder").iterdir())

    def test_schedulers(self, tmp_path, caplog):
        def cfg(name):
            return load(QUICK, "SOLVER.LR_SCHEDULER_NAME", name, "OUTPUT_DIR", tmp_path)

        message = "LR_SCHEDULER_NAME: unknown name 'WarmupCosinLR'; did you mean 'WarmupCosineLR'"
        with pytest.raises(ConfigError, match=message):
            check_run(cfg("WarmupCosinLR"), trainer=CorrdetTrainer)
        check_run(cfg("WarmupCosinLR"), trainer=OwnScheduler)
        check_run(cfg("WarmupMultiStepLR"))
        assert not caplog.records  # STEPS are behind MAX_ITER here, which training says once

    def test_freezing(self, tmp_path):
        frozen = "MODEL.BACKBONE.FREEZE_AT", 2, "OUTPUT_DIR", tmp_path
        message = "FREEZE_AT is 2, but without MODEL.WEIGHTS the first 2 stage.* random weights"
        with pytest.raises(ConfigError, match=f"^MODEL.BACKBONE.{message}"):
            check_run(load(QUICK, *frozen))
        with pytest.raises(ConfigError, match=message):
            check_run(load(QUICK, *frozen), resume=True)
        with pytest.raises(ConfigError, match=r"FREEZE_AT must be a whole number in \[0, 5\]"):
            check_run(load(QUICK, "MODEL.BACKBONE.FREEZE_AT", 6))
        check_run(load(QUICK, *frozen, "MODEL.WEIGHTS", QUICK))
        check_run(load(QUICK, *frozen, "MODEL.WEIGHTS", QUICK), eval_only=True)
        (tmp_path / "last_checkpoint").write_text("model_final.pth")
        check_run(load(QUICK, *frozen), resume=True)


@pytest.mark.parametrize(
    "config, options, message",
    [
        (
            "retinanet_concordance",
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "COUPLINGS is .*'correlation'.* nothing reads it: MODEL.META_ARCH.* is 'RetinaNet'",
        ),
        (
            "retinanet_baseline",
            ["MODEL.RPN_CRITERION.CLASSIFICATION", "ape"],
            "MODEL.RPN_CRITERION.CLASSIFICATION is 'ape', but nothing reads it.*CorrdetRetinaNet",
        ),
        (
            "faster_rcnn_baseline",
            ["MODEL.RPN_CRITERION.LOCALIZATION", "giou"],
            "MODEL.RPN_CRITERION.LOCALIZATION is 'giou'.*NAME is 'RPN', not 'CorrdetRPN'",
        ),
    ],
)
def test_losses_that_nothing_reads(config, options, message):
    file = str(ROOT / "configs" / "quick" / f"{config}.yaml")
    with pytest.raises(ConfigError, match=message):
        load_config(Namespace(config_file=file, opts=options))
