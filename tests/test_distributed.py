"""DistributedDataParallel and FSDP2 (`fully_shard`) under torchrun, two processes over gloo: the
gradients of one process on the whole batch, though every rank has another random state."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from distributed_cases import DDP, FSDP, LOW

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs gloo",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every case's outcome on each of the two ranks, from one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*launch, str(HERE / "distributed_worker.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", [*DDP, *FSDP])
def test_equals_one_process(results, case):
    # Two halves of a batch are summed in another order; bf16 keeps 8 bits of three operands.
    allowed = 0.1 if case in LOW else 1e-5
    for rank, outcomes in enumerate(results):
        assert isinstance(outcomes[case], float), f"rank {rank}: {outcomes[case]}"
        assert outcomes[case] < allowed, f"rank {rank}"
