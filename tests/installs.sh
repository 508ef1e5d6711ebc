#!/usr/bin/env bash
# What an installation is: a wheel from an sdist, without nvcc, and with the toolkit from PyPI.
#
#     make installs        minutes: csrc/ is compiled twice, for one architecture
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DFA_KERNELS_CUDA_ARCHS=80

# Imports where there is no driver, and says what it found, in an environment of its own.
check() {
    local what=$1 wheel=$2 expected=$3
    rm -rf "$work/installed"
    "$work/env/bin/pip" install --quiet --no-deps --target "$work/installed" "$wheel"
    (cd "$work" && PYTHONPATH="$work/installed" "$work/env/bin/python" -m dfa_kernels info) |
        tee "$work/said" | grep '^backend cuda:'
    grep -q "$expected" "$work/said" || { echo "$what: expected: $expected" >&2; exit 1; }
}

"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --constraint constraints.txt build torch
"$work/env/bin/python" -m build --quiet --sdist --outdir "$work/dist" .
sdist=$(echo "$work"/dist/*.tar.gz)

echo "nvcc hidden"
PATH=/usr/bin:/bin CUDA_HOME=/nowhere DFA_KERNELS_CUDA=auto \
    "$work/env/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/plain" "$sdist"
check "without nvcc" "$work"/plain/*-none-any.whl 'its extension is not built: there is no nvcc'

echo "this machine's nvcc"
DFA_KERNELS_CUDA=require "$work/env/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/own" "$sdist"
check "with nvcc" "$work"/own/*-linux_*.whl 'it runs on CUDA devices, not on cpu'

echo "the toolkit from PyPI"
# Together: unpinned, ptxas refuses what another release's front end writes.
"$work/env/bin/pip" install --quiet setuptools pybind11 \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
PATH=/usr/bin:/bin CUDA_HOME=/nowhere DFA_KERNELS_CUDA=require \
    "$work/env/bin/pip" wheel --quiet --no-deps --no-build-isolation \
    --wheel-dir "$work/pypi" "$sdist"
check "with the toolkit from PyPI" "$work"/pypi/*-linux_*.whl 'it runs on CUDA devices, not on cpu'
