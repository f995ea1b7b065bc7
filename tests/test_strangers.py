"""Nothing that a config names is unpickled or run: which keys are paths, and who reads them how."""

import ast
import json
import os
import pickle
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import detectron2
import pytest
import torch
import yaml
from detectron2.config import get_cfg

from corrdet.config import add_corrdet_config
from corrdet.config_keys import SECTIONS
from corrdet.data.coco import load_registered
from corrdet.engine import (
    CheckpointError,
    ConfigError,
    SafeCheckpointer,
    check_run,
    load_config,
)
from corrdet.errors import CorrdetError
from corrdet.losses.from_config import criterion_sections
from tests.helpers.training import ROOT

# Keys whose values are paths or addresses, and what reads them here.
PATHS = {
    "MODEL.WEIGHTS": "engine/weights.py: tensors and arrays only",
    "DATASETS.PROPOSAL_FILES_TRAIN": "data/proposals.py: arrays only",
    "DATASETS.PROPOSAL_FILES_TEST": "data/proposals.py: arrays only",
    "DATASETS.REGISTER": "coco/reading.py: JSON; images by Pillow",
    "OUTPUT_DIR": "engine/checkpoint.py: tensors only; JSON and text",
}
# Other keys that hold texts, beside declared choices: names in registries, of layers, of data sets
# in the catalog, of metrics; and Detectron2's choices.
NAMES = re.compile(
    r"VERSION|MODEL\.(DEVICE|META_ARCHITECTURE|WEIGHTS_(CLASSES|PARTS))|.*\.(NAME|HEAD_NAME|NORM|ACTIVATION|QUALITY|NMS|COST"
    r"|IN_FEATURES?|OUT_FEATURES|FUSE_TYPE|BBOX_REG_LOSS_TYPE|POOLER_TYPE|BOX_CODING|MODE|METRIC"
    r"|CLASSIFICATION|LOCALIZATION|COUPLINGS|LOCALIZATION_WEIGHTED_BY|DISTANCE|BALANCE|KIND"
    r"|COEFFICIENT|GRADIENT|SCHEDULE)|INPUT\.\w+|INPUT\.CROP\.\w+"
    r"|DATASETS\.(TRAIN|TEST|CHECK_IMAGES)|DATALOADER\.SAMPLER_TRAIN"
    r"|SOLVER\.(LR_SCHEDULER_NAME|WARMUP_METHOD|OPTIMIZER|RESUME_LR|CLIP_GRADIENTS\.CLIP_TYPE)"
    r"|TEST\.(EXPECTED_RESULTS|KEYPOINT_OKS_SIGMAS)"
)
RETINANET = str(ROOT / "configs/quick/retinanet_concordance.yaml")


def text_keys(node, prefix="") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from text_keys(value, f"{prefix}{key}.")
        elif isinstance(value, str) or (
            isinstance(value, tuple | list) and all(isinstance(v, str) for v in value)
        ):
            yield prefix + key


def test_every_text_of_the_config_is_a_known_path_or_a_name():
    cfg = get_cfg()
    add_corrdet_config(cfg)
    keys = set(text_keys(cfg))
    assert keys >= PATHS.keys()
    choices = {
        f"{section}.{name}"
        for section, declared in {**SECTIONS, **criterion_sections()}.items()
        for name, key in declared.items()
        if key.range.names
    }
    unknown = [key for key in keys - PATHS.keys() - choices if not NAMES.fullmatch(key)]
    assert not unknown, (
        f"{unknown}: new keys that hold texts. Is it a path or an address? Then what reads it must "
        "run no code of the file: a line in PATHS, and a case in test_no_file_of_a_config_runs"
    )


# ---- What reads files: nothing here may unpickle or run one.

