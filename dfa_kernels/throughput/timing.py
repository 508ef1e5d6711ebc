"""Taking turns: what runs beside what, by CUDA events, or by the clock where there is no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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


def once(
    run: Run, device: torch.device, count: int = 1, cycles: int = 0, flush: Run | None = None
) -> float:
    """Milliseconds of a run, of ``count`` on end; ``cycles``: the device sleeps before them.

    ``flush``: goes before each run on a GPU, and is not timed: it leaves nothing in the L2 cache.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start) / count * 1e3
    if cycles:
        torch.cuda._sleep(cycles)
    pairs = []
    for _ in range(1 if flush is None else count):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        if flush is not None:
            flush()
        begin.record()
        for _ in range(count if flush is None else 1):
            run()
        end.record()
        pairs.append((begin, end))
    pairs[-1][1].synchronize()
    return sum(begin.elapsed_time(end) for begin, end in pairs) / count


def flusher(device: torch.device) -> Run | None:
    """Writes over more bytes than the device's L2 cache has; None where there is no GPU."""
    if device.type != "cuda":
        return None
    size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    buffer = torch.empty(max(2 * size, 64 << 20), dtype=torch.int8, device=device)
    return buffer.zero_


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
    runs: Mapping[str, Run],
    device: torch.device,
    seconds: float,
    *,
    ahead: bool = False,
    least: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    died: Callable[[str, Exception], None] | None = None,
    before: Callable[[str], None] = lambda name: None,
    flush: Run | None = None,
    into: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every run in each round, each of which gives all of them a turn, in an order
    that moves on; ``seconds`` for all rounds, after the first ``least``.

    Args:
        ahead: of the device's work alone, the host's being done beforehand.
        died: told of the run that raised, which then takes no more part; None: it is raised.
        before: told whose turn begins.
        flush: see `once`.
        into: what is returned, as it grows: an interruption leaves in it what was measured.
    """
    times = {} if into is None else into
    times.update({name: [] for name in runs})
    turns: dict[str, tuple[int, int]] = {}
    order = list(runs)

    def tried(name: str, action: Callable[[], None]) -> None:
        before(name)
        try:
            action()
        except Exception as failed:
            if died is None:
                raise
            order.remove(name)
            died(name, failed)

    def prepare(name: str) -> None:
        run = runs[name]
        warm(run, device, min(3, least))
        if least > 1:
            held = min(host(run, device, 5)) / 1e3 if ahead else None
            turns[name] = turn(once(run, device), held)
        else:
            turns[name] = (1, 0)

    def take(name: str) -> None:
        count, cycles = turns[name]
        if count > 1:
            runs[name]()  # finds the caches full of another's data
        times[name].append(once(runs[name], device, count, cycles, flush))

    for name in runs:
        tried(name, partial(prepare, name))
    end = clock() + seconds
    for done in range(MOST):
        if not order or (done >= least and clock() >= end):
            break
        order.append(order.pop(0))
        for name in tuple(order):
            tried(name, partial(take, name))
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


#: Steps before `graphed` captures one.
WARM = 5


def graphed(step: Run) -> Run:
    """The step as a CUDA graph: warmed up on another stream, captured once, replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
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
