"""Turns, and the calls of CUDA, to stand-ins."""

from unittest import mock

import pytest
import torch

from dfa_kernels.throughput import timing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """Stands in for torch.cuda: events 6 ms apart, an L2 cache of 60 MB."""
    stand_in = mock.MagicMock(spec=torch.cuda)
    stand_in.Event.return_value.elapsed_time.return_value = 6.0
    stand_in.get_device_properties.return_value = mock.Mock(L2_cache_size=60_000_000)
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


def test_a_flush_goes_before_every_run_and_is_not_timed(cuda, monkeypatch):
    calls = []
    event = cuda.Event.return_value
    event.record.side_effect = lambda: calls.append("|")
    run, flush = (lambda name=name: calls.append(name) for name in ("run", "flush"))
    assert timing.once(run, CUDA, count=2, flush=flush) == 6.0
    assert calls == ["flush", "|", "run", "|"] * 2
    made = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, device, **k: made.append(empty(*a, **k)) or made[0]
    )
    timing.flusher(CUDA)()
    assert made[0].nbytes == 120_000_000
    assert timing.flusher(CPU) is None


def test_who_dies_takes_no_more_part_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(timing, "turn", lambda *_: (1, 0))
    calls, told = {"a": 0, "b": 0, "c": 0}, []

    def run(name, until):
        def step():
            calls[name] += 1
            if calls[name] > until:
                raise ValueError(f"{name} fell")

        return step

    runs = {"a": run("a", 99), "b": run("b", 6), "c": run("c", 0)}
    times = timing.rounds(runs, CPU, 0, least=5, died=lambda *w: told.append(w), clock=lambda: 0.0)
    assert [len(t) for t in times.values()] == [
        5,
        2,
        0,
    ]  # b: three to warm up, one to see how long it takes
    assert [(name, str(why)) for name, why in told] == [("c", "c fell"), ("b", "b fell")]
    with pytest.raises(ValueError, match="b fell"):
        timing.rounds({"b": runs["b"]}, CPU, 0, least=1)


def test_an_interruption_leaves_what_was_measured():
    def interrupt():
        if len(into["a"]) == 2:
            raise KeyboardInterrupt

    into = {}
    with pytest.raises(KeyboardInterrupt):
        timing.rounds({"a": interrupt}, CPU, 1, least=1, clock=lambda: 0.0, into=into)
    assert len(into["a"]) == 2


def test_it_is_told_whose_turn_begins():
    order = []
    runs = dict.fromkeys("ab", lambda: None)
    timing.rounds(runs, CPU, 0, least=2, before=order.append, clock=lambda: 0.0)
    assert "".join(order) == "ab" + "ba" + "ab"


def test_a_step_is_captured_once_and_replayed(cuda):
    step = mock.Mock()
    replay = timing.graphed(step)
    assert step.call_count == 6
    replay(), replay()
    assert step.call_count == 6
    assert cuda.CUDAGraph.return_value.replay.call_count == 2