RUNS = {"pickle": {"load", "loads", "Unpickler"}, "marshal": {"load", "loads"}}
RUNS |= {"yaml": {"load", "load_all", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader"}}
RUNS |= {"cloudpickle": {"load", "loads"}, "joblib": {"load"}, "shelve": {"open"}}
RUNS |= {"runpy": {"run_path", "run_module"}, "dill": {"load", "loads"}, "jsonpickle": {"decode"}}


def calls_that_run(path: Path) -> Iterator[str]:
    """Of a module: ``line: what`` for each call that takes code from a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        what = None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in RUNS.get(node.value.id, ()):
                what = f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in ("exec", "eval"):
                what = name
            elif name == "torch.load" and keywords.get("weights_only") != "True":
                what = "torch.load without weights_only=True"
            elif name == "torch.jit.load":
                what = name
            elif name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                what = "numpy.load without allow_pickle=False"
        if what:
            yield f"{node.lineno}: {what}"


# Safe for the reason given.
ADMITTED = {
    ("corrdet/options.py", "eval"): "annotations of a function that is there already",
    ("corrdet/data/records.py", "pickle.loads"): "what a process of this training has just written",
}


def test_no_module_of_corrdet_takes_code_from_a_file():
    found = []
    for path in [ROOT / "train_net.py", *ROOT.glob("corrdet/**/*.py"), *ROOT.glob("tools/*.py")]:
        relative = path.relative_to(ROOT).as_posix()
        calls = list(calls_that_run(path))
        found += [f"{relative}:{c}" for c in calls if (relative, c.split(": ")[1]) not in ADMITTED]
    assert not found


def test_the_search_finds_calls(tmp_path):
    for code in (
        "import pickle; pickle.load(f)",
        "from x import y\ny(pickle.Unpickler)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.unsafe_load(f)",
        "exec(code)",
    ):
        (tmp_path / "m.py").write_text(code)
        assert list(calls_that_run(tmp_path / "m.py")), code


# Where Detectron2 takes code from files or from other processes, and why no file of a config gets
# there from CorrdetTrainer, train_net.py and tools/.
OF_DETECTRON2 = {
    "checkpoint/detection_checkpoint.py": "SafeCheckpointer reads files itself",
    "config/lazy.py": "configs are YAML; a .py file is refused",
    "data/build.py": "corrdet/data/proposals.py is used; and pickles are looked through before",
    "data/common.py": "what this process has pickled itself",
    "utils/comm.py": "what the processes of this training have pickled",
    "utils/serialize.py": "what this process has pickled itself",
    "utils/testing.py": "what a test has exported itself",
    "export/caffe2_modeling.py": "not used",
    "evaluation/": "not of files that a config names",
    "model_zoo/": "not of files that a config names",
}


@pytest.mark.slow
def test_detectron2_takes_code_from_files_where_it_is_known():
    folder = Path(detectron2.__file__).parent
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.glob("**/*.py")
        if "projects" not in path.parts and list(calls_that_run(path))
    }
    assert "data/build.py" in found  # the search finds what there is
    assert not [name for name in found if not name.startswith(tuple(OF_DETECTRON2))]


# ---- The same with files that would do something.


class Trap:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def trap(tmp_path):
    folder = tmp_path / "trap"
    yield folder
    assert not folder.exists(), "the file has run"


def load(*opts, file=RETINANET):
    return load_config(Namespace(config_file=str(file), opts=list(map(str, opts))))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".ckpt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("is_zip", [True, False])
def test_weights(tmp_path, trap, suffix, is_zip):
    path = tmp_path / f"weights{suffix}"
    content = {"model": {"weight": Trap(trap)}, "__author__": "somebody"}
    if is_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError):
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(str(path))


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_proposals(tmp_path, trap, split, tiny_cfg):
    """Also those of a loader of Detectron2's, which a trainer of the user's may build."""
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps({"ids": [1], "boxes": Trap(trap), "objectness_logits": [1]}))
    good = tmp_path / "good.pkl"
    good.write_bytes(pickle.dumps({"ids": [1], "boxes": [[]], "objectness_logits": [[]]}))
    tiny_cfg.MODEL.LOAD_PROPOSALS = True
    for key in ("TRAIN", "TEST"):
        tiny_cfg.DATASETS[f"PROPOSAL_FILES_{key}"] = (str(path if key == split else good),)
    with pytest.raises(CorrdetError, match="posix.mkdir, which could run code"):
        check_run(tiny_cfg)


def test_annotations(tmp_path, trap):
    path = tmp_path / "annotations.json"
    path.write_bytes(pickle.dumps(Trap(trap)))
    load("DATASETS.REGISTER", repr((f"strange={path}:{tmp_path}",)))
    with pytest.raises(CorrdetError, match="expected JSON"):
        load_registered("strange")


def test_an_output_folder_of_a_stranger(tmp_path, trap):
    content = {"model": {"weight": torch.zeros(1, 1)}, "trainer": Trap(trap)}
    torch.save(content, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    (tmp_path / "model_best.json").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(CheckpointError, match="under 'trainer'"):
        SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)


def test_configs(tmp_path, trap):
    code = f"!!python/object/apply:os.mkdir ['{trap}']"
    bad, config = tmp_path / "bad.yaml", tmp_path / "config.yaml"
    bad.write_text(f"SEED: {code}\n")
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(bad.read_text())
    for text in (
        f"SEED: {code}\n",
        f"OUTPUT_DIR: {code}\n",
        f"_BASE_: {bad}\n",
        f"_BASE_: [{RETINANET}, bad.yaml]\n",
        f"_BASE_: file://{bad}\n",
        "_BASE_: http://127.0.0.1:9/bad.yaml\n",
        f"_BASE_: {code}\n",
        json.dumps({"MODEL": {"WEIGHTS": "x"}})[:-1] + f", SEED: {code}}}\n",
    ):
        config.write_text(text)
        with pytest.raises(ConfigError):
            load(file=config)
    lazy = tmp_path / "lazy.py"
    lazy.write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    with pytest.raises(ConfigError, match="is Python"):
        load(file=lazy)
    config.write_text("_BASE_: lazy.py\n")
    with pytest.raises(ConfigError):
        load(file=config)
