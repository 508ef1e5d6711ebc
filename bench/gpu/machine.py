"""The GPU and the software that a result was measured on; nothing that names the machine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from bench.gpu.context import Context
from bench.gpu.rows import fact
from dfa_kernels.throughput import environment

_FIELDS = (
    "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu", "persistence_mode", "mig.mode.current",
)  # fmt: skip


def describe(context: Context) -> None:
    """Facts, one a row."""
    found: dict[str, object] = dict(environment.describe())
    found["triton"] = version("triton")
    if context.device.type == "cuda":
        properties = torch.cuda.get_device_properties(context.device)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_gb"] = round(properties.total_memory / 1e9, 1)
        found["l2_mb"] = round(getattr(properties, "L2_cache_size", 0) / 1e6, 1)
        found["cuda"] = torch.version.cuda or torch.version.hip
        found.update(_smi())
    for name in ("pytest", "xdist", "numpy", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            context.say(f"{name} is not installed.")
    for name, value in found.items():
        context.emit(fact(name, value))


def commit() -> str:
    """The checkout's, with a + where it has changes; "unknown" without git."""
    root = Path(__file__).parents[2]
    try:
        git = ["git", "-c", f"safe.directory={root}", "-C", str(root)]
        head = _output([*git, "rev-parse", "--short=12", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "-uno"])
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")


def slug(name: str) -> str:
    """A folder's name for a device: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _smi() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        values = _output(command).splitlines()[0].split(",")
    except (OSError, subprocess.SubprocessError, IndexError):
        return {"nvidia-smi": "not there"}
    return {f"smi {k}": v.strip() for k, v in zip(_FIELDS, values, strict=False)}


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
