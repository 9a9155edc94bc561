# `make demo` and `make test` are all a newcomer needs; both do the set-up first.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
# CUDA wheels where a GPU answers, CPU wheels elsewhere; `make setup SET=cpu` overrides.
SET ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
RUNS := $(VENV)/runs-$(SET)
STAMP := $(VENV)/installed-$(SET)
KERNELS := $(VENV)/kernels-$(SET)
DOCS := $(VENV)/docs
TRACKERS := $(VENV)/trackers
ENGINES := $(VENV)/engines
CODE := tandem.py cluster trainer embeddings losses tests docs/site

DEMO ?= demo
WORKERS ?= 2
# Two test processes, one thread each: as many as the smallest machine has cores.
JOBS ?= 2
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format types imports wheel test-faults test-hostile
.PHONY: test-trackers test-engines gpu-check gpu-check-parity gpu-check-loss gpu-check-step doctor clean-demo
.PHONY: images docs screenshots charts

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## .venv with everything pinned, and .venv/bin/tandem

# Every requirement file is complete, so pip resolves nothing (--no-deps): torchrec's wheel would
# otherwise pull the CUDA fbgemm beside the CPU one, which breaks both.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps
# Of torch's CPU builds PyPI has none; where the index that is configured has none either:
PYTORCH_CPU := https://download.pytorch.org/whl/cpu
TORCH = $(shell grep '^torch==' requirements/$(SET).txt)

$(RUNS): requirements/base.txt requirements/$(SET).txt pyproject.toml
	@test "$$(uname -s)" = Linux || { echo "error: Tandem's libraries are made for Linux alone; use a \
	container: docker build -f deploy/docker/Dockerfile.cpu -t tandem:cpu ."; exit 1; }
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or python3.12 found; install one"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or 3.12; run: make setup PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the $(SET) set into $(VENV) (minutes, the first time)"
	@$(PIP) $(TORCH) 2>/dev/null || test $(SET) = cuda || { \
	  echo "The configured package index has no $(TORCH); trying PyTorch's own"; \
	  $(PIP) --extra-index-url $(PYTORCH_CPU) $(TORCH); } || \
	  { $(MAKE) --no-print-directory setup-failed; exit 1; }
	@$(PIP) -r requirements/$(SET).txt || { $(MAKE) --no-print-directory setup-failed; exit 1; }
	@$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable .
	@$(BIN)/python -m trainer.tools.doctor
	@rm -f $(VENV)/runs-* && touch $@

# What tests and checks need beside: a demo waits for none of it.
$(STAMP): $(RUNS) requirements/dev.txt requirements/serve.txt
	@$(PIP) -r requirements/dev.txt -r requirements/serve.txt || { $(MAKE) --no-print-directory setup-failed; exit 1; }
	@rm -f $(VENV)/installed-* && touch $@

.PHONY: setup-failed
setup-failed:
	@echo "error: pip could not install requirements/$(SET).txt or dev.txt (its own message is above)."
	@echo "Packages come from the index that pip is configured with (PIP_INDEX_URL), and torch's CPU"
	@echo "build from $(PYTORCH_CPU) where that has none: one of the two must be reachable."

doctor: $(RUNS)  ## Versions, devices, and what is wrong with them
	@$(BIN)/tandem doctor

# A fresh RUN folder each time, so that a second `make demo` works; the data are made once.
demo: $(RUNS)  ## Data, training on Ray, ten recommendations, exact evaluation: under five minutes
	@$(BIN)/tandem demo $(DEMO) --workers $(WORKERS)

clean-demo:  ## Remove what `make demo` wrote
	rm -rf $(DEMO)

$(KERNELS): $(STAMP) requirements/kernels.txt
	@test $(SET) = cuda || $(PIP) -r requirements/kernels.txt
	@touch $@

test: $(KERNELS)  ## Unit tests, under two minutes on two cores
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not faults and not gpu and not slow and not hostile"

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

check: lint types imports test  ## What CI runs: style, types, import rules, tests

wheel: $(STAMP)  ## Build the wheel, and try it in an environment and a folder of its own
	$(BIN)/python -m pytest -m "slow or not slow" --timeout 900 tests/test_wheel.py

format: $(STAMP)  ## Put the code into its form
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

test-faults: $(KERNELS)  ## Long tests: kills, hangs and cuts on a real Ray cluster
	$(BIN)/python -m pytest -m "faults or slow" --timeout 900

