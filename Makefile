# Everything runs in .venv, which is made and brought up to date on the way.
#   make demo                      train and report the wake-flow demo
#   make test PYTHON=python3.12    with another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# stamps: installed since pyproject.toml and constraints.txt last changed
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
# Bytecode of all that is installed takes longer than to install it, and most of it is never imported: what is, Python
# compiles when it is imported first.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e

# all cores, one file's tests on one of them: what a file shares is made once
WORKERS ?= logical
# what is skipped is told at the end, with what installs it
PYTEST = $(BIN)/python -m pytest -rs -n $(WORKERS) --dist loadfile

.PHONY: help demo test test-all test-lowest test-newest test-peers test-shelves wheel-test lint types layers docs docs-quick paper clean \
  environment environment-dev environment-docs
.DEFAULT_GOAL := help

help:
	@echo "make demo      train through a flow solver without derivatives, and write a report"
	@echo "make test      the tests, without the slow ones"
	@echo "make test-all  all tests, with types checked while they run"
	@echo "make test-lowest, make test-newest PYTHON=python3.14"
	@echo "               the tests with the lowest and the newest versions that pyproject.toml allows"
	@echo "make test-peers the tests that need an optional package that is not in dev"
	@echo "make test-shelves the tests of the core, without each shelf in turn"
	@echo "make wheel-test the wheel in an empty environment, without the source tree"
	@echo "make lint      ruff"
	@echo "make types     pyright"
	@echo "make layers    the layers of imports"
	@echo "make docs      the documentation, every block of its pages executed, in docs/_build/html"
	@echo "make docs-quick the same without executing: links, names, generated pages"
	@echo "make paper     the report on what was measured, as a page of docs-quick and as a PDF"
	@echo "make clean     remove .venv and caches; runs and data stay"

demo: export PYTHONDONTWRITEBYTECODE =
demo: environment
	$(BIN)/blackbox run wake-flow --preset demo

# Small tensors: more threads only wait for each other, ten times as long where a core is busy.
test test-all test-lowest test-newest: export OMP_NUM_THREADS ?= 1
# Without bytecode each worker compiles all tests anew, which takes half of what collecting them takes; and torch takes
# three times as long to import.
test test-all test-lowest test-newest docs docs-quick: export PYTHONDONTWRITEBYTECODE =

test: environment-dev
	$(PYTEST)

test-all: environment-dev
	$(PYTEST) -m "slow or not slow" --typeguard-packages=blackbox,simulators,zo,tasks

# The lowest or newest of each requirement, as uv resolves it; what those require themselves is the newest.
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
# torch before 2.12 has no second derivative of grid_sample, through which these two push directions
test-lowest: CHOICE := $(addprefix --deselect tests/zo/test_model_tangent.py::, \
  test_products_go_through_a_solver_that_has_no_forward_mode \
  test_what_a_model_leaves_of_the_wake_is_learned_behind_it)

# Old releases that meet new ones of what they require themselves warn of what will go: no fault of ours.
test-lowest: CHOICE += -W ignore::DeprecationWarning
# The lowest torch is several GB for CUDA: UV_TORCH_BACKEND=cpu takes its build for CPUs from PyTorch's own index, and
# TORCH=2.13.0 takes another torch, which leaves torch's bound untested.
TORCH ?=

test-lowest test-newest:
	$(PYTHON) -m venv --clear .venv-$(RESOLUTION)
	.venv-$(RESOLUTION)/bin/python -m pip install --disable-pip-version-check uv
	printf '$(TORCH:%=torch==%\n)' > .venv-$(RESOLUTION)/torch.txt
	.venv-$(RESOLUTION)/bin/uv pip install --python .venv-$(RESOLUTION) --resolution $(RESOLUTION) \
	  -c .venv-$(RESOLUTION)/torch.txt -e ".[dev]"
	.venv-$(RESOLUTION)/bin/python -m pytest -rs -n $(WORKERS) --dist loadfile $(CHOICE)
	.venv-$(RESOLUTION)/bin/uv pip list --python .venv-$(RESOLUTION)

