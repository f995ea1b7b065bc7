# `make demo` and `make test` set up $(VENV) by themselves; nothing is installed twice.
#
#   PYTHON=python3.12          the interpreter that makes the environment
#   VENV=.venv                 where the environment is
#   DETECTRON2_SOURCE=URL      compile Detectron2 from this source (git+https://... or a path)
#   CORRDET_CUDA=0             no CUDA kernels (setup.py tells the rest)
#   DETECTORS=atss,fcos        what `make compare` trains
#   FUZZ_SECONDS=120           how long `make fuzz` looks for faults

PYTHON ?= python3
VENV ?= .venv
DETECTRON2_SOURCE ?=
DETECTORS ?= retinanet
FUZZ_SECONDS ?= 120

# The pair that is tested. The package itself takes any newer torch.
TORCH := torch==2.11.0 torchvision==0.26.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CSRC := $(shell find csrc 2>/dev/null)
NATIVE := $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' 2>/dev/null)
CUDA_BUILT = $(BIN)/python -c 'import sys, torch, corrdet._C as c; sys.exit(not c.build_info()["cuda"])'

# ninja, ruff and clang-format are called from the environment, activated or not.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup demo compare test test-pure fast lint types format docs docs-tables cuda-report sanitize fuzz benchmark wheel clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo         fine-tune on photographs and report it (sets up $(VENV) first)'
	@echo 'make compare      train the losses against each other and print the table'
	@echo 'make wheel        dist/*.whl, for the torch and Python of $(VENV)'
	@echo 'make test         style checks, CUDA register report, tests (sets up $(VENV) first)'
	@echo 'make fast         style, types, and the tests of less than two minutes'
	@echo 'make setup        set up $(VENV): torch, Detectron2, corrdet'
	@echo 'make lint         style and type checks alone'
	@echo 'make format       rewrite the code in style'
	@echo 'make docs         build the site of the documentation into build/site'
	@echo 'make docs-tables  write the tables of the docs that are made from the code'
	@echo 'make cuda-report  registers and spills of the CUDA kernels; fails on spills'
	@echo 'make sanitize     tests of the operators, their CPU code built with GCC sanitizers'
	@echo 'make fuzz         operators on made-up inputs, against brute force'
	@echo 'make benchmark    time the operators, into docs/benchmarks.md (on an idle machine)'
	@echo 'make clean        remove what was built, but not $(VENV)'

setup: $(VENV)/.corrdet

demo: setup
	$(BIN)/python tools/demo.py

compare: setup
	$(BIN)/python tools/compare.py --detectors $(DETECTORS)

test: lint
	@if $(CUDA_BUILT); then $(MAKE) --no-print-directory cuda-report; fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
	$(MAKE) --no-print-directory test-pure

# The operators' and losses' tests once more as they run without the extension, in a minute. Left out
# is what says nothing of it: emulated kernels, what is computed ten times over, all compositions.
test-pure: setup
	CORRDET_BACKEND=torch OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal \
	    -m 'not slow and not cuda' -k 'not emulated and not repeats and not composition' \
	    tests/ops tests/losses --ignore=tests/losses/test_global_batch.py \
	    --ignore=tests/losses/test_imports.py

# What is marked slow takes most of the time.
fast: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow and not cuda'

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(NATIVE),$(BIN)/clang-format --dry-run --Werror $(NATIVE))

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(NATIVE),$(BIN)/clang-format -i $(NATIVE))

# The packages that build the site are installed when it is first built: 45 MB, a minute.
docs: setup
	$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(PIP) install --no-build-isolation -e '.[docs]'
	$(BIN)/mkdocs build --strict

docs-tables: setup
	$(BIN)/python tools/docs_tables.py

cuda-report: setup
	$(BIN)/python tools/cuda_report.py

sanitize: setup
	PYTHON=$(abspath $(BIN))/python tools/sanitize.sh

fuzz: setup
	$(BIN)/python -m tests.ops.fuzz --seconds $(FUZZ_SECONDS)

benchmark: setup
	$(BIN)/python -m benchmarks.kernels --device cpu --plots docs/figures \
	    --markdown docs/benchmarks.md

# For this torch, Python and machine; CORRDET_CUDA=0 leaves the CUDA kernels out where nvcc is.
wheel: $(VENV)/.tools
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache $(VENV)/.extension
	rm -f corrdet/_C*.so
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Each stamp is a step of the set-up, newer than what the step was made from.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "corrdet needs Python 3.10 or newer; $(PYTHON) is" \
	         "$$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	@echo '== torch (4.7 GiB with its CUDA libraries)'
	$(PIP) install $(TORCH)
	@touch $@

# As pyproject.toml has it, in environments made earlier too; torch asks for setuptools below 82.
$(VENV)/.tools: $(VENV)/.torch pyproject.toml
	$(PIP) install 'setuptools>=77,<82' wheel ninja
	@touch $@

$(VENV)/.detectron2: $(VENV)/.torch tools/install_detectron2.py | $(VENV)/.tools
	@echo '== Detectron2'
	$(BIN)/python tools/install_detectron2.py $(if $(DETECTRON2_SOURCE),--source '$(DETECTRON2_SOURCE)')
	@touch $@

# Compiled in place first, where the compiler's progress is seen; pip then finds the objects made.
$(VENV)/.extension: $(VENV)/.torch setup.py tools/nvcc.sh $(CSRC) | $(VENV)/.tools
	@echo '== the extension corrdet._C'
	$(BIN)/python setup.py build_ext --inplace
	@touch $@

$(VENV)/.package: $(VENV)/.detectron2 setup.py pyproject.toml | $(VENV)/.extension
	@echo '== corrdet'
	$(PIP) install --no-build-isolation -e '.[detectron2,dev]'
	@touch $@

$(VENV)/.corrdet: $(VENV)/.package $(VENV)/.extension
	@touch $@
