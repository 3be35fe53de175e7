# Two commands do everything: `make run` and `make test`. Both set up .venv first.

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help run all test check fuzz lab refresh bench study data lint clean standalone publish \
  test-versions test-thorough

help:
	@echo "make run      set up, get MNIST, execute notebooks 01 to 03: outputs/modelku.pth"
	@echo "make all      the same with every notebook"
	@echo "make test     unit tests, then every notebook with its outputs compared"
	@echo "make check    unit tests alone, under a minute"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make refresh  execute the notebooks in place, with clean outputs"
	@echo "make bench    the speed tables of notebook 06, measured anew; about 6 minutes"
	@echo "make study    many seeds of everything, for notebooks 03 and 06; about an hour"
	@echo "make fuzz     100,000 made-up and damaged IDX files against the parser"
	@echo "make data     only find or download MNIST"
	@echo "make standalone    notebooks that need no other file, into dist/; KAGGLE_USER=name"
	@echo "make publish       the same on a branch, and badges that open it; REPO=owner/name"
	@echo "make test-versions unit tests and notebooks with the oldest and the newest versions"
	@echo "make test-thorough the long notebooks on Colab and other Kaggle mounts"
	@echo "make lint     ruff on the code and in the notebooks"
	@echo "make clean    remove .venv and outputs; data/ and dist/ stay"

# A stamp file is newer than the requirements it was made from, so a second
# `make` installs nothing; an interrupted install leaves no stamp.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/run.stamp: requirements.txt | .venv/bin/python
	$(PY) -m pip install -r requirements.txt
	@touch $@

.venv/test.stamp: requirements.txt requirements-dev.txt .venv/run.stamp | .venv/bin/python
	$(PY) -m pip install -r requirements-dev.txt
	@touch $@

run: .venv/run.stamp data
	@$(PY) tools/run_notebooks.py 01 02 03

all: .venv/run.stamp data
	@$(PY) tools/run_notebooks.py

data: .venv/run.stamp
	@echo "MNIST: $$($(PY) -c 'import utils; print(utils.find_mnist())')"

test: .venv/test.stamp data
	$(PY) -m pytest tests notebooks --nbval --nbval-cell-timeout=900 -rs

check: .venv/test.stamp data
	$(PY) -m pytest tests -m "not slow"

fuzz: .venv/test.stamp data
	$(PY) -m pytest tests/test_idx.py --hypothesis-profile=fuzz

lab: .venv/run.stamp
	$(PY) -m jupyter lab notebooks

refresh: .venv/run.stamp data
	@$(PY) tools/run_notebooks.py --in-place

study: .venv/run.stamp data
	@$(PY) tools/study.py
	@$(PY) tools/speed_study.py

bench: .venv/run.stamp data
	@$(PY) tools/bench.py

standalone: .venv/run.stamp
	@$(PY) tools/standalone.py $(if $(KAGGLE_USER),--kaggle-user=$(KAGGLE_USER))

publish: .venv/run.stamp
	@test -n "$(REPO)" || { echo "Say where it will be: make publish REPO=owner/name"; exit 2; }
	@$(PY) tools/publish.py $(REPO)

test-thorough: .venv/test.stamp data
	$(PY) -m pytest tests -m thorough

test-versions: .venv/test.stamp data
	@$(PY) tools/test_versions.py

lint: .venv/test.stamp
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

clean:
	rm -rf .venv outputs
