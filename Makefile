# make train: a virtual environment and the main job.  make test: the same, and the tests.
# make interpreted: the Triton kernels in Triton's interpreter, where there is no GPU; part of `test`.
# make machine-code: their machine code for sm_90 and sm_120, by the gate; part of `test`. The whole
# gate: python -m bench.machine_code.
# make emulated: the CUDA kernels on the CPU, by g++; part of `test`.
# make asan: Triton's again under AddressSanitizer, which sees what a missing mask reads or writes.
# make installs: wheels and what they say: from an sdist, without nvcc, with the toolkit from PyPI.
# make instructions: a step's machine instructions by callgrind, beside those recorded; a minute.
# make bench: a training step here, beside its rivals: tables, curves and a page in runs/bench.
# make gpu: tests and figures on a GPU, from the checkout, by a Python that has torch and Triton.
# make gpu-rehearsal: the same on the CPU, tiny, so that a GPU's time is not spent on a typing error;
# again under Python 3.12 with the torch and the Triton that such machines have, where there is one.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Triton's oldest supported version, beside the one that constraints.txt names.
OLDEST := $(VENV)/triton-3.6

# A Python 3.12 that runs, and the environment of its rehearsal.
PYTHON312 ?= $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12.*/bin/python3.12; do \
	"$$p" -c "" 2>/dev/null && echo "$$p" && break; done)
REHEARSAL := $(VENV)/python3.12

# Where there is an nvcc, csrc/ is compiled for one architecture: the PTX of it runs on later GPUs.
export DFA_KERNELS_CUDA_ARCHS ?= 80
# A kernel that spills registers is an error here, and a warning to whoever has another nvcc.
export NVCC_APPEND_FLAGS ?= -Xptxas -Werror

INTERPRETED := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/interpreted -n 2

.PHONY: train test suite interpreted emulated machine-code asan installs gpu gpu-rehearsal lint
.PHONY: types bench instructions clean

train: $(READY)
	$(BIN)/dfa-kernels train --overwrite $(ARGS)

test: suite interpreted emulated machine-code gpu-rehearsal

suite: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

# There are Triton wheels for Linux alone.
ifeq ($(shell uname -s),Linux)
interpreted: $(OLDEST)
	$(INTERPRETED)
	PYTHONPATH=$(OLDEST) $(INTERPRETED) --deselect tests/interpreted/test_conformance.py

gpu-rehearsal: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.gpu --dry-run
ifneq ($(PYTHON312),)
	@if $(MAKE) $(REHEARSAL)/.ready; then \
		OMP_NUM_THREADS=1 $(REHEARSAL)/bin/python -m bench.gpu --dry-run; \
	else \
		echo "torch 2.11 could not be installed: its rehearsal is left out"; \
	fi
else
	@echo "no Python 3.12 here: the rehearsal with torch 2.11 and Triton 3.6 is left out"
endif

machine-code: $(READY)
	$(BIN)/python -m bench.machine_code --usual --arch 90 120
else
interpreted machine-code gpu-rehearsal:
	@echo "no Triton for this system: its kernels are not tested"
endif

gpu:
	$(PYTHON) -m bench.gpu $(ARGS)

emulated: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tests import emulator; emulator.core()"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/emulated -n 2 $(ARGS)

asan: $(READY)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 $(INTERPRETED) --deselect tests/interpreted/test_conformance.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/dfa-kernels bench --scaling --processes 2 --overwrite $(ARGS)
	$(BIN)/dfa-kernels report runs/bench/throughput.json --out runs/bench/report.html

instructions: $(READY)
	$(BIN)/python -m bench.instructions $(ARGS)

installs:
	PYTHON=$(PYTHON) tests/installs.sh

$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(OLDEST): $(READY) constraints-triton-3.6.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --no-deps --target $@ --requirement constraints-triton-3.6.txt
	touch $@

$(REHEARSAL)/.ready: constraints-rehearsal.txt
	$(PYTHON312) -m venv --clear $(REHEARSAL)
	$(REHEARSAL)/bin/python -m pip install --quiet --requirement constraints-rehearsal.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info dfa_kernels/backends/cuda/_core.* dfa_kernels/backends/cuda/_build.json
