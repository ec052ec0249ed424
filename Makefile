# Every target sets itself up with Python and pip alone.
PYTHON ?= python3
BIN := .venv/bin
# Three files at a time, on two cores too: much of the suite waits for servers and workers.
IN_PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help test lint format clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

.venv/.ready: pyproject.toml requirements/dev.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements/dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

test: .venv/.ready lint  ## Check style and types, then run the whole suite.
	$(BIN)/python -m pytest $(IN_PARALLEL)

.PHONY: test-all
test-all: .venv/.ready lint test-defaults  ## Run the heavy tests too, and reads with the default time-outs.
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "" -o faulthandler_timeout=1800  # some sweeps take longer than 5 minutes

.PHONY: test-topologies
test-topologies: .venv/.ready  ## Run the suite of stores and brokers, each with passwords and TLS where there is such a server.
	$(BIN)/python -m pytest -m "" tests/topologies tests/integration/test_rabbitmq.py tests/integration/test_worker_pools.py

# Elsewhere store_timeout is 5 s and wait_for 20 s, so that a busy machine is no finding.
OF_DEFAULTS := tests/flows/test_reads.py tests/flows/test_many.py tests/flows/test_many_together.py \
	tests/flows/test_failures.py tests/flows/test_races.py tests/flows/test_crowds.py tests/web/test_read_json.py

.PHONY: test-defaults
test-defaults: .venv/.ready  ## Run reads with the time-outs that a Config and a Policy have by default.
	CACHEWORKERS_TEST_DEFAULTS=1 $(BIN)/python -m pytest $(OF_DEFAULTS)

lint: .venv/.ready  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv-docs/.ready: requirements/docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --requirement requirements/docs.lock
	@touch $@

.PHONY: docs
docs: .venv-docs/.ready  ## Build the documentation into docs/_build; a warning is an error.
	PYTHONPATH=. .venv-docs/bin/python -m sphinx --fail-on-warning --quiet --fresh-env --write-all -b dirhtml docs docs/_build

# The oldest versions that pyproject.toml admits, on the oldest Python; the newest on each later Python that is here.
PYTHON_OLDEST ?= python3.11
PYTHONS := 3.12 3.13 3.14
# pyenv's, if there is one: its shims start no version that is not switched on.
python_of = $(or $(lastword $(sort $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python3))),$(shell command -v python$(1)))
PYTHONS_HERE := $(foreach each,$(PYTHONS),$(if $(call python_of,$(each)),$(each)))
# The oldest store at hand, Debian's Redis 7.0 say; else Valkey's wheel, as with the newest.
STORE_OLDEST ?= $(shell command -v redis-server)
# What differs between versions: workers, sessions, sockets, the codec.
OF_VERSIONS := tests/unit/test_codec.py tests/unit/test_calls.py tests/unit/test_imports.py tests/sql/test_watch.py \
	tests/sql/test_watch_ways.py tests/flows/test_reads.py tests/flows/test_many.py \
	tests/integration/test_workers.py tests/integration/test_listener.py
# msgspec before 0.22 refuses a Literal of several types, and says so where the loader is declared.
NOT_ON_OLDEST := --deselect "tests/unit/test_codec.py::test_none_is_a_value_only_where_the_type_itself_says_so[Literal-True]" \
	--deselect "tests/unit/test_calls.py::test_raw_arguments_serve_as_keys_only_where_equal_means_same[Literal-False]"

.venv-oldest/.ready: pyproject.toml requirements/oldest.lock
	$(PYTHON_OLDEST) -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install --quiet --requirement requirements/oldest.lock
	.venv-oldest/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv-3.%/.ready: pyproject.toml requirements/dev.lock
	$(call python_of,3.$*) -m venv --clear .venv-3.$*
	.venv-3.$*/bin/pip install --quiet --requirement requirements/dev.lock
	.venv-3.$*/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PRECIOUS: .venv-3.%/.ready

# A part of it: make test-oldest OF_VERSIONS=tests/sql/test_watch.py
.PHONY: test-oldest test-newest test-versions
test-oldest: .venv-oldest/.ready
	VALKEY_SERVER=$(STORE_OLDEST) .venv-oldest/bin/python -m pytest $(IN_PARALLEL) $(OF_VERSIONS) $(NOT_ON_OLDEST)

# One Python: make test-versions PYTHONS=3.12
test-3.%: .venv-3.%/.ready
	.venv-3.$*/bin/python -m pytest $(IN_PARALLEL) $(OF_VERSIONS)

test-newest: test-$(lastword $(PYTHONS_HERE))

test-versions: test-oldest $(PYTHONS_HERE:%=test-%)  ## Run what differs between versions: oldest packages, and newest on each Python.
	@echo "Tried with the newest: Python $(PYTHONS_HERE). Not tried, for they are not here: $(or $(filter-out $(PYTHONS_HERE),$(PYTHONS)),none)."

.PHONY: release
release: .venv/.ready  ## Build wheel and sdist, install them into empty environments and use them; uploads nothing.
	$(BIN)/python tests/release.py

.PHONY: check
check: test docs  ## All that a change has to pass: the suite, and the documentation built.

clean:  ## Remove what the targets made.
	rm -rf .venv .venv-docs .venv-deploy .venv-oldest .venv-3.* build docs/_build .data .pytest_cache .mypy_cache .ruff_cache

.PHONY: up
up: .venv/.ready  ## Start servers, data, web, workers, beat and Flower; stays until Ctrl-C.
	@$(BIN)/python -m app.up

.PHONY: demo
demo: .venv/.ready  ## Run a flash sale, cached beside uncached, and print one table.
	@$(BIN)/python -m app.demo

.PHONY: bench
bench: .venv/.ready  ## Measure every figure beside its aim and peers, in minutes; writes the table, its picture and the README's figures.
	$(BIN)/python -m benchmarks

.PHONY: bench-apps
bench-apps: .venv/.ready  ## Measure one product API cached by each peer in turn; writes the table and the README's row.
	$(BIN)/pip install --quiet --requirement requirements/peers.txt
	$(BIN)/python -m benchmarks.apps --write

.PHONY: compose-check
compose-check: .venv/.ready  ## Kill the containers of docker-compose.yml one by one under load; needs root and Docker.
	$(BIN)/python -m tests.compose.check $(COMPOSE_CHECK)

.venv-deploy/.ready: requirements/deploy.lock
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet --requirement requirements/deploy.lock
	@touch $@

# KEDA's ScaledObject has no schema there: a warning.  Paths of the units are those of a host that runs the shop.
.PHONY: lint-deploy
lint-deploy: .venv-deploy/.ready  ## Check the Dockerfile, the Kubernetes example and the units of systemd.
	.venv-deploy/bin/hadolint --failure-threshold info Dockerfile
	.venv-deploy/bin/kubernetes-validate --strict deploy/kubernetes/*.yaml
	if command -v systemd-analyze > /dev/null; then ! systemd-analyze verify --man=no deploy/systemd/* 2>&1 \
		| grep --invert-match 'is not executable: No such file'; fi

.PHONY: faults
faults: .venv/.ready  ## Inject 104 faults each into servers, Sentinel and a Cluster under load, in 12 minutes; writes a page.
	$(BIN)/python -m benchmarks.faults --faults 104 --shapes standalone sentinel cluster snapshot --write

.PHONY: reference
reference: .venv/.ready  ## Write the tables of docs/reference again, from the code.
	PYTHONPATH=. $(BIN)/python docs/_ext/tables.py
