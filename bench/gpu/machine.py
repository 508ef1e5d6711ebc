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


def describe(context: Context) -> None:
    """Facts, one a row."""
    found: dict[str, object] = {**environment.describe(), "triton": version("triton")}
    if context.device.type == "cuda":
        found |= {**environment.gpu(context.device), **_smi()}
    for name in ("pytest", "xdist", "numpy", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            context.say(f"{name} is not installed.")
    for name, value in found.items():
        context.emit(fact(name, value))


def _smi() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        values = environment.said(command).splitlines()[0].split(",")
    except (OSError, subprocess.SubprocessError, IndexError):
        return {"nvidia-smi": "not there"}
    return {f"smi {k}": v.strip() for k, v in zip(_FIELDS, values, strict=False)}
