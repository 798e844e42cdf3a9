# Two commands do everything on a fresh machine: `make demo` and `make test`.
# What is installed stands in requirements-*.lock, the same versions next year; `make lock` renews them.
SUPPORTED := 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
# python3 if this project runs on it, else the first of the others that is there.
PYTHON ?= $(or $(shell for p in python3 python3.12 python3.11; do \
	$$p -c $(SUPPORTED) 2>/dev/null && echo $$p && break; done),python3)
VENV := .venv
BIN := $(VENV)/bin
UPGRADE ?=
PYTEST_ARGS ?=
# Most tests keep one core busy, so two processes with a thread each are nearly twice as fast; a file's tests stay
# together, and the longest begin first (tests/conftest.py).
WORKERS ?= 2
TWO := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: llama-cpp gpu demo test slow lint types sanitize bench aot docs lock compat clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m fastpower.commands.demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(TWO) $(PYTEST_ARGS)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# Tests that touch other libraries, with the oldest, the locked and the newest releases of them: an hour and 25 GB.
compat: $(VENV)/installed
	$(BIN)/python .ci/compat.py oldest locked newest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inl')

types: $(VENV)/installed
	$(BIN)/mypy

# The whole package built once more with sanitizers, and the tests that need no torch run on that build.
SANITIZED := build/sanitize
sanitize: $(VENV)/installed
	FASTPOWER_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so)" \
	PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	LSAN_OPTIONS=suppressions=tests/native/leaks.supp:print_suppressions=0 \
	$(BIN)/python -m pytest -p no:cacheprovider -o pythonpath="$(SANITIZED)/lib ." tests/native

# On a machine with a GPU, with the torch of PYTHON: builds the CUDA library, runs tests/gpu, of which nothing is skipped in
# silence, and prints what kernels and steps take beside their floors, also as build/device.json.
# `make gpu PYTHON=/path/to/python`
gpu:
	@$(PYTHON) -c 'import torch, sys; sys.exit(None if torch.cuda.is_available() else "make gpu: the torch of PYTHON=$(PYTHON) sees no CUDA device; give a Python whose torch does")'
	FASTPOWER_CUDA=1 $(PYTHON) setup.py -q build_ext --inplace
	FASTPOWER_GPU=1 $(PYTHON) -m pytest tests/gpu -rsf $(PYTEST_ARGS)
	$(PYTHON) -m bench.device_report --device cuda --json build/device.json

# llama.cpp as a decoder: builds llama-cpp-python (ten minutes on two cores, once) and runs its tests.
llama-cpp: $(VENV)/installed
	$(BIN)/python -m pip install -q 'llama-cpp-python>=0.3.36'
	$(BIN)/python -m pytest tests/decoders/test_llama_cpp.py -rs $(PYTEST_ARGS)

bench: $(VENV)/installed
	$(BIN)/python -m pytest bench $(PYTEST_ARGS)

# Registers, spills, shared memory and instructions of every Triton kernel on every target: prints the table and records it
# as what tests hold later kernels to. Only what changed is compiled; all of it takes ten minutes.
aot: $(VENV)/installed
	$(BIN)/python bench/aot_table.py --json tests/triton/aot_baseline.json --known tests/triton/aot_baseline.json

# Warnings are errors: broken links, names that the API reference cannot find, parameters that do not exist.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build site *.egg-info fastpower/_C*.so fastpower/libfastpower_*.so

# All the lock files, from pyproject.toml; UPGRADE=1 takes the newest of everything.
lock:
	@$(CHECK_PYTHON)
	$(PYTHON) .ci/lock.py renew $(if $(UPGRADE),--upgrade)

CHECK_PYTHON = $(PYTHON) -c $(SUPPORTED) 2>/dev/null || { echo "error: fastpower needs Python 3.11 or 3.12, and" \
	"$(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there). Name another:" \
	"make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }

$(VENV)/python:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/dependencies: $(VENV)/python pyproject.toml .ci/lock.py $(wildcard requirements-*.lock)
	$(BIN)/python .ci/lock.py install
	@touch $@

$(VENV)/installed: $(VENV)/dependencies setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')
	$(BIN)/python -m pip install -qq --no-build-isolation --no-deps --editable .
	@touch $@
