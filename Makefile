SHELL := /bin/bash
PYTHON ?= python3
PROFILE ?= toy
SEEDS ?= 1
TALK ?= browser
ifeq ($(origin CORES), undefined)
CORES := $(shell getconf _NPROCESSORS_ONLN)
endif
BIN := .venv/bin
# A file's tests stay together, in one of as many processes as there are cores.
PYTEST := $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# They reach the shell as environment variables, which make has not expanded and recipes quote: PROFILE='x; y' runs nothing.
override PROFILE := $(value PROFILE)
override SEEDS := $(value SEEDS)
override TALK := $(value TALK)
override CORES := $(value CORES)
export PROFILE SEEDS CORES TALK
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export PYTHONDONTWRITEBYTECODE := 1
export RUFF_NO_CACHE := true

.PHONY: help study chat lab test check fast lint types publish check-reports rough bench clean
.DEFAULT_GOAL := study

help: ## list what can be made
	@echo "make TARGET [PROFILE=toy] [SEEDS=1] [CORES=all]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say PYTHON=python3.12"; exit 1; }
	@echo "▶ creating .venv and installing requirements.lock (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@set -o pipefail; $(BIN)/pip install --disable-pip-version-check --progress-bar off -r requirements.lock | { grep --line-buffered -E "^(Collecting|Successfully)" || true; } | cut -c1-100
	@$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

study: .venv/.installed ## run the study (the default); the report is runs/PROFILE/report/index.html
	@$(BIN)/python -m ilm_lib.study "$$PROFILE" --seeds "$$SEEDS" --cores "$$CORES"

chat: .venv/.installed ## talk to a model of PROFILE in a browser, or TALK=terminal; the toy one takes two minutes, once
	@$(BIN)/python -m ilm_lib.study.talk "$$PROFILE" --in "$$TALK"

lab: .venv/.installed ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

test: lint types ## all tests, with the notebooks, and the coverage of ilm_lib (some minutes)
	@$(PYTEST) --cov --cov-report= --cov-fail-under=90

check: .venv/.installed ## style, types and the fast tests, side by side (about a minute; no notebooks, no rough cases)
	@$(MAKE) --no-print-directory -s -j3 --output-sync=target fast lint types

fast: .venv/.installed ## the fast tests alone
	@$(PYTEST) -m "not slow" --ignore tests/rough

lint: .venv/.installed ## style of code and notebooks (ruff)
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .

types: .venv/.installed ## types of what the library shows (mypy)
	@$(BIN)/mypy --no-error-summary

publish: .venv/.installed ## copy the report of PROFILE to reports/, whose files are committed
	@$(BIN)/python -m ilm_lib.report publish "$$PROFILE"

check-reports: .venv/.installed ## look at the pages of reports/ in a headless Chromium
	@$(BIN)/python -m ilm_lib.report check reports

rough: .venv/.installed ## kill a study 40 times, break its files, fill its disk, ... (an hour; before a release)
	@$(PYTEST) tests/rough && $(BIN)/python tests/rough/run.py

bench: .venv/.installed ## measure speed, write runs/speed/report/index.html
	$(BIN)/python -m bench
	@echo "✓ done: open $${ILM_RUNS_DIR:-runs}/speed/report/index.html"

clean: ## remove runs/, the environment and caches
	rm -rf runs .venv .snakemake .pytest_cache .mypy_cache .ruff_cache .coverage build *.egg-info
