# Everything a fresh clone needs: Python >= 3.11, make and git.
PYTHON ?= python3
# Of the fault tests, such as 2/3: every third from the second on.
PART ?= 1/1
BIN := .venv/bin
INSTALLED := .venv/.installed

NEWEST := .venv-newest/bin

.PHONY: demo test test-fast faults check bench gpu format newest lock

demo: $(INSTALLED)
	$(BIN)/tutti demo --out runs/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# What one runs while editing: no Ray, no training, no server.
test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not faults and not benchmark'

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

# What a new environment gets on this day without the lock.
newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	$(NEWEST)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	OMP_NUM_THREADS=1 $(NEWEST)/pytest -n 2 tests/golden tests/branches/beats tests/branches/test_model.py \
		tests/test_readme.py

# The versions of .venv-newest, once it has passed.
lock: newest
	sed -n '/^#/p' constraints.txt > .venv-newest/constraints.txt
	$(NEWEST)/pip freeze --exclude-editable >> .venv-newest/constraints.txt
	mv .venv-newest/constraints.txt constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tutti needs Python >= 3.11; make PYTHON=python3.12 names one")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
