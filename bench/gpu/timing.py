"""Taking turns: what runs beside what, by CUDA events, or by the clock where there is no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Run = Callable[[], object]

#: Milliseconds of a turn: what runs shorter is run several times on end.
TURN = 20.0
#: Rounds at the least, and at the most.
ROUNDS, MOST = 9, 200
#: Milliseconds of the host's work at the most that a kernel's turn may need, and cycles of the
#: device in one, at the 2 GHz that no device exceeds by much.
HELD, CYCLES = 8.0, 2_000_000


def warm(run: Run, device: torch.device, times: int = 3) -> None:
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(run: Run, device: torch.device, count: int = 1, cycles: int = 0) -> float:
    """Milliseconds of a run, of ``count`` on end; ``cycles``: the device sleeps before them."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start) / count * 1e3
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    if cycles:
        torch.cuda._sleep(cycles)
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def turn(took: float, held: float | None = None) -> tuple[int, int]:
    """How many runs of ``took`` ms make a turn, and for how many cycles the device sleeps first.

    ``held``: milliseconds that the host needs for a run, where the time must be the device's alone:
    it sleeps for as long as the host needs for the whole turn, and half of that again.
    """
    count = max(1, min(50, round(TURN / max(took, 1e-3))))
    if held is None:
        return count, 0
    count = max(1, min(count, int(HELD / max(held, 1e-3))))
    return count, int(1.5 * count * held * CYCLES)


def rounds(
    runs: dict[str, Run],
    device: torch.device,
    seconds: float,
    *,
    ahead: bool = False,
    least: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of every run in each round, each of which gives all of them a turn, in an order
    that moves on; ``seconds`` for all rounds, after the first ``least``. ``ahead``: of the device's
    work alone, the host's being done beforehand."""
    turns = {}
    for name, run in runs.items():
        warm(run, device, min(3, least))
        if least > 1:
            held = min(host(run, device, 5)) / 1e3 if ahead else None
            turns[name] = turn(once(run, device), held)
        else:
            turns[name] = (1, 0)
    order = list(runs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = clock() + seconds
    for done in range(MOST):
        if done >= least and clock() >= end:
            break
        order.append(order.pop(0))
        for name in order:
            count, cycles = turns[name]
            if count > 1:
                runs[name]()  # finds the caches full of another's data
            times[name].append(once(runs[name], device, count, cycles))
    return times


def kernel(run: Run, device: torch.device, seconds: float, least: int = ROUNDS) -> list[float]:
    """Milliseconds of one run's work on the device, without the host's."""
    return rounds({"": run}, device, seconds, ahead=True, least=least)[""]


def host(run: Run, device: torch.device, repeats: int = 200) -> list[float]:
    """Microseconds that the host is held by a run, the device having time to keep up."""
    taken = []
    warm(run, device, min(3, repeats))
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) * 1e6)
    return taken


def graphed(step: Run) -> Run:
    """The step as a CUDA graph: warmed up on another stream, captured once, replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> Sequence[object]:
        graph.replay()
        return (step,)  # keeps alive what the graph reads and writes

    return replay
