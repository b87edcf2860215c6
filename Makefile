# Everything here is safe to repeat, and quick when nothing is left to do. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

# The environment variables a run understands
N ?= 2
ENGINE ?= trixie
STORE ?= classic
NAME ?= hosts
SCENARIO ?= default fleet

PY := .venv/bin/python
# molecule, ansible and the linters call each other by name
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Python without the ending
PYTHON_SCRIPTS = scripts/connected-build scripts/demo scripts/make-pyz scripts/setup-from-bundle
# every shell script, whatever its name
SHELL_SCRIPTS = $(shell grep -lE '^\#!/(usr/)?bin/(env )?(ba)?sh' $$(git ls-files -co --exclude-standard -- ':!tests/corpus' 2>/dev/null) 2>/dev/null)
export PYTHONPATH := $(CURDIR)
export ENGINE STORE

.PHONY: help setup demo demo-down test test-all test-faults lint unit engine faults equality molecule test-scenario \
	hosts hosts-down hosts-list bench-rebuild bench-context bench-thin bench-downtime bench-fleet pyz lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## virtual environment from the lock file, and a Docker engine if none runs (BUNDLE=path: from a bundle, offline)
	@BUNDLE="$(BUNDLE)" SIGNERS="$(SIGNERS)" scripts/setup

demo: setup ## the whole story on two air-gapped test hosts
	@if [ "$$(head -n 1 scripts/demo | grep -c python)" = 1 ]; then $(PY) scripts/demo; else scripts/demo; fi

demo-down: ## remove all that the demo made
	@scripts/demo down

# The engine and image store combinations
TWO = trixie:classic testing:containerd
FOUR = trixie:classic trixie:containerd testing:classic testing:containerd
ALL = bookworm:classic trixie:classic trixie:containerd testing:classic testing:containerd

test: export OFR_THIN_CASES ?= 40
test: lint unit engine faults molecule equality ## lint, unit tests, parts on an engine, faults, the main job, offline against full builds

test-all: export OFR_ENGINE_HOSTS = 1
test-all: lint unit engine test-faults ## as test, with more random cases, on each of the five engine and image store combinations
	@$(MAKE) --no-print-directory equality COMBINATIONS="$(ALL)"
	for pair in $(ALL); do
	    echo "== the main job on $$pair"
	    OFR_ENGINE="$${pair%:*}" OFR_STORE="$${pair#*:}" $(MAKE) --no-print-directory molecule SCENARIO=default
	done
	$(MAKE) --no-print-directory molecule SCENARIO=fleet

engine: setup ## tests of single parts on a real engine
	@$(PY) -m pytest tests/engine

faults: setup ## the quick rows of the fault matrix
	@$(PY) -m pytest -s -m quick tests/faults

test-faults: COMBINATIONS = $(FOUR)
test-faults: setup ## the fault matrix: what may happen to a run and its host (COMBINATIONS as below)
	@rm -f results/faults.json
	failed=0
	for pair in $(COMBINATIONS); do
	    OFR_ENGINE="$${pair%:*}" OFR_STORE="$${pair#*:}" $(PY) -m pytest -s tests/faults || failed=1
	done
	exit $$failed

COMBINATIONS ?= $(TWO)
equality: setup ## offline images against full builds (COMBINATIONS="engine:store ...")
	@for pair in $(COMBINATIONS); do
	    echo "== equality on $$pair"
	    OFR_ENGINE="$${pair%:*}" OFR_STORE="$${pair#*:}" $(PY) -m pytest -s tests/equality
	done

lint: setup ## ruff, mypy, yamllint, ansible-lint, shellcheck
	@ruff check . $(PYTHON_SCRIPTS)
	ruff format --check . $(PYTHON_SCRIPTS)
	mypy
	yamllint --strict .
	ansible-lint --offline --profile production
	shellcheck $(SHELL_SCRIPTS)

unit: setup ## the fast tests
	@$(PY) -m pytest tests/unit

molecule: setup
	@for name in $(SCENARIO); do molecule test --no-command-borders --scenario-name "$$name" || exit 1; done

test-scenario: molecule ## one molecule scenario: SCENARIO=name

hosts: setup ## N test hosts (ENGINE=bookworm|trixie|testing STORE=classic|containerd NAME=hosts) and their inventory
	@$(PY) -m tests.hosts up --name "$(NAME)" --count "$(N)" --engine "$(ENGINE)" --store "$(STORE)" $(if $(CONNECTED),--connected) $(if $(FRESH),--fresh)

hosts-down: ## remove the test hosts called NAME
	@$(PY) -m tests.hosts down --name "$(NAME)"

hosts-list: ## the test hosts that are up
	@$(PY) -m tests.hosts list

bench-rebuild: setup ## a rebuild on an air-gapped host against the connected ideal
	@$(PY) benchmarks/bench_rebuild.py

bench-context: setup ## digest of a large build context
	@$(PY) benchmarks/bench_context.py

bench-thin: setup ## a thin layer against docker build with a warm cache
	@$(PY) benchmarks/bench_thin.py

pyz: ## dist/offline-rebuild.pyz and rebuild.sh, for a host without a control node
	@python3 scripts/make-pyz

bench-downtime: setup ## requests that a rebuild costs, against the usual ways
	@$(PY) benchmarks/bench_downtime.py

bench-fleet: setup ## a change on 1, 4 and 16 hosts, four ways
	@$(PY) benchmarks/bench_fleet.py

lock: ## make requirements.txt and requirements-control.txt anew
	@for name in requirements requirements-control; do
	    uv pip compile $$name.in --upgrade --generate-hashes --universal --python-version 3.12 \
	        --no-emit-index-url --no-header --no-annotate --quiet -o $$name.txt
	done

clean: ## remove test hosts, their images, caches and the virtual environment
	@[ ! -x $(PY) ] || $(PY) -m tests.hosts clean
	rm -rf .cache .hosts dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .ansible results .venv
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