# Adapters of packages that bring upper bounds of their own, so of constraints.txt only torch's line holds here, which
# keeps pip from taking another build of it; mpi4py needs an MPI, the tests of FMUs a C compiler.
PEERS := tests/tasks/test_export.py tests/tasks/test_callbacks.py tests/examples/test_with_lightning.py \
  tests/blackbox/adapters/tesseract tests/blackbox/adapters/fmu \
  tests/blackbox/adapters/hosted/test_sanitized.py \
  tests/blackbox/adapters/session/test_gymnasium.py tests/blackbox/adapters/test_openmdao.py \
  tests/tasks/test_cma_es.py \
  tests/tasks/test_tesseract.py \
  tests/blackbox/wrappers/test_parallel_executors.py tests/blackbox/adapters/command/test_mpi.py \
  tests/zo/test_jax.py tests/docs/test_own_loss.py tests/docs/test_jax.py

test-peers: export OMP_NUM_THREADS ?= 1
test-peers:
	$(PYTHON) -m venv --clear .venv-peers
	grep '^torch==' constraints.txt > .venv-peers/constraints.txt
	.venv-peers/bin/python -m pip install --disable-pip-version-check -c .venv-peers/constraints.txt -e ".[dev,peers]"
	.venv-peers/bin/python -m pytest -rs -m "slow or not slow" --timeout 1800 $(PEERS)

# each shelf is taken out of a copy in turn, and what is left of the tests is run there: hours on two cores
test-shelves: export OMP_NUM_THREADS ?= 1
test-shelves: environment-dev
	$(BIN)/python -m tests.shelves -- -n $(WORKERS) --dist loadfile

wheel-test:
	packaging/wheel_test.sh $(PYTHON)

lint: environment-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: environment-dev
	$(BIN)/pyright
	$(BIN)/pyright -p tests

layers: environment-dev
	$(BIN)/lint-imports

# A warning is an error. Outputs of pages are kept by their content and that of the packages.
SPHINX = $(BIN)/python -m sphinx -b html -n -W --keep-going docs docs/_build/html
docs docs-quick paper: export OMP_NUM_THREADS ?= 1

docs: environment-docs
	$(SPHINX)

docs-quick: environment-docs
	DOCS_QUICK=1 $(SPHINX)-quick

# docs/paper/figures.py makes its pictures and tables from benchmarks/results
paper: docs-quick
	$(BIN)/python docs/paper/print.py docs/_build/html-quick/paper/index.html docs/_build/paper.pdf

clean:
	rm -rf docs/_build docs/results docs/gallery docs/project docs/paper/figures docs/reference/command_line.md $(VENV) .venv-lowest-direct .venv-highest .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

environment: STAMP := $(RUNTIME)
environment-dev: STAMP := $(DEV)
environment-docs: STAMP := $(DOCS)
environment environment-dev environment-docs:
	@if $(MAKE) --no-print-directory -q $(STAMP); then echo "The environment is up to date."; \
	else $(MAKE) --no-print-directory $(STAMP); fi

$(RUNTIME): pyproject.toml constraints.txt
	@$(make-venv)
	$(INSTALL) .
	@touch $@

# the dev extra is the runtime and more: `make demo` after `make test` has nothing to install
$(DEV): pyproject.toml constraints.txt
	@$(make-venv)
	$(INSTALL) ".[dev]"
	@touch $(RUNTIME) $@

# pages run what the README shows, so all of the dev extra is there too
$(DOCS): pyproject.toml constraints.txt
	@$(make-venv)
	$(INSTALL) ".[dev,docs]"
	@touch $(RUNTIME) $(DEV) $@

# a .venv whose Python is gone, or that was left half made, is made anew
define make-venv
if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
  version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null) || version="not found"; \
  if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
    echo "Expected Python 3.11 or newer, but $(PYTHON) is $$version. Name another: make PYTHON=python3.11 ..." >&2; \
    exit 1; \
  fi; \
  echo "Making $(VENV) with Python $$version"; \
  $(PYTHON) -m venv --clear $(VENV); \
fi
endef
