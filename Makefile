# Each verb is a short name for commands that work without make: `make help` prints them.
PYTHON ?= python3
PROFILE ?= mini
SEED ?= 0
RUN ?= runs/$(PROFILE)-s$(SEED)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install reproduce smoke test test-all lint stats benchmark format generate site doctor clean

help:
	@echo 'verb            the same by hand, in an activated environment'
	@echo 'make install    python3 -m venv .venv && pip install -c constraints.txt -e ".[dev]"'
	@echo 'make reproduce  iadr1 run --profile mini --seed 0'
	@echo 'make smoke      iadr1 run --profile smoke --seed 0'
	@echo 'make test       make lint, then: pytest -m "not slow"'
	@echo 'make test-all   pip install -c constraints.txt -e ".[dev,semantic,real,site]" playwright, then: pip install --no-deps -r requirements-app.txt, then: IADR1_REQUIRE_SHARED=1 pytest'
	@echo 'make lint       ruff check . && ruff format --check . && mypy && lint-imports && nbstripout --verify notebooks/*.ipynb notebooks/solutions/*.ipynb'
	@echo '                and: python notebooks/solutions/generate.py --check'
	@echo 'make stats      python tests/stats.py && lint-imports'
	@echo 'make benchmark  python tests/gpu_check.py --out benchmark.json (on a GPU; --help says what else)'
	@echo 'make format     ruff check --fix . && ruff format . && nbstripout notebooks/*.ipynb, then as below'
	@echo 'make generate   python notebooks/solutions/generate.py: notebooks from their sources, which hold the solutions'
	@echo 'make site       pip install -c constraints.txt -e ".[site]", then: IADR1_SITE_RUN=runs/mini-s0 mkdocs build -f docs/site/mkdocs.yml'
	@echo '                (the executed notebooks of a run, docs and glossary as pages: open site/index.html)'
	@echo 'make doctor     iadr1 doctor'
	@echo 'make clean      rm -rf .venv and caches (runs/ stays)'
	@echo 'PROFILE=, SEED=, RUN= and PYTHON= may be given: make reproduce SEED=1 PYTHON=python3.12'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

reproduce: $(STAMP)
	$(BIN)/iadr1 run --profile $(PROFILE) --seed $(SEED)

smoke: $(STAMP)
	$(BIN)/iadr1 run --profile smoke --seed $(SEED)

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,semantic,real,site]" playwright
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-app.txt
	IADR1_REQUIRE_SHARED=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify notebooks/*.ipynb notebooks/solutions/*.ipynb
	$(BIN)/python notebooks/solutions/generate.py --check

stats: $(STAMP)
	$(BIN)/python tests/stats.py
	$(BIN)/lint-imports --no-logo

benchmark: $(STAMP)
	$(BIN)/python tests/gpu_check.py --out benchmark.json

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout notebooks/*.ipynb notebooks/solutions/*.ipynb
	$(BIN)/python notebooks/solutions/generate.py

generate: $(STAMP)
	$(BIN)/python notebooks/solutions/generate.py

site: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,site]"
	NO_MKDOCS_2_WARNING=1 IADR1_SITE_RUN=$(RUN) $(BIN)/mkdocs build -f docs/site/mkdocs.yml
	@echo "open site/index.html"

doctor: $(STAMP)
	$(BIN)/iadr1 doctor

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find iadr1_lib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
