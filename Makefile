# The index of everything one can do with this checkout; `make` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
CODE := blyan_proto blyan_tile blyand blyanctl tests
ROUNDS ?= 10
# beside a second process of tests, a second thread of BLAS only gets in the way
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
HIVEMIND := acb8f0cf2cdb085259feb1c0a092c530f1953287cbfa4a1ab5e14e8c65359a2c

.PHONY: help setup demo seed check fmt layers unit sim test functional bench fuzz docs soak foreign clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready ## everything the project needs, in .venv; again only when it changed

demo: setup ## a network of daemons here: train on from the seed, watch, infer (KEEP=1 SCRATCH=1 CORPUS=dir)
	@$(PY) -m blyanctl doctor
	$(PY) -m blyanctl demo $(if $(KEEP),--keep) $(if $(SCRATCH),--scratch) $(if $(CORPUS),--corpus "$(CORPUS)")

seed: setup ## train the model that the demo begins with, prove and pack it; goes on where it was stopped
	$(PY) -m blyanctl seed $(if $(KEEP),--keep) $(if $(CHECK),--check "$(CHECK)")

check: setup ## format, lint, types, layers, unit, sim: run it before every commit
	@$(PY) -m black --check --quiet $(CODE) || { echo "run: make fmt"; exit 1; }
	$(PY) -m isort --check --quiet $(CODE) || { echo "run: make fmt"; exit 1; }
	$(PY) -m flake8 $(CODE)
	$(PY) -m mypy blyan_proto blyan_tile blyand blyanctl
	$(PY) -m pytest -n 2 tests/test_layers.py tests/unit tests/sim

fmt: setup ## format the code
	@$(PY) -m isort --quiet $(CODE)
	$(PY) -m black --quiet $(CODE)

layers: setup ## who may import whom, and the other rules of the house
	@$(PY) -m pytest tests/test_layers.py

unit: setup ## one test file per module
	@$(ONE_THREAD) $(PY) -m pytest -n 2 tests/unit

sim: setup ## many nodes in one process, with faults
	@$(PY) -m pytest tests/sim

test: setup ## every test, the functional ones included
	@failed=0
	$(ONE_THREAD) $(PY) -m pytest -n 2 tests --ignore=tests/bench --ignore=tests/functional || failed=1
	$(PY) -m pytest -n 2 --no-loadscope-reorder tests/functional || failed=1
	exit $$failed

functional: setup ## real daemons on loopback
	@$(PY) -m pytest -n 2 --no-loadscope-reorder tests/functional

bench: setup ## measurements against the published budgets, as tables
	@for bench in $(basename $(notdir $(wildcard tests/bench/bench_*.py))); do
		echo "== $$bench"
		$(PY) -m "tests.bench.$$bench"
	done

fuzz: setup ## every decoder against bytes that nobody meant
	@$(PY) -m pytest tests/fuzz

soak: setup ## the functional and the long tests ROUNDS times over (default 10)
	@for ((i = 1; i <= $(ROUNDS); i++)); do
		echo "soak: $$i of $(ROUNDS)"
		BLYAN_LONG=1 $(PY) -m pytest -x tests/functional tests/sim
	done

foreign: setup ## fetch the Go libp2p of hivemind's wheel, 9 MB, to test against (Linux, x86-64)
	@mkdir -p build/foreign
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--dest build/foreign -r <(echo "hivemind==1.1.12 --hash=sha256:$(HIVEMIND)")
	$(PY) -m zipfile -e build/foreign/hivemind-1.1.12-*.whl build/foreign/wheel
	install -m 755 build/foreign/wheel/hivemind/hivemind_cli/p2pd build/foreign/p2pd
	rm -r build/foreign/wheel build/foreign/*.whl

docs: setup ## write the generated pages afresh
	@$(PY) -c 'from blyand.config import reference; print(reference(), end="")' > docs/.config
	$(PY) -m blyan_proto.rpc.schema --markdown > docs/.rpc
	$(PY) -m blyan_proto.rpc.stubs > blyanctl/.nouns.pyi
	$(PY) -m black -q blyanctl/.nouns.pyi
	mv docs/.config docs/config.md
	mv docs/.rpc docs/rpc.md
	mv blyanctl/.nouns.pyi blyanctl/nouns.pyi

clean: ## remove everything that setup and the tools made
	@rm -rf .venv .demo .seed build *.egg-info .mypy_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# A compiler with gmp is for fastecdsa, which comes as source.
.venv/.ready: setup.cfg pyproject.toml constraints.txt
	@usable='import sys, sysconfig, venv, ensurepip
	from pathlib import Path
	headers = Path(sysconfig.get_path("include"), "Python.h")
	sys.exit(sys.version_info < (3, 11) or not headers.exists())'
	find_python() {
		for name in $(PYTHON) python3.11 python3.12 python3.13 python3; do
			if "$$name" -c "$$usable" 2>/dev/null; then echo "$$name"; return; fi
		done
	}
	compiles() {
		printf '#include <stdio.h>\n#include <gmp.h>\n' | cc -E - >/dev/null 2>&1
	}
	missing=""
	compiles || missing="gcc libc6-dev libgmp-dev"
	[ -n "$$(find_python)" ] || missing="$$missing python3 python3-dev python3-venv"
	if [ -n "$$missing" ]; then
		install="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing"
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
			echo "setup: $$install"
			(eval "$$install") >/dev/null
		else
			echo "setup: something is missing; run this, then make again:"
			echo "  sudo sh -c '$$install'"
			exit 1
		fi
	fi
	python="$$(find_python)"
	if [ -z "$$python" ]; then
		echo "setup: no Python of at least 3.11 with venv and headers; name one: make setup PYTHON=..."
		exit 1
	fi
	if ! $(PY) -c "$$usable" 2>/dev/null; then
		echo "setup: .venv from $$python"
		"$$python" -m venv --clear .venv
	fi
	echo "setup: installing (some minutes the first time)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
