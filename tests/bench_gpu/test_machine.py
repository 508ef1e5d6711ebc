"""What is said of a GPU, to a stand-in for one."""

from unittest import mock

import torch

from bench.gpu import machine
from bench.gpu.context import Context


def test_the_machine_on_cuda(monkeypatch):
    cuda = mock.MagicMock(spec=torch.cuda)
    cuda.get_device_properties.return_value = mock.Mock(
        major=9, minor=0, multi_processor_count=132, total_memory=150e9, L2_cache_size=60e6
    )
    cuda.get_device_properties.return_value.name = "NVIDIA H200"
    monkeypatch.setattr(torch, "cuda", cuda)
    smi = "580.1, 1980 MHz, 1980 MHz, 3201 MHz\n"
    monkeypatch.setattr(machine.environment, "said", lambda _: smi)
    rows = []
    machine.describe(Context(torch.device("cuda"), False, 1.0, rows.append))
    facts = {r["name"]: r["value"] for r in rows if r["kind"] == "fact"}
    assert facts["device"] == "NVIDIA H200"
    assert facts["capability"] == "9.0"
    assert facts["multiprocessors"] == 132
    assert facts["smi driver_version"] == "580.1"
    assert machine.environment.slug(facts["device"]) == "nvidia-h200"
