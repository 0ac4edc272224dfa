# make demo, make test: everything from a bare checkout. VENV=/path/to/env uses that environment and keeps its torch.
VENV ?= .venv
PYTHON ?= python3
ACE_FAST_REQUIRE ?= reference,cpu,triton
WORKERS ?= auto
PY := $(VENV)/bin/python
BIN := $(abspath $(VENV))/bin
DEPENDENCIES := $(VENV)/.ace_fast-dependencies
PACKAGE := $(VENV)/.ace_fast-package
NATIVE_SOURCES := CMakeLists.txt $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --no-compile
TORCH := $(shell sed -n 's/^torch==/&/p' constraints.txt)
TRITON := $(shell sed -n 's/^triton==/&/p' constraints.txt)

.PHONY: help setup demo emulated ahead test stress bench wheel lint clean

help:
	@echo "make setup   environment in $(VENV), dependencies, native library"
	@echo "make demo    N-body data, training, evaluation, comparison, report in runs/demo"
	@echo "make test    the whole test suite"
	@echo "make ahead   its part that compiles for GPUs and other processors"
	@echo "make stress  training runs killed at random moments, twenty times; a compiled run; ten million graphs from shards"
	@echo "make emulated   the CUDA kernels compiled for the host, which the tests run"
	@echo "make bench   operators, workloads and protocols; BENCH=--quick for a look, BENCH=--help for more"
	@echo "make wheel   dist/*.whl"
	@echo "make lint    ruff"
	@echo "make clean   removes what was built, not $(VENV) and not runs/"
	@echo "VENV=DIR uses another environment; a torch >= 2.10 in it stays as it is"

setup: $(PACKAGE)

$(PY):
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'make: $(PYTHON) must be Python >= 3.11, got ' + sys.version.split()[0] + '; pass PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

# pip alone would compile ten thousand files of Python on one core: compileall does it on all.
# A torch that is there already, and a triton that came with it, are pinned to what they are.
$(DEPENDENCIES): pyproject.toml constraints.txt | $(PY)
	@$(PY) -c "import torch, sys; sys.exit(tuple(map(int, torch.__version__.split('.')[:2])) < (2, 10))" 2>/dev/null \
		|| (echo "installing $(TORCH)"; $(INSTALL) "$(TORCH)")
	@$(PY) -c "import triton" 2>/dev/null \
		|| (echo "installing $(TRITON)"; $(INSTALL) "$(TRITON)") \
		|| echo "triton cannot be installed here: its backend will be missing"
	@grep -vE '^(torch|triton)==' constraints.txt > $(VENV)/.ace_fast-constraints
	@$(PY) -c "from importlib.metadata import version as v; print('torch==' + v('torch'))" >> $(VENV)/.ace_fast-constraints
	$(INSTALL) -c $(VENV)/.ace_fast-constraints setuptools wheel cmake ninja
	$(PY) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + p['optional-dependencies']['test']))" > $(VENV)/.ace_fast-requirements
	$(INSTALL) -c $(VENV)/.ace_fast-constraints -r $(VENV)/.ace_fast-requirements
	@$(PY) -W ignore -m compileall -qq -j 0 "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
	@touch $@

$(PACKAGE): $(DEPENDENCIES) setup.py $(NATIVE_SOURCES)
	PATH="$(BIN):$$PATH" $(PIP) install -q --no-build-isolation --no-deps -e .
	@$(PY) -c "from ace_fast import native; print(native.load() or 'native library: built')"
	@touch $@

demo: setup
	$(BIN)/ace-fast demo

# Not part of an installation: in ace_fast/lib of the checkout alone.
emulated: setup
	@PATH="$(BIN):$$PATH" cmake -S . -B build/native -DACE_FAST_OUTPUT="$(CURDIR)/ace_fast/lib" >/dev/null && \
		PATH="$(BIN):$$PATH" cmake --build build/native --target ace_fast_emulated --parallel \
		|| (rm -f ace_fast/lib/libace_fast_emulated.so; echo "the emulated CUDA library cannot be built here")

# What is compiled is compiled side by side, so that no core waits; then everything that can run here runs.
test: setup
	$(MAKE) --no-print-directory -j2 emulated ahead
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 ACE_FAST_EMULATE=1 ACE_FAST_REQUIRE=$(ACE_FAST_REQUIRE) $(PY) -m pytest -q -n $(WORKERS) --dist worksteal

# The kernels of GPUs, and of other processors, compiled and not run.
ahead: setup
	TRITON_INTERPRET=0 ACE_FAST_EMULATE=0 ACE_FAST_REQUIRE=$(ACE_FAST_REQUIRE) $(PY) -m pytest -q -n $(WORKERS) --dist worksteal tests/aot

stress: setup
	OMP_NUM_THREADS=1 ACE_FAST_STRESS_GRAPHS=10000000 $(PY) -m pytest -q tests/test_shards.py -k memory
	@place=$$(mktemp -d) && OMP_NUM_THREADS=1 $(PY) tests/training_processes.py $$place together refused interrupted lost killed=20 compiled; \
		status=$$?; rm -rf $$place; exit $$status

bench: setup
	$(BIN)/ace-fast bench $(BENCH)

wheel: $(DEPENDENCIES)
	rm -rf build/lib* build/bdist* dist
	PATH="$(BIN):$$PATH" $(PIP) wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl
	@$(PY) -m zipfile -l dist/*.whl | grep -q libace_fast_ || echo "without the native library: no C++ compiler was found"

lint: $(DEPENDENCIES)
	$(PY) -m ruff check

clean:
	rm -rf build dist *.egg-info ace_fast/lib $(PACKAGE) .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +
