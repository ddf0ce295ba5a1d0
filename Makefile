# Every target sets up what it needs: python3 with pip is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BACKENDS := tensorflow jax torch
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test $(addprefix test-,$(BACKENDS)) test-architectures architectures lint docs bench clean

demo: $(VENV)/.installed
	$(BIN)/python examples/fine_tune.py

# All backends run, whatever fails on the first, and it fails at the end if one did. They take turns:
# the tests of one take all cores.
test: $(VENV)/.installed
	$(MAKE) -j1 --keep-going $(addprefix test-,$(BACKENDS))

# Tests marked `once` run on TensorFlow alone. Neighbours share a process, as they share fixtures.
$(addprefix test-,$(BACKENDS)): test-%: $(VENV)/.installed
	KERAS_BACKEND=$* $(BIN)/python -m pytest -n 2 --dist worksteal

# Other libraries' networks and their files: half a gigabyte of packages that only this needs.
test-architectures: $(VENV)/.architectures
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2 tests/real/test_architectures.py \
		tests/real/test_write_back.py tests/real/test_peft.py tests/layouts

architectures: $(VENV)/.architectures
	KERAS_BACKEND=torch $(BIN)/python -m tests.real.architectures

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright

docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W -q -b html docs docs/_build
	@echo "docs/_build/index.html"

bench: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python tests/benchmarks/step_time.py
	KERAS_BACKEND=jax $(BIN)/python tests/benchmarks/step_time.py
	for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend $(BIN)/python tests/benchmarks/custom_step.py || exit; \
	done
	$(BIN)/python tests/benchmarks/restore.py
	for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend $(BIN)/python tests/benchmarks/saving.py || exit; \
	done
	$(BIN)/python tests/benchmarks/write_back.py
	$(BIN)/python -m tests.benchmarks.cluster
	$(BIN)/python tests/benchmarks/growth.py
	KERAS_BACKEND=jax $(BIN)/python tests/benchmarks/gpu.py
	KERAS_BACKEND=torch $(BIN)/python tests/benchmarks/gpu.py

$(VENV)/.architectures: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,architectures]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
