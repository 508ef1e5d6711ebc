# make train: a virtual environment and the main job.  make test: the same, and the tests.
# make interpreted: the Triton kernels in Triton's interpreter, where there is no GPU; part of `test`.
# make machine-code: their machine code for sm_90 and sm_80, by the gate; part of `test`. The whole
# gate: python -m bench.machine_code.
# make asan: the same under AddressSanitizer, which sees what a missing mask reads or writes.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Triton's oldest supported version, beside the one that constraints.txt names.
OLDEST := $(VENV)/triton-3.6

INTERPRETED := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/interpreted -n 2

.PHONY: train test suite interpreted machine-code asan lint types bench clean

train: $(READY)
	$(BIN)/dfa-kernels train --overwrite $(ARGS)

test: suite interpreted machine-code

suite: $(READY)
	$(BIN)/python -m pytest $(ARGS)

# There are Triton wheels for Linux alone.
ifeq ($(shell uname -s),Linux)
interpreted: $(OLDEST)
	$(INTERPRETED)
	PYTHONPATH=$(OLDEST) $(INTERPRETED) --deselect tests/interpreted/test_conformance.py

machine-code: $(READY)
	$(BIN)/python -m bench.machine_code --usual --arch 90 80
else
interpreted machine-code:
	@echo "no Triton for this system: its kernels are not tested"
endif

asan: $(READY)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 $(INTERPRETED) --deselect tests/interpreted/test_conformance.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench.step $(ARGS)

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(OLDEST): $(READY) constraints-triton-3.6.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --no-deps --target $@ --requirement constraints-triton-3.6.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
