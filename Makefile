# Everything happens in this folder: the environment in .venv, temporary files in .tmp.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
STORES ?= memory json sqlite sqlite-hybrid postgres postgres-hybrid mongo mongo-pymongo mongo-standalone \
	dynamodb dynamodb-local
IN_README ?= memory json sqlite sqlite-hybrid postgres mongo dynamodb
TIER ?= standard
SEED ?= $(shell date +%s)
BUDGET ?= 60
BUDGET_STORE ?= sqlite

export TMPDIR := $(CURDIR)/.tmp
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start thousands of processes. Each would compile the packages anew where no bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE

PROJECTS := pyproject.toml plugins/sqlite/pyproject.toml plugins/postgres/pyproject.toml plugins/mongo/pyproject.toml \
	plugins/dynamodb/pyproject.toml conformance/pyproject.toml plugins/agent/pyproject.toml plugins/inspector/pyproject.toml plugins/otel/pyproject.toml
PACKAGES := -p kode_core -p kode_sqlite -p kode_postgres -p kode_mongo -p kode_dynamodb -p kode_conformance -p kode_duckdb \
	-p kode_agent -p kode_inspector -p kode_otel

# The adapters of agent frameworks have an environment of their own: the frameworks take 700 MB. The versions are those of
# constraints-frameworks.txt; NEWEST=1 takes the newest ones.
FRAMEWORKS := .venv-frameworks/bin
ADAPTERS := langgraph openai-agents claude-agent pydantic-ai adk
TESTED ?= $(ADAPTERS)
ADAPTER_PACKAGES := -p kode_langgraph -p kode_openai_agents -p kode_claude_agent -p kode_pydantic_ai -p kode_adk
PINNED := $(if $(NEWEST),,-c constraints-frameworks.txt)

.PHONY: help demo demo-frameworks test test-frameworks test-all suites chaos selftest lint format conformance matrix coverage bench docs sync-methods version dist clean

help:
	@echo "make demo    import 200 recorded agent runs into SQLite and show what is in them"
	@echo "make test    run the tests of every backend that answer soon: minutes"
	@echo "make demo-frameworks  run agents of five frameworks over one store, without a network"
	@echo "make test-frameworks  test the adapters of five frameworks (NEWEST=1: with their newest versions; TESTED=adk for one)"
	@echo "make test-all  run all tests: most of an hour on two cores"
	@echo "make suites  judge encrypted stores and views of tenants over servers by the whole suite: an hour"
	@echo "make chaos   have servers fail under load and at every call: an hour (SEED=1 for the same again)"
	@echo "make lint    ruff, mypy --strict, import-linter"
	@echo "make format  ruff's formatter and safe fixes"
	@echo "make selftest  hold the conformance suite to stores that are faulty on purpose: minutes"
	@echo "make conformance  judge all stores (TIER=quick, standard or thorough; STORES=\"json mongo\"; reports in conformance-reports/)"
	@echo "make budget  fail when the tier quick takes more than 60 s of CPU on SQLite (BUDGET=90 for a busy machine), and print its dearest checks"
	@echo "make matrix  put what 'make conformance' found into the README"
	@echo "make coverage  put the table of claims and conditions into docs/guides/conditions.md"
	@echo "make bench   measure beside the bare drivers (results in bench/; ARGS=\"postgres turns\" for a part, ARGS=matrix for a table of all, ARGS=million for searches at a million messages, ARGS=text for searches for texts with an index of them, ARGS=costs for the tables of costs in the guides, ARGS=adapters for the adapters next to the frameworks' own stores)"
	@echo "make docs    build the documentation as a site, in site/; to read it: python3 -m http.server -d site"
	@echo "make sync-methods  write the methods of kode_core.sync anew, after a change of the protocols"
	@echo "make version  show the version of all distributions, or set it everywhere with V=0.2.0"
	@echo "make dist    build the source distributions and wheels of all distributions into dist/"
	@echo "make clean   remove what the targets made"

demo: .venv/.run
	@$(BIN)/python docs/examples/demo.py

test: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m "not selftest and not slow and not suites" $(ARGS)

