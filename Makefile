# Every target sets up what it needs: python3 with pip is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is the same on all backends; the rest (readers, real weights, documentation) runs once.
COMMON_TESTS := tests/transforms tests/training tests/updates tests/callbacks tests/session tests/test_keras_private.py \
	tests/adapt $(addprefix tests/restoring/test_,restore.py rename.py auto.py suggest.py) tests/readers/test_arrays.py
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint docs bench clean

demo: $(VENV)/.installed
	$(BIN)/python examples/fine_tune.py

test: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 $(COMMON_TESTS)
	KERAS_BACKEND=torch $(BIN)/python -m pytest -n 2 $(COMMON_TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W -q -b html docs docs/_build
	@echo "docs/_build/index.html"

bench: $(VENV)/.installed
	KERAS_BACKEND=tensorflow $(BIN)/python tests/benchmarks/step_time.py
	KERAS_BACKEND=jax $(BIN)/python tests/benchmarks/step_time.py
	$(BIN)/python tests/benchmarks/restore.py
	$(BIN)/python tests/benchmarks/saving.py

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
