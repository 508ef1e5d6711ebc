"""Tiles by trial, for whoever asks for it: DFA_KERNELS_TRITON_TUNE=1.

The first launch of a shape class tries all of `candidates` on its own arguments and keeps the
fastest: for this process, and in a file for the next (`Kept`). What a trial changes in place is put
back, so a step is taken once, by the tiles that were chosen. Trying takes seconds a candidate, most
of them compilation; other tiles add in another order, so a step's last bits may differ from the
default tiles'. A CUDA graph's capture tries nothing.
"""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfa_kernels.backends.triton.rules import Tiles
from dfa_kernels.version import __version__

VARIABLE, FOLDER = "DFA_KERNELS_TRITON_TUNE", "DFA_KERNELS_CACHE_DIR"

#: Read once, at import: a launch must not pay for asking.
ENABLED = os.environ.get(VARIABLE, "0") not in ("", "0")

#: Runs something on a device, and returns how long it takes there, in any unit.
Timer = Callable[[Callable[[], None], torch.device], float]


class Trial(NamedTuple):
    """What a launch needs to have its tiles found: ``candidates``, the default first; ``make``
    makes the launch of a candidate; ``written`` is changed in place."""

    key: str
    candidates: list[Tiles]
    make: Callable[[Tiles], Any]
    written: Sequence[Tensor]


#: Tiles by device, kernel and shape, that this process has tried or found among the candidates.
_settled: dict[tuple[object, ...], Tiles] = {}


def settled(
    kernel: str,
    device: torch.device,
    shape: Sequence[object],
    candidates: Iterable[Tiles],
    make: Callable[[Tiles], Any],
    written: Sequence[Tensor],
) -> tuple[Tiles, Trial | None]:
    """The tiles that are known to be the fastest, and None; or the default, and the trial to find
    them by. ``shape``: whatever else they depend on, sizes `rounded`."""
    known = (device, kernel, *shape)
    tiles = _settled.get(known)
    if tiles is None:
        every, key = list(candidates), "; ".join(map(str, (_machine(device), kernel, *shape)))
        tiles = kept.get(key)
        if tiles not in every:
            return every[0], Trial(key, every, make, written)
        _settled[known] = tiles
    return tiles, None


def rounded(*sizes: int) -> tuple[int, ...]:
    """Sizes up to powers of 2: within a factor of 2 the same tiles are good."""
    return tuple(1 << max(0, size - 1).bit_length() for size in sizes)


@functools.cache
def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}; triton {version('triton')}; dfa_kernels {__version__}"


def fastest(launch: Any, device: torch.device, prepare: Callable[[Any], Callable[[], None]]) -> Any:
    """The launch with its fastest tiles; ``prepare`` compiles one and returns what starts it.

    What cannot be compiled or started is passed over; where nothing can, the launch is returned as
    it came, to fail by itself.
    """
    key, candidates, make, written = launch.trial
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return launch
    try:
        before = [t.clone() for t in written]
    except torch.OutOfMemoryError:
        _warn(f"no memory to try tiles in: {sum(t.nbytes for t in written):,} bytes are needed")
        return launch
    found: list[tuple[float, Tiles]] = []
    for tiles in candidates:
        try:
            found.append((timer(prepare(make(tiles)), device), tiles))
        except Exception:  # shared memory or registers that it does not have: Triton says so
            continue
        finally:
            for tensor, value in zip(written, before, strict=True):
                tensor.data.copy_(value)  # unseen by autograd, as the kernel's own writes are
    if not found:
        return launch
    best = min(found, key=lambda entry: entry[0])[1]
    kept.put(key, best)
    return make(best)


def on_device(run: Callable[[], None], device: torch.device) -> float:
    """The median of a few runs, in milliseconds of the device's alone: it sleeps while the host
    starts them."""
    run()
    times = []
    for _ in range(7):
        if device.type != "cuda":
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


timer: Timer = on_device


class Kept:
    """Tiles by key, in memory and in a JSON file that several processes may share: it is replaced
    as a whole, what the others wrote meanwhile included."""

    def __init__(self) -> None:
        self._known: dict[str, Tiles] | None = None

    def get(self, key: str) -> Tiles | None:
        if self._known is None:
            self._known = _read(file())
        return self._known.get(key)

    def put(self, key: str, tiles: Tiles) -> None:
        """Raises nothing: what cannot be written is told, and known to this process."""
        path = file()
        self._known = {**(self._known or {}), **_read(path), key: tiles}
        new = path.with_name(f".{path.name}.{os.getpid()}")
        entries = {k: t._asdict() for k, t in sorted(self._known.items())}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(entries, indent=1) + "\n")
            os.replace(new, path)
        except OSError as failed:
            _warn(f"tuned tiles are not kept for the next process: {failed}")


def file() -> Path:
    """In DFA_KERNELS_CACHE_DIR, else in the user's own folder for caches."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named) / "triton-tiles.json"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "dfa_kernels" / "triton-tiles.json"


def _read(path: Path) -> dict[str, Tiles]:
    """What the file holds; nothing where it is not there, or is not one of ours."""
    try:
        return {key: Tiles(**entry) for key, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@functools.cache
def _warn(sentence: str) -> None:
    """Once."""
    warnings.warn(f"dfa_kernels: {sentence}", RuntimeWarning, stacklevel=2)


def describe() -> str:
    """For ``dfa-kernels info``."""
    if ENABLED:
        return f"tiles by trial ({VARIABLE}), kept in {file()}"
    return f"tiles by rule ({VARIABLE}=1 tries others)"


kept = Kept()
