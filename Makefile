# make study [PROFILE=toy] [SEEDS=1]   run the study, write reports/<profile>/index.html
# make test                            run the tests
# make bench                           measure speed, write reports/speed/index.html
# make lab                             open the notebooks in JupyterLab
# make clean                           remove runs/ and the environment
SHELL := /bin/bash
PYTHON ?= python3
PROFILE ?= toy
SEEDS ?= 1
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: study test bench lab clean
.DEFAULT_GOAL := study

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say PYTHON=python3.12"; exit 1; }
	@echo "▶ creating .venv and installing requirements.lock (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --disable-pip-version-check --progress-bar off -r requirements.lock | grep --line-buffered -E "^(Collecting|Successfully)" | cut -c1-100
	@$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

# A killed run leaves snakemake's lock behind (hence --nolock); the stages have locks of their own, which end with their process.
study: .venv/.installed
	@echo "▶ study, profile $(PROFILE), seeds $(SEEDS), $(CORES) cores"
	@$(BIN)/snakemake --cores $(CORES) --resources gpu=$(CORES) --rerun-triggers mtime params --rerun-incomplete --nolock --quiet all \
		--config profile=$(PROFILE) seeds=$(SEEDS) || { echo "✗ the study stopped; the message above names the notebook. 'make study' goes on where it stopped."; exit 1; }
	@echo "✓ done: open $${ILM_REPORTS_DIR:-reports}/$(PROFILE)/index.html"

test: .venv/.installed
	$(BIN)/python -m pytest
	@echo "✓ done: all tests above; 'make study' runs the study"

bench: .venv/.installed
	$(BIN)/python -m bench
	@echo "✓ done: open $${ILM_REPORTS_DIR:-reports}/speed/index.html"

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf runs .venv .snakemake .pytest_cache *.egg-info
