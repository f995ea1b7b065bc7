"""The configs of the papers' rows have the papers' settings: those of papers.yaml."""

import math
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from corrdet import add_corrdet_config
from tools.paper_rows import CONFIGS, PAPERS, notes_of, row_configs, rows_of

TABLE = yaml.safe_load(Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8"))
FACTS, ROWS = TABLE["facts"], TABLE["rows"]
IMAGES_WITH_OBJECTS = 117266  # of COCO's train2017

# How Detectron2 writes down an architecture, and what is of no account for a result.
NOT_IN_THE_TABLE = {
    "DATASETS.SKIP_BAD_ANNOTATIONS",
    "INPUT.MASK_FORMAT",
    "MODEL.FPN.IN_FEATURES",
    "MODEL.RESNETS.OUT_FEATURES",
    "MODEL.ROI_BOX_HEAD.NAME",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "MODEL.RPN.IN_FEATURES",
    "OUTPUT_DIR",
}
ONE_PRIOR = ("CorrdetATSS", "CorrdetPAA", "CorrdetFCOS", "CorrdetFoveaBox")
# Their bases have anchors and keys of RetinaNet, which they do not read.
NOT_READ = dict.fromkeys(ONE_PRIOR, ("MODEL.ANCHOR_GENERATOR.", "MODEL.RETINANET.")) | {
    "CorrdetYOLACT": ("MODEL.RETINANET.",)
}
# What has to be known of every row that is trained.
KNOWN = """
    DATASETS.TRAIN DATASETS.TEST
    INPUT.FORMAT INPUT.MIN_SIZE_TRAIN INPUT.FIXED_SIZE INPUT.MIN_SIZE_TEST INPUT.SSD_AUGMENTATION
    TEST.DETECTIONS_PER_IMAGE TEST.AUG.ENABLED
    MODEL.META_ARCHITECTURE MODEL.BACKBONE.NAME MODEL.BACKBONE.FREEZE_AT MODEL.WEIGHTS
    MODEL.RESNETS.DEPTH MODEL.RESNETS.NORM MODEL.RESNETS.STRIDE_IN_1X1
    MODEL.PIXEL_MEAN MODEL.PIXEL_STD
    MODEL.CRITERION.CLASSIFICATION MODEL.CRITERION.CLASSIFICATION_WEIGHT
    MODEL.CRITERION.LOCALIZATION MODEL.CRITERION.LOCALIZATION_WEIGHT
    MODEL.CRITERION.LOCALIZATION_WEIGHTED_BY MODEL.CRITERION.COUPLINGS
    SOLVER.OPTIMIZER SOLVER.MOMENTUM SOLVER.IMS_PER_BATCH SOLVER.BASE_LR SOLVER.BIAS_LR_FACTOR
    SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM SOLVER.WEIGHT_DECAY_BIAS
    SOLVER.STEPS SOLVER.GAMMA SOLVER.MAX_ITER
    SOLVER.WARMUP_METHOD SOLVER.WARMUP_ITERS SOLVER.WARMUP_FACTOR
""".split()
KNOWN_OF = {
    "CorrdetRetinaNet": """MODEL.ANCHOR_GENERATOR.SIZES MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
        MODEL.RETINANET.IOU_THRESHOLDS MODEL.RETINANET.SCORE_THRESH_TEST
        MODEL.RETINANET.NMS_THRESH_TEST""",
    **dict.fromkeys(
        ONE_PRIOR,
        """MODEL.DENSE.NORM MODEL.DENSE.ANCHOR_SCALE MODEL.DENSE.SCALES_PER_OCTAVE
        MODEL.DENSE.QUALITY MODEL.DENSE.SCORE_THRESH_TEST MODEL.DENSE.NMS_THRESH_TEST
        MODEL.FPN.P6_FROM""",
    ),
    **dict.fromkeys(
        ("CorrdetSSD", "CorrdetDSSD", "CorrdetRefineDet"),
        "MODEL.SSD.NUM_CLASSES MODEL.SSD.SCORE_THRESH_TEST MODEL.SSD.NMS_THRESH_TEST",
    ),
}


def flat(node, prefix=""):
    """Full names of keys and their values, tuples as lists."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


@pytest.fixture(scope="module")
def default():
    cfg = get_cfg()
    add_corrdet_config(cfg)
    return cfg


def facts_of(name):
    """The settings of a row: what the config is to have, and the setting itself, by key."""
    settings = {}
    for group in ROWS[name]["facts"]:
        facts = dict(FACTS[group])
        assert facts.pop("source"), group
        # Iterations and epochs say the same thing in two ways: the later one holds.
        if "EPOCHS" in facts:
            settings.pop("SOLVER.STEPS", None), settings.pop("SOLVER.MAX_ITER", None)
        if "SOLVER.STEPS" in facts:
            settings.pop("EPOCHS", None)
        settings.update(facts)
    expected = {
        key: value["here"] if isinstance(value, dict) and "here" in value else value
        for key, value in settings.items()
    }
    epochs = expected.pop("EPOCHS", None)
    if epochs:
        iterations = math.ceil(IMAGES_WITH_OBJECTS / expected["SOLVER.IMS_PER_BATCH"])
        expected["SOLVER.STEPS"] = [step * iterations for step in epochs["steps"]]
        expected["SOLVER.MAX_ITER"] = epochs["last"] * iterations
    return expected, settings


def test_every_row_is_in_the_table_and_every_config_a_row():
    configs = {str(path.relative_to(CONFIGS).with_suffix("")) for path in row_configs()}
    assert configs - ROWS.keys() == set(), "configs without a row in papers.yaml"
    assert ROWS.keys() - configs == set(), "rows of papers.yaml without a config"
    used = {group for row in ROWS.values() for group in row["facts"]}
    merged = {id(value) for value in FACTS.values()}
    assert len(merged) == len(FACTS) and used <= FACTS.keys()
    assert TABLE["papers"].keys() == set(PAPERS)


@pytest.mark.parametrize("name", ROWS)
def test_header_names_the_rows(name):
    path = CONFIGS / f"{name}.yaml"
    assert [list(row) for row in rows_of(path)] == ROWS[name]["is"]
    # What is not the paper's is said to whom it concerns.
    _, settings = facts_of(name)
    scaled = any(
        key.startswith("SOLVER.") and isinstance(value, dict) and "scaled" in value.get("why", "")
        for key, value in settings.items()
    )
    assert not scaled or "scaled" in notes_of(path)


@pytest.mark.parametrize("name", ROWS)
def test_header_says_what_to_expect(name):
    """Whose settings these are, or what the paper does not say; at least a sentence."""
    assert len(notes_of(CONFIGS / f"{name}.yaml")) > 40


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_papers(name, default):
    cfg = default.clone()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    values, defaults = dict(flat(cfg)), dict(flat(default))
    expected, _ = facts_of(name)
    unknown = expected.keys() - values.keys()
    assert not unknown, f"papers.yaml has keys that the config does not have: {unknown}"
    different = {key: (values[key], want) for key, want in expected.items() if values[key] != want}
    assert not different, f"(config, papers.yaml): {different}"
    architecture = cfg.MODEL.META_ARCHITECTURE
    set_here = {
        key
        for key, value in values.items()
        if value != defaults[key] and not key.startswith(NOT_READ.get(architecture, ()))
    }
    unsaid = set_here - expected.keys() - NOT_IN_THE_TABLE
    assert not unsaid, f"papers.yaml does not say {unsaid}"
    if architecture != "CorrdetDETR":  # evaluated only
        missing = {*KNOWN, *KNOWN_OF.get(architecture, "").split()} - expected.keys()
        assert not missing, f"papers.yaml does not say {missing}"
