# make demo | test | check. Everything is installed into .venv; set PYTHON to choose an interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check
.venv/.installed: pyproject.toml constraints.txt src/recblr/ops/kernels.c src/recblr/ops/kernels.h
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "recblr needs Python 3.11 or newer; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/recblr demo

# The tests' tensors are small: more threads would only wait for one another.
test check: export OMP_NUM_THREADS ?= 1
test: .venv/.installed
	$(BIN)/pytest

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest
