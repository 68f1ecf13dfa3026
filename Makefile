# `make demo` and `make test` are all the set-up a new machine needs: Python 3.10 or newer with pip, and make.
#
#   make demo       segment the sample volume from one box; pictures and masks go to demo-output/
#   make test       the tests, in parallel            make lint      ruff and mypy; `make format` repairs style
#   make campaign   the randomised tests ten times as long: two hours at most, continued by the next call
#   make coverage   the tests, with a report of the lines they reach in build/coverage/
#   make docs       the documentation as a site, in build/site/
#   make bench      time and memory of the engine     make clean     remove everything made here
#   make bench-gpu  the engine beside stock SAM 2 on a graphics card, as gpu.json; no pair begins after ten minutes
#
# PYTHON  the interpreter the environment is made from
# TORCH   what pip installs as PyTorch. Where a machine needs another build (CPU only, another CUDA), put it into
#         $(VENV) first or give its requirement, options included: make demo TORCH="torch==2.13.0 <pip options>"
# ARGS    passed to pytest, e.g. make test ARGS="-k geometry"
# JOBS    how many processes run the tests: by default one for each core, four at most

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=
JOBS ?= logical

ifeq ($(OS),Windows_NT)
bin := $(VENV)/Scripts
else
bin := $(VENV)/bin
endif
python := $(bin)/python
pip := $(python) -m pip --disable-pip-version-check
stamps := $(VENV)/.stamps
# Tests of one file stay in one process: they share what is slow to make. Testing/conftest.py orders the files.
pytest := $(python) -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup test-setup demo test lint format campaign coverage docs bench bench-gpu clean
.DELETE_ON_ERROR:

help:
	@sed -n '3,9p' Makefile | cut -c3-

setup: $(stamps)/package $(stamps)/sam2
test-setup: setup $(stamps)/dev $(stamps)/slicer $(stamps)/judges

# Debian's python3 may lack the module that puts pip into a new environment: then its own pip does it.
$(stamps)/environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	    || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) \
	         && $(PYTHON) -m pip --python $(VENV) install pip; } \
	    || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install python3-venv" >&2; exit 1; }
	$(pip) install --upgrade "setuptools>=77,<82" wheel
	@mkdir -p $(stamps) && touch $@

# First and alone, so that nothing that follows chooses another build.
$(stamps)/torch: | $(stamps)/environment
	$(pip) install $(TORCH)
	@touch $@

$(stamps)/package: pyproject.toml | $(stamps)/torch
	$(pip) install -e ".[metrics]"
	@touch $@

# sam2 declares torchvision, which nothing here uses and which must match torch's build: so without dependencies.
# Those its modules do need are in pyproject.toml. It is built beside the torch that is there, without CUDA code.
$(stamps)/sam2: requirements/sam2.txt | $(stamps)/package
	SAM2_BUILD_CUDA=0 $(pip) install --no-build-isolation --no-deps --require-hashes -r requirements/sam2.txt
	@touch $@

$(stamps)/dev: pyproject.toml | $(stamps)/sam2
	$(pip) install -e ".[dev]"
	@touch $@

# Slicer's scene and views as packages exist for the usual platforms only. Without them the tests of the Slicer module
# are skipped, and say so.
$(stamps)/slicer: pyproject.toml | $(stamps)/dev
	$(pip) install -e ".[slicer]" \
	    || echo "Slicer's scene cannot be installed here: the tests that need it will be skipped" >&2
	@touch $@

$(stamps)/docs: pyproject.toml | $(stamps)/sam2
	$(pip) install -e ".[docs]"
	@touch $@

# DICOM files are validated by Debian's dicom3tools and by dcmqi, a package of the extra "dev". dicom3tools is
# installed where root may do so. Elsewhere the tests that need it are skipped, and say so.
$(stamps)/judges: | $(stamps)/environment
	@command -v dciodvfy > /dev/null \
	    || { test "$$(id -u)" = 0 && apt-get update -qq \
	         && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dicom3tools; } > /dev/null 2>&1 \
	    || echo "dicom3tools cannot be installed here: tests that validate DICOM with it are skipped" >&2
	@touch $@

demo: setup
	$(python) Resources/demo/demo.py

test: test-setup
	$(pytest) $(ARGS)

coverage: test-setup
	$(pytest) --cov=MedSAM2Segment --cov-report=term:skip-covered --cov-report=html:build/coverage $(ARGS)

lint: setup $(stamps)/dev
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

format: setup $(stamps)/dev
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

campaign: test-setup
	$(python) Testing/campaign.py $(ARGS)

docs: setup $(stamps)/docs
	$(python) -m mkdocs build --strict --site-dir build/site

bench: setup
	$(bin)/medsam2 bench
	$(bin)/medsam2 bench --random sam2.1_hiera_t --image-size 512 --quick

bench-gpu: setup
	$(python) Testing/bench/gpu.py --out gpu.json

clean:
	rm -rf $(VENV) build dist demo-output .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage *.egg-info \
	    MedSAM2Segment/*.egg-info
	find MedSAM2Segment Testing -name __pycache__ -type d -prune -exec rm -rf {} +
