# One command for each chore; `make` lists them. All that is built or installed lands in .venv and target/, in this checkout.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.extras-installed
EXTRAS := test,test-postgres,bench,cli

# The newest Python that can make a virtual environment and that CrewAI supports; failing that, any from 3.10 on.
# Each is run, not only looked for: a version manager's shim may stand for a Python that is not there.
MAKES_VENV  := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
FIND_PYTHON  = for p in python3.13 python3.12 python3.11 python3.10 python3 python; do \
               $$p -c '$(MAKES_VENV)' >/dev/null 2>&1 && { echo $$p; break; }; done
PYTHON      ?= $(shell $(FIND_PYTHON))

MATURIN    := $(shell sed -n 's/^requires = \["\(maturin.*\)"\]/\1/p' pyproject.toml)
CARGO_MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
CARGO      := cargo
PROCESSES  ?= 2
ifdef CI
LOCKED := --locked
# What is built once needs no notes for the next time.
export CARGO_INCREMENTAL := 0
endif

export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Byte code is made for what is imported, not for all that is installed: a third off the time to install crewai.
export PIP_NO_COMPILE := 1
export CARGO_TERM_QUIET ?= true
# Cargo starts as many compilers as there are cores, however many commands run beside it.
export CARGO_MAKEFLAGS :=
# maturin refuses two environments at once.
unexport CONDA_PREFIX
unexport PYTHONHOME

# $(call quietly,COMMAND): what COMMAND printed is shown only if it failed.
quietly = $(1) >$(VENV)/$(@F).log 2>&1 || { cat $(VENV)/$(@F).log >&2; exit 1; }
say     = @printf '\n\033[1m== %s\033[0m\n' "$(1)"
# Two chains at once, each command's output in one piece when it is done; the make of macOS knows only the first.
AT_ONCE := --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help demo test develop built lint lint-rust lint-python test-rust test-python torture fuzz bench bench-smallest \
        checked clean tools

help: ## list these commands
	@echo "walpool: make COMMAND"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: develop ## CrewAI in sixteen workers, on its defaults and on walpool (under two minutes)
	@$(BIN)/python -c 'import crewai' 2>/dev/null || \
	  { echo "make demo: crewai does not run on $$($(BIN)/python --version); give PYTHON=python3.13 after make clean" >&2; exit 1; }
	$(call say,demo)
	@$(BIN)/python examples/demo.py

# pip waits for the network and for the disk, and compilers for neither: both go on at once, then pytest has all cores.
test: ## everything that CI runs
	@$(MAKE) $(AT_ONCE) lint-python checked
	@$(MAKE) --no-print-directory test-python

checked: built
	@$(MAKE) --no-print-directory lint-rust
	@$(MAKE) --no-print-directory test-rust

develop: built $(STAMP) ## build walpool into .venv
	@$(call quietly,$(BIN)/maturin develop --release $(LOCKED))

built: | tools $(BIN)/maturin
	$(call say,building walpool)
	@$(call quietly,$(BIN)/maturin develop --release $(LOCKED) --skip-install)

lint: lint-rust lint-python ## format, lints and types

lint-rust: | tools $(BIN)/python
	$(call say,cargo fmt)
	@$(CARGO) fmt --check
	$(call say,cargo clippy: the engine alone)
	@$(CARGO) clippy $(LOCKED) --all-targets -- -D warnings
	$(call say,cargo clippy: with Python)
	@$(CARGO) clippy $(LOCKED) --lib --features python -- -D warnings

lint-python: develop
	$(call say,ruff)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	$(call say,mypy --strict)
	@$(BIN)/mypy --strict
	$(call say,stubtest)
	@$(BIN)/python -m mypy.stubtest walpool._core

test-rust: tools ## the engine with no Python, each criterion benchmark once
	$(call say,cargo test: no Python)
	@$(CARGO) test $(LOCKED) --lib --tests --benches
	@$(CARGO) test $(LOCKED) --doc

test-python: develop ## pytest, each benchmark at its smallest size
	$(call say,pytest)
	@$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder --benchmark-disable tests benches

torture: develop ## what could lose data, tried at full length: kills, power cuts, disks, forks (an hour)
	$(call say,torture)
	@$(BIN)/pytest --torture --timeout 7200 -m torture tests

fuzz: tools ## the engine's fuzzers, a minute each
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	$(call say,fuzz)
	@for target in values jobs; do RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target -- \
	  -max_total_time=60 -max_len=512 -len_control=0 || exit 1; done

bench: develop ## all benchmarks on this machine, which should be idle: tables, and plots in results/
	$(call say,single calls)
	@$(BIN)/pytest --benchmark-only --quiet benches
	$(call say,the engine alone)
	@$(CARGO) bench $(LOCKED)
	$(call say,workloads)
	@$(BIN)/python -m benches.run

bench-smallest: develop ## each benchmark at its smallest size
	$(call say,single calls)
	@$(BIN)/pytest --benchmark-disable --quiet benches
	$(call say,the engine alone)
	@$(CARGO) test $(LOCKED) --benches
	$(call say,workloads)
	@$(BIN)/python -m benches.run --smallest --no-plots

clean: ## remove what these commands made
	rm -rf $(VENV) target dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find python tests benches examples -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/walpool/_core.*.so python/walpool/_core.*.pyd python/walpool/_core.*.dylib

# Says what is missing and how to get it, before anything is made.
tools:
	@command -v $(CARGO) >/dev/null || \
	  { echo "cargo is missing: install Rust $(CARGO_MSRV) or newer, https://rustup.rs" >&2; exit 1; }
	@$(CARGO) --version | awk -v need=$(CARGO_MSRV) '{ split($$2, have, "."); split(need, want, "."); \
	  exit !(have[1] > want[1] || have[1] == want[1] && have[2] >= want[2]) }' || \
	  { echo "$$($(CARGO) --version) is too old: walpool needs Rust $(CARGO_MSRV) or newer, https://rustup.rs" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || \
	  { echo "a C compiler is missing (SQLite is built from source): apt install build-essential, or xcode-select --install" >&2; exit 1; }

$(BIN)/python: | tools
	@test -n "$(PYTHON)" || \
	  { echo "no Python 3.10 or newer with venv and ensurepip found: install one (apt install python3 python3-venv, or" \
	         "https://www.python.org/downloads/), or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c '$(MAKES_VENV)' || { echo "$(PYTHON) is no Python 3.10 or newer with venv and ensurepip" >&2; exit 1; }
	$(call say,virtual environment: $$($(PYTHON) --version))
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(BIN)/maturin: | $(BIN)/python
	@$(BIN)/python -m pip install --quiet '$(MATURIN)'

# The packages, not walpool itself, so that it is built meanwhile. pip has a reader of TOML for the Pythons that lack one.
WANTED := import importlib, sys; \
  toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"); \
  extras = toml.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
  named = sys.argv[1].split(",") + ["crewai"] * (sys.version_info < (3, 14)); \
  print("\n".join(need for extra in named for need in extras[extra]))

$(STAMP): pyproject.toml | tools $(BIN)/maturin
	$(call say,installing what tests and benchmarks need: crewai is most of it)
	@$(BIN)/python -c '$(WANTED)' $(EXTRAS) >$(VENV)/wanted.txt
	@$(call quietly,$(BIN)/python -m pip install --requirement $(VENV)/wanted.txt)
	@touch $@