test-hostile: $(KERNELS)  ## Ten minutes of hostile input; HOSTILE_SEED, HOSTILE_SECONDS
	$(BIN)/python -m pytest -m hostile -s tests/hostile

$(TRACKERS): $(STAMP) requirements/trackers.txt
	@$(PIP) -r requirements/trackers.txt
	@touch $@

test-trackers: $(TRACKERS)  ## Tests of --track with the real libraries, which base has not
	$(BIN)/python -m pytest tests/trackers

$(ENGINES): $(STAMP) requirements/engines.txt
	@$(PIP) -r requirements/engines.txt
	@touch $@

test-engines: $(ENGINES)  ## Recipes of docs/serving.md with the engines themselves
	$(BIN)/python -m pytest tests/engines

$(DOCS): $(STAMP) requirements/docs.txt
	@$(PIP) -r requirements/docs.txt
	@touch $@

docs: $(DOCS)  ## The documentation as a site, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "site/index.html; while you write: $(BIN)/mkdocs serve"

# Three parts of less than ten minutes each, in any order; each renews the page's tables.
GPU_RESULTS ?= gpu-check
GPU_PAGE := $(BIN)/python -m trainer.bench.gpu_page $(GPU_RESULTS) docs/benchmarks/gpu.md

gpu-check: gpu-check-parity gpu-check-loss gpu-check-step  ## Tests and timings that need a CUDA device

gpu-check-parity: $(STAMP)  ## Of them kernels beside the reference, and runs of every preset
	$(BIN)/python -m pytest -m gpu --timeout 600 --junitxml $(GPU_RESULTS)/parity.xml
	$(GPU_PAGE)

gpu-check-loss: $(STAMP)  ## Of them the loss beside its floor and other ways
	$(BIN)/python -m trainer.bench.gpu_loss $(GPU_RESULTS)
	$(GPU_PAGE)

gpu-check-step: $(STAMP)  ## Of them the training step beside a plain loop, and whole runs
	$(BIN)/python -m trainer.bench.gpu_step $(GPU_RESULTS)
	$(GPU_PAGE)

# As an argument: IMAGE=registry.example/team/tandem, SETS=cuda, DOCKER=podman.
IMAGE ?= tandem
SETS ?= cpu cuda
DOCKER ?= docker

images:  ## tandem:cpu and tandem:cuda, where a Docker daemon answers
	@$(DOCKER) info >/dev/null 2>&1 || { echo "error: no daemon answers \`$(DOCKER) info\`: start" \
	  "one, or build where there is one (DOCKER=podman does without)"; exit 1; }
	@set -e; for set in $(SETS); do \
	  echo "$(DOCKER) build -f deploy/docker/Dockerfile.$$set -t $(IMAGE):$$set ."; \
	  $(DOCKER) build -f deploy/docker/Dockerfile.$$set -t $(IMAGE):$$set .; \
	done

SCREENS ?= runs/screens

screenshots: $(STAMP)  ## Pictures of pages and terminals, into docs/assets/screens; needs Chromium
	@$(BIN)/python docs/site/screens.py $(SCREENS) docs/assets/screens

# ECharts as the pages carry it: the parts of it that they draw with, in one file.
ECHARTS := echarts@6.1.0
ASSETS := trainer/live/assets

charts:  ## Of ECharts, trainer/live/assets/echarts.min.js anew; needs npm
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/charts $(ECHARTS) esbuild@0.28.2
	@cd $(VENV)/charts && node node_modules/esbuild/install.js && cp ../../$(ASSETS)/echarts.entry.js . && \
	  npx esbuild echarts.entry.js --bundle --minify --format=iife --global-name=echarts \
	  --log-level=warning --define:process.env.NODE_ENV='"production"' --target=es2020 --legal-comments=inline \
	  --banner:js="/* Parts of Apache $(ECHARTS) (Apache-2.0), with its zrender (BSD-3-Clause) and tslib (0BSD): echarts.LICENSE */" \
	  --outfile=../../$(ASSETS)/echarts.min.js
	@cat $(VENV)/charts/node_modules/echarts/LICENSE $(VENV)/charts/node_modules/echarts/NOTICE \
	  $(VENV)/charts/node_modules/zrender/LICENSE > $(ASSETS)/echarts.LICENSE
