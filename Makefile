# make setup | demo | test | lint | types | check | format | lock | clean
#
#   TORCH=...    what to install as PyTorch, such as the path of a wheel (default torch==2.13.0)
#   PYTHON=...   the interpreter to build .venv with (default python3.11, else python3)
#   EXTRAS=...   which extras `make setup` installs (default: all that exist for this platform)
#   SLOW=1       `make test` runs the slow tests as well
#   ARGS=...     further arguments for pytest

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0

# Where each runtime's wheels exist; the dev tools exist everywhere.
PLATFORM := $(shell uname -sm)
ifeq ($(PLATFORM),Linux x86_64)
EXTRAS ?= onnxruntime,tflite,coreml,coreai,tensorrt,hf,dev
else ifeq ($(PLATFORM),Darwin arm64)
EXTRAS ?= onnxruntime,tflite,coreml,hf,dev
else
EXTRAS ?= onnxruntime,hf,dev
endif

VENV := .venv
BIN := $(VENV)/bin
# -qq: errors only.
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
READY := $(VENV)/.ready
LIGHT := $(VENV)/.light

.PHONY: setup demo test lint types check format lock clean
.DELETE_ON_ERROR:

setup: $(READY)

$(VENV)/.created:
	@$(if $(PYTHON),,$(error no python3.11 and no python3 on PATH; pass PYTHON=/path/to/python3.11))
	@"$(PYTHON)" -c 'import sys; v = sys.version.split()[0]; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else f"$(PYTHON) is Python {v}; 3.11, 3.12 or 3.13 is needed: pass PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# PyTorch goes first and alone, so that one choice of build (CPU or CUDA) stands for all the rest.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) install --constraint constraints.txt "$(TORCH)" numpy
	@touch $@

$(READY): $(VENV)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@ $(LIGHT)

# The demo needs one runtime only; where everything is installed already this does nothing.
$(LIGHT): $(VENV)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable ".[onnxruntime]"
	@touch $@

demo: $(LIGHT)
	$(BIN)/advisor demo

# Two workers, one thread each: PyTorch's own threads gain nothing on small models. Each begins with
# half of the files, whose fixtures the other then need not make too; who ends first takes over.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(if $(SLOW),,-m "not slow") $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Writes what .venv holds as the new constraints. `list` rather than `freeze`: a wheel installed
# from a path must appear by its version.
lock: $(READY)
	@{ sed '/^[^#]/d' constraints.txt; \
	   $(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip \
	     | sed 's/+.*//' | LC_ALL=C sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
