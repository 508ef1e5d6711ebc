"""Turns, and the calls of CUDA, to stand-ins."""

from unittest import mock

import pytest
import torch

from bench.gpu import machine, timing
from bench.gpu.context import Context

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """Stands in for torch.cuda: events 6 ms apart, one device, memory that grows by 100 bytes."""
    stand_in = mock.MagicMock(spec=torch.cuda)
    stand_in.Event.return_value.elapsed_time.return_value = 6.0
    stand_in.get_device_properties.return_value = mock.Mock(
        major=9, minor=0, multi_processor_count=132, total_memory=150e9, L2_cache_size=60e6
    )
    stand_in.get_device_properties.return_value.name = "NVIDIA H200"
    stand_in._sleep = mock.Mock()  # a name of torch's own, which spec allows
    monkeypatch.setattr(torch, "cuda", stand_in)
    return stand_in


def test_every_round_gives_everyone_a_turn_in_an_order_that_moves_on():
    ran = []
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    runs = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    times = timing.rounds(runs, CPU, 3, least=1, clock=clock)
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(ran) == "abc" + "bca" + "cab" + "abc"  # to warm up, and three rounds


def test_a_turn_is_long_and_the_device_sleeps_while_the_host_fills_it():
    assert timing.turn(took=4.0) == (5, 0)
    assert timing.turn(took=100.0) == (1, 0)
    assert timing.turn(took=0.001) == (50, 0)
    count, cycles = timing.turn(took=0.01, held=0.25)
    assert count * 0.25 <= timing.HELD
    assert cycles == 1.5 * count * 0.25 * timing.CYCLES
    assert timing.turn(took=0.01, held=100.0)[0] == 1


def test_a_kernels_time_is_between_events_after_the_sleep(cuda):
    run = mock.Mock()
    assert timing.once(run, CUDA, count=3, cycles=1000) == 2.0
    assert run.call_count == 3
    cuda._sleep.assert_called_once_with(1000)
    times = timing.kernel(run, CUDA, 0.0)
    assert set(times) <= {6.0 / n for n in range(1, 51)}
    assert len(times) == timing.ROUNDS


def test_a_step_is_captured_once_and_replayed(cuda):
    step = mock.Mock()
    replay = timing.graphed(step)
    assert step.call_count == 6
    replay(), replay()
    assert step.call_count == 6
    assert cuda.CUDAGraph.return_value.replay.call_count == 2


def test_the_machine_on_cuda(cuda, monkeypatch):
    monkeypatch.setattr(machine, "_output", lambda _: "580.1, 1980 MHz, 1980 MHz, 3201 MHz\n")
    rows = []
    machine.describe(Context(CUDA, False, 1.0, rows.append))
    facts = {r["name"]: r["value"] for r in rows if r["kind"] == "fact"}
    assert facts["device"] == "NVIDIA H200"
    assert facts["capability"] == "9.0"
    assert facts["multiprocessors"] == 132
    assert facts["smi driver_version"] == "580.1"
    assert machine.slug(facts["device"]) == "nvidia-h200"