test-all: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

demo-frameworks: .venv-frameworks/.ready
	@$(FRAMEWORKS)/python docs/examples/demo_frameworks.py

test-frameworks: .venv-frameworks/.ready
	$(FRAMEWORKS)/mypy $(ADAPTER_PACKAGES)
	$(FRAMEWORKS)/python -m pytest -n $(WORKERS) -W default $(TESTED:%=plugins/%/tests) $(ARGS)

suites: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m suites tests/test_encrypted_backends.py tests/test_archive_ring.py conformance/tests/test_scoped_views.py $(ARGS)

chaos: .venv/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m chaos --kode-tier thorough --kode-seed $(SEED) plugins/mongo/tests plugins/dynamodb/tests $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/mypy scripts
	$(BIN)/mypy docs/site
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.sentences

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

selftest: .venv/.dev
	KODE_KILL_MATRIX=conformance-reports/kill-matrix.json \
	$(BIN)/python -m pytest -n $(WORKERS) -m selftest conformance/tests $(ARGS)

conformance: .venv/.dev
	@set -e; for store in $(STORES); do $(BIN)/kode conformance $$store --tier $(TIER) --seed 1 --report conformance-reports $(ARGS); done
	@$(BIN)/kode compare --matrix $(STORES:%=conformance-reports/%.json)

.PHONY: budget
budget: .venv/.dev
	@$(BIN)/kode conformance $(BUDGET_STORE) --tier quick --seed 1 --report .tmp/budget
	@$(BIN)/python -m conformance.tests.zoo.worth .tmp/budget/$(BUDGET_STORE).json --dearest 25 --most $(BUDGET)

matrix:
	@$(BIN)/kode compare --into README.md $(IN_README:%=conformance-reports/%.json)

coverage: .venv/.dev
	@$(BIN)/python -m kode_conformance.reports.coverage conformance/kode_conformance/clauses.toml docs/guides/conditions.md

ifeq ($(ARGS),adapters)
bench: .venv-frameworks/.ready
	$(FRAMEWORKS)/python -m plugins.langgraph.bench
	$(FRAMEWORKS)/python plugins/openai-agents/tests/benchmark.py
	$(FRAMEWORKS)/python plugins/adk/tests/benchmark.py
else
bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks $(ARGS)
endif

docs: .venv/.dev
	$(BIN)/python -m mkdocs build --strict $(ARGS)

sync-methods: .venv/.dev
	@$(BIN)/python scripts/sync_methods.py

version:
	@$(PYTHON) scripts/version.py $(V)

# As an index's users get them: a source distribution of each, and the wheel that is built from it.
dist: .venv/.dev
	@rm -rf dist .tmp/dist && mkdir -p .tmp/dist
	@set -e; for project in $(PROJECTS) $(ADAPTERS:%=plugins/%/pyproject.toml); do \
		(cd $$(dirname $$project) && $(CURDIR)/$(BIN)/python -m hatchling build -t sdist -d $(CURDIR)/dist); \
	done
	@set -e; for archive in dist/*.tar.gz; do \
		tar xzf $$archive -C .tmp/dist; \
		(cd .tmp/dist/$$(basename $$archive .tar.gz) && $(CURDIR)/$(BIN)/python -m hatchling build -t wheel -d $(CURDIR)/dist); \
	done

clean:
	rm -rf .venv .venv-frameworks .tmp data dist bench site conformance-reports .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; run: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@mkdir -p .tmp
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python $(PROJECTS) constraints.txt
	@mkdir -p .tmp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cli]' -e plugins/sqlite
	@touch $@

.venv/.dev: .venv/.run requirements-dev.txt docs/examples/duckdb-store/pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	@touch $@

.venv-frameworks/.ready: requirements-frameworks.txt constraints-frameworks.txt $(ADAPTERS:%=plugins/%/pyproject.toml)
	@mkdir -p .tmp
	$(PYTHON) -m venv .venv-frameworks
	$(FRAMEWORKS)/python -m pip install --quiet $(if $(NEWEST),--upgrade) $(PINNED) -r requirements-frameworks.txt
	@touch $@
