"""Tests that need a GPU: collected everywhere, skipped where there is none."""

from pathlib import Path

import pytest
from gpu_cases import ON_GPU, label

HERE = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA or ROCm device")


def pytest_generate_tests(metafunc):
    if hasattr(metafunc.function, "cases"):
        metafunc.parametrize("case", metafunc.function.cases, ids=label)


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not ON_GPU:
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))
