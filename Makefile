# Everything a fresh clone needs: Python >= 3.11, make and git.
PYTHON ?= python3
# Of the fault tests, such as 2/3: every third from the second on.
PART ?= 1/1
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test faults check bench gpu format

demo: $(INSTALLED)
	$(BIN)/tutti demo --out runs/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup -m faults --part $(PART)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_architecture.py tests/test_docs.py

bench: $(INSTALLED)
	$(BIN)/pytest -m benchmark -s tests/benchmarks

gpu: $(INSTALLED)
	$(BIN)/pytest -s tests/gpu

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tutti needs Python >= 3.11; make PYTHON=python3.12 names one")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
