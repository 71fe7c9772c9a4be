# The companion's commands; `make help` lists them.
#   make reproduce CHAPTERS="03 06"      some chapters only
#   make setup PYTHON=python3.12         another Python for .venv
#   make test JOBS=8                     unit tests in as many processes

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SCRATCH := $(CURDIR)/build/test
CHAPTERS ?=
JOBS ?= 2

# The engines start one process per core, and a second level of threads below them only costs time.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup reproduce site test lint figures clean
.DEFAULT_GOAL := help

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(READY)  ## make .venv with everything in it (once)

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) was not found; on Debian: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old, 3.11 is needed; install one and say make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments; on Debian: apt install python3-venv"; exit 1; }
	@echo "setting up $(VENV), once; PyTorch is a download of a few hundred MB to a few GB"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

reproduce: setup  ## run the chapters on this computer and make build/quick/index.html
	@$(BIN)/synflow reproduce $(if $(CHAPTERS),--only $(CHAPTERS))

site: reproduce  ## the same: the chapters as pages

# All parts run, and the exit status is that of the last that failed. Unit tests share JOBS processes; after them the
# slow ones, which start a cluster or a kernel, a file each; then the chapters. These find no record of earlier runs
# and draw elsewhere, so a cached result hides nothing and the committed figures stay as they are. What the plugin or
# the kernels warn about is not ours, so warnings are errors in the unit tests alone.
test: setup  ## unit tests, then every chapter under nbval
	@rm -rf "$(SCRATCH)"
	@status=0; \
	$(BIN)/python -m pytest --quiet -n $(JOBS) --dist loadscope -m "not slow" tests || status=$$?; \
	$(BIN)/python -m pytest --quiet -n $(JOBS) --dist loadfile -m slow tests || status=$$?; \
	SYNFLOW_FIGURES="$(SCRATCH)/figures" SYNFLOW_RECORDS="$(SCRATCH)/records" JUPYTER_PREFER_ENV_PATH=1 \
	$(BIN)/python -m pytest --quiet -n $(JOBS) --dist loadfile -W default -p no:cacheprovider \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks || status=$$?; \
	exit $$status

lint: setup  ## check style and form of library, tests and notebooks
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --check .

figures: setup  ## run the committed chapters again and renew their outputs and figures in place
	@$(BIN)/python -c 'import sys; from synflow_lib.reproduce import refresh; sys.exit(refresh(sys.argv[1:]))' $(CHAPTERS)

clean:  ## remove what was built; .venv, data and records stay
	@rm -rf build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
