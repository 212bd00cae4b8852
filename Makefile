# Two commands: `make demo` runs the recipe on the embedded model, `make test` runs the tests.
# They ask for `make` and a Python of 3.11 to 3.13 and put everything else into $(VENV), once.
# Another interpreter: `make PYTHON=python3.12 test` (an environment of another version is made anew).

VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
EMBEDDED_CONFIG := configs/pico.yaml
SMALL_CONFIG := configs/smollm2-135m.yaml
LARGE_CONFIG := configs/smollm2-135m-large.yaml

# Without a PYTHON named: that of the environment that is there, else the first on the PATH that fits.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
fitting = $(shell $1 -c '$(FITS)' 2>/dev/null && echo $1)
ifeq ($(origin PYTHON),undefined)
THERE := $(if $(wildcard $(VENV)/.made-*),$(BIN)/python)
PYTHON := $(or $(and $(THERE),$(call fitting,$(THERE))),$(call fitting,python3),\
    $(call fitting,python3.13),$(call fitting,python3.12),$(call fitting,python3.11),python3)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# Stamps inside the environment say what is done, so a second call installs nothing.
MADE := $(VENV)/.made-$(VERSION)
INSTALLED := $(VENV)/.installed-$(VERSION)
INSTALLED_DEV := $(VENV)/.installed-dev-$(VERSION)
SHELLCHECK := $(BIN)/shellcheck .ci/run tpu_scripts/*.sh tpu_scripts/remote/*.sh
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo demo-smollm2 smollm2-large test test-slow lint types format clean help

help:
	@echo 'make demo           run the recipe on pico, the embedded model: minutes, tables, a report'
	@echo 'make demo-smollm2   run it on SmolLM2-135M, small: two iterations, twenty minutes'
	@echo 'make test           run the tests          make test-slow   those that take minutes each'
	@echo 'make lint           ruff, shellcheck       make types       mypy --strict'
	@echo 'make format         let ruff lay out the code'
	@echo 'make smollm2-large  SmolLM2-135M, larger: an hour or two'
	@echo 'make clean          remove $(VENV), caches and build/; runs/ stays'

# As two devices, two cores decode and train at once.
demo: $(INSTALLED)
	JAX_NUM_CPU_DEVICES=2 $(BIN)/ste run $(EMBEDDED_CONFIG)

demo-smollm2: $(INSTALLED)
	$(BIN)/ste run $(SMALL_CONFIG)

smollm2-large: $(INSTALLED)
	$(BIN)/ste run $(LARGE_CONFIG)

# A process compiles on one core: two at once take little more than half of the time.
test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# With programs as users have them: what takes minutes is not their compilation.
test-slow: $(INSTALLED_DEV)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m slow

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@if [ -x $(BIN)/shellcheck ]; then echo $(SHELLCHECK) && $(SHELLCHECK); \
	else echo 'shellcheck has no wheel for this machine: shell scripts not checked'; fi

types: $(INSTALLED_DEV)
	$(BIN)/mypy

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(MADE):
	@$(PYTHON) -c '$(FITS)' 2>/dev/null || { echo '$(PYTHON) is not a Python of 3.11 to 3.13;' \
	    'name one that is, as in: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) cannot make a virtual' \
	    'environment: its venv or ensurepip is missing (Debian, Ubuntu: apt install python3-venv)'; \
	    exit 1; }
	@echo 'Making $(VENV) with Python $(VERSION) ...'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(INSTALLED): $(MADE) pyproject.toml
	@echo 'Installing ste_jax and what it needs into $(VENV): some minutes, the first time ...'
	@$(PIP_INSTALL) --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo 'Installing what the tests need into $(VENV) ...'
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
