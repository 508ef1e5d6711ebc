"""The GPU and the software that a result was measured on; nothing that names the machine."""

from __future__ import annotations

import importlib.util
import subprocess
from importlib.metadata import version

from bench.gpu.context import Context
from bench.gpu.rows import fact
from dfa_kernels.throughput import environment

_FIELDS = (
    "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu", "persistence_mode", "mig.mode.current",
)  # fmt: skip


#: What a rehearsal says in the place of a GPU, and of nvidia-smi.
REHEARSED: dict[str, object] = {
    "device": "no device: a rehearsal", "capability": "9.0", "multiprocessors": 8,
    "memory_gb": 0.0, "l2_mb": 0.0, "cuda": "none",
}  # fmt: skip
REHEARSED_SMI = "0.0, 0 MHz, 0 MHz, 0 MHz, 0 W, 0 W, 0, Disabled, [N/A]"


def describe(context: Context) -> None:
    """Facts, one a row."""
    found: dict[str, object] = {**environment.describe(), "triton": version("triton")}
    if context.tiny:
        found |= REHEARSED | _fields(REHEARSED_SMI)
    elif context.device.type == "cuda":
        found |= {**environment.gpu(context.device), **_smi()}
    for name in ("pytest", "xdist", "numpy", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            context.say(f"{name} is not installed.")
    for name, value in found.items():
        context.emit(fact(name, value))


def _smi() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        return _fields(environment.said(command).splitlines()[0])
    except (OSError, subprocess.SubprocessError, IndexError):
        return {"nvidia-smi": "not there"}


def _fields(line: str) -> dict[str, str]:
    values = line.split(",")
    return {f"smi {k}": v.strip() for k, v in zip(_FIELDS, values, strict=False)}
