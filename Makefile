# What a person types. `make` alone lists it. Needs Python >= 3.10, a C++20 compiler and make.

PYTHON ?= python3
DEMO_SAMPLES ?= 1000
DEMO_OUT ?= demo
EXHAUSTIVE_MAPS ?= 1000000
CUDA_MAPS ?= 300000
FUZZ_SECONDS ?= 120
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Of 18,000 files few are ever imported; Python compiles those.
INSTALL := install --no-compile
CPP := $(wildcard csrc/*.cpp csrc/*.hpp csrc/*.cu csrc/*.cuh)
PY := python kernels benches tests

# What asks transformers for something; the rest cannot break by another version of it.
NEWEST := .venv-newest
ASKING := tests/adapters $(wildcard tests/test_capture*.py) $(addprefix tests/test_, \
  bad_input.py causal.py geometry.py grounder.py hub.py hybrids.py images.py layouts.py \
  models.py packing.py segmentation.py)

.PHONY: help demo test test-newest test-cuda test-kernels rehearse-gpu-check test-exhaustive \
  sanitize fuzz lint format bench gpu-check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       find the tiny model's heads, evaluate them, write $(DEMO_OUT)/index.html"
	@echo "                (DEMO_SAMPLES=$(DEMO_SAMPLES), DEMO_OUT=$(DEMO_OUT))"
	@echo "make test       run the tests"
	@echo "make test-newest  those that touch transformers, with its newest release"
	@echo "make test-cuda  compare the CUDA kernels, run on the CPU, with the native core on"
	@echo "                $(CUDA_MAPS) maps"
	@echo "make test-kernels  those of the kernels for a GPU, rehearse-gpu-check too; part of make test"
	@echo "make rehearse-gpu-check  all of gpu-check's steps on a stand-in of a GPU; part of make test"
	@echo "make test-exhaustive  that, and the native core with SciPy on $(EXHAUSTIVE_MAPS) maps"
	@echo "make sanitize   run its tests under the address and undefined-behaviour sanitizers"
	@echo "make fuzz       call it at random under the same for $(FUZZ_SECONDS) seconds"
	@echo "make lint       check format, style and types;   make format: mend what can be mended"
	@echo "make bench      run the benchmarks, write benches/results/"
	@echo "make gpu-check  on a machine with an NVIDIA GPU: tests, memory check, benchmarks"
	@echo "make clean      remove what was built; the virtual environment .venv stays"

demo: .venv/ready
	$(BIN)/fastground demo --out $(DEMO_OUT) --num-samples $(DEMO_SAMPLES)

# Plain pytest: `python -m pytest` would put the root first, where kernels/ hides a package.
test: .venv/ready
	$(BIN)/pytest

test-newest: $(NEWEST)/ready
	$(NEWEST)/bin/python $(BIN)/pytest $(ASKING)

test-cuda: .venv/ready
	$(BIN)/python tests/cuda/prove_cuda.py --maps $(CUDA_MAPS)

test-kernels: .venv/ready
	$(BIN)/pytest tests/cuda

rehearse-gpu-check: .venv/ready
	$(BIN)/pytest tests/cuda/test_rehearsal.py

test-exhaustive: .venv/ready test-cuda
	$(BIN)/python tests/exhaustive/prove.py --maps $(EXHAUSTIVE_MAPS)

sanitize: .venv/ready
	.ci/sanitize $(BIN)/python

fuzz: .venv/ready
	FUZZ_SECONDS=$(FUZZ_SECONDS) .ci/fuzz $(BIN)/python

lint: .venv/ready
	$(BIN)/ruff format --check $(PY)
	$(BIN)/ruff check $(PY)
	$(BIN)/mypy python/fastground
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: .venv/ready
	$(BIN)/ruff format $(PY)
	$(BIN)/ruff check --fix $(PY)
	$(BIN)/clang-format -i $(CPP)

bench: .venv/bench
	.ci/bench $(BIN)/python
	$(BIN)/pytest benches

gpu-check:
	.ci/gpu-check $(PYTHON)

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find $(PY) -name __pycache__ -prune -exec rm -rf {} +

# The set-up, in two steps that are done again only when what they read has changed: the tools that
# build, then the package itself. It is installed editable, so that Python edits need no step at all.
.venv/tools: constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "fastground needs Python 3.10 or newer, but there\
	 is no $(PYTHON); install it, or name yours: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("fastground needs Python\
	 3.10 or newer, but $(PYTHON) is %d.%d; name a newer one: make PYTHON=/path/to/python3.12"\
	 % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "fastground needs Python'\''s venv,\
	 but $(PYTHON) has none; Debian, Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig;\
	 pathlib.Path(sysconfig.get_path("include"), "Python.h").exists() or sys.exit("fastground needs\
	 the headers of Python, but $(PYTHON) has none; Debian, Ubuntu: apt install python3-dev")'
	@echo "setting up .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PIP) $(INSTALL) -c constraints.txt "scikit-build-core>=0.11,<2" "pybind11>=3,<4" cmake ninja
	@touch $@

.venv/ready: .venv/tools pyproject.toml CMakeLists.txt $(CPP)
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null\
	 || { echo "fastground needs a C++20 compiler, but there is no $${CXX:-c++}; Debian, Ubuntu:\
	 apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install" >&2; exit 1; }
	$(PIP) $(INSTALL) -c constraints.txt --no-build-isolation --editable ".[test,lint]"
	@touch $@

# Its own transformers, and what that needs, found before all that .venv has: nothing built twice.
$(NEWEST)/ready: .venv/ready
	$(BIN)/python -m venv --clear $(NEWEST)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" %\
	 sysconfig.get_path("purelib"))' >$(NEWEST)/venv.pth
	mv $(NEWEST)/venv.pth $(NEWEST)/lib/python3*/site-packages
	$(NEWEST)/bin/python -m pip --disable-pip-version-check --quiet $(INSTALL) -U "transformers>=5,<6"
	@touch $@

.venv/bench: .venv/ready
	$(PIP) $(INSTALL) -c constraints.txt --no-build-isolation --editable ".[bench]"
	@touch $@
