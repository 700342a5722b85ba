# Everything a user or developer does here, each target installing what it needs into .venv on first use.
#   make demo PYTHON=python3.12      another interpreter
#   make test PYTEST_ARGS="-k planar -x"
#   GENFAST_CUDA=ON|OFF|AUTO, GENFAST_CUDA_ARCHS="80;90"   as in CMakeLists.txt
# Unlike pip install, make builds the CUDA kernels only where there is a GPU (or where asked).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto
BENCH_ARGS ?=
GENFAST_CUDA ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo AUTO || echo OFF)
GENFAST_CUDA_ARCHS ?=
export GENFAST_CUDA GENFAST_CUDA_ARCHS

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CXX_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
TEST_SOURCES := $(wildcard tests/csrc/*.* tests/csrc/*/*.*)
CONFIG := GENFAST_CUDA=$(GENFAST_CUDA) GENFAST_CUDA_ARCHS=$(GENFAST_CUDA_ARCHS)
# The Python files where they lie; the extension beside them is built by scripts/dev_build.sh.
EDITABLE := --no-build-isolation -c constraints-dev.txt -C wheel.cmake=false

.PHONY: help demo test bench bench-table lint format docs install hooks clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(STAMPS)/package ## train an RBM on handwritten digits, show what it learned and how fast
	@$(BIN)/genfast demo --out runs/demo

test: $(STAMPS)/tools ## run every test
	@# Workers outnumber the cores between them, so threads that wait should not spin.
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(STAMPS)/tools ## compare with PyTorch and other libraries on this machine (BENCH_ARGS="planar --quick")
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-table: $(STAMPS)/tools ## measure again and write the tables of README.md and docs/performance.md
	@$(BIN)/python -m benchmarks $(BENCH_ARGS) --out benchmarks/results --markdown README.md docs/performance.md

lint: $(STAMPS)/tools ## ruff, mypy and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(TEST_SOURCES)

format: $(STAMPS)/tools ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) $(TEST_SOURCES)

docs: $(STAMPS)/docs ## build the documentation into docs/_build/html
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

install: $(STAMPS)/tools ## only make .venv with the package and all tools

hooks: $(STAMPS)/tools ## run the linters at every git commit
	@$(BIN)/pre-commit install

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f genfast/_C*.so
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- what the targets need, each made once ------------------------------------------------------------------------------

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) on the PATH; genfast needs Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "make: genfast needs Python 3.10 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"name another with: make PYTHON=python3.12" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "make: no C++ compiler (Debian: apt install g++)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
		echo "make: the headers of $(PYTHON) are missing (Debian: apt install python3-dev)" >&2; exit 1; }
	@echo "make: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "make: python -m venv failed (Debian: apt install python3-venv)" >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/build-tools: $(STAMPS)/venv constraints-dev.txt
	@echo "make: installing torch and the build tools"
	@$(PIP) install -c constraints-dev.txt torch numpy 'scikit-build-core>=0.10' 'pybind11>=2.13' cmake ninja
	@touch $@

# Changes only when the options do, so that new options rebuild.
$(STAMPS)/config: $(STAMPS)/venv FORCE
	@echo '$(CONFIG)' | cmp -s - $@ || echo '$(CONFIG)' > $@

$(STAMPS)/extension: $(STAMPS)/build-tools $(STAMPS)/config $(wildcard cmake/*) CMakeLists.txt scripts/dev_build.sh $(CXX_SOURCES)
	@echo "make: building the kernels ($(CONFIG))"
	@PYTHON=$(BIN)/python scripts/dev_build.sh
	@touch $@

$(STAMPS)/package: $(STAMPS)/extension pyproject.toml
	@echo "make: installing genfast"
	@$(PIP) install $(EDITABLE) -e '.[train]'
	@touch $@

$(STAMPS)/tools: pyproject.toml constraints-dev.txt | $(STAMPS)/package
	@echo "make: installing the tools for tests, benchmarks and lint"
	@$(PIP) install $(EDITABLE) -e '.[train,bench,dev]'
	@touch $@

$(STAMPS)/docs: docs/requirements.txt | $(STAMPS)/package
	@echo "make: installing the tools for the documentation"
	@$(PIP) install -c constraints-dev.txt -r docs/requirements.txt
	@touch $@

FORCE:
