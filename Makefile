# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each sets up what it needs in .venv, once, and again only where the sources of the build changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
CPP := $(wildcard csrc/*.[ch]pp csrc/*.cu csrc/*/*.[ch]pp)
SOURCES := pyproject.toml setup.py $(CPP)

# Idle OpenMP threads that spin slow every other process on a small machine
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test slow lint format bench docs wheel cuda clean

demo: $(VENV)/.installed
	$(BIN)/poisonkit demo

test: $(VENV)/.extras
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

slow: $(VENV)/.extras
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=15

lint: $(VENV)/.extras
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(wildcard tests/csrc/*.[ch]pp)

format: $(VENV)/.extras
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(wildcard tests/csrc/*.[ch]pp)

bench: $(VENV)/.extras
	$(BIN)/python -m bench

# The site, into build/site; a warning is an error
docs: $(VENV)/.extras
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env docs build/site

# Source distribution, and from it the wheel of this Python, into dist
wheel: $(VENV)/.extras
	$(BIN)/python -m build --no-isolation --outdir dist

# Every .cu for every architecture, without a GPU
cuda:
	@if ! command -v nvcc >/dev/null; then echo "make cuda: skipped, nvcc is not installed"; exit 0; fi; \
	for file in csrc/*.cu; do for arch in 80 90 100 120; do \
	  echo "nvcc $$file sm_$$arch"; \
	  nvcc -std=c++17 -O3 -fmad=false -Icsrc -gencode arch=compute_$$arch,code=sm_$$arch -Xcompiler -fPIC -c $$file -o /dev/null \
	    || exit 1; \
	done; done

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.extras: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[data,triton,lightning,transformers,bench,test,docs,dev]"
	touch $@

clean:
	rm -rf build dist docs/api *.egg-info poisonkit/*.so $(VENV)/.installed $(VENV)/.extras
