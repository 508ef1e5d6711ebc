"""The machine that a result was measured on, as far as a reader needs it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import dfa_kernels

Facts = dict[str, str | int | float]

_ROOT = Path(__file__).parents[2]


def describe(device: torch.device | None = None) -> Facts:
    """Processor, cores, threads and versions; nothing that names the machine itself. ``device``:
    what is measured, by its own name and with what a GPU tells of itself."""
    facts: Facts = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dfa_kernels": dfa_kernels.__version__,
    }
    if device is not None:
        facts |= {"device": _processor(), "commit": commit()}
        if device.type == "cuda":
            facts |= gpu(device)
    return facts


def gpu(device: torch.device) -> Facts:
    """What it tells of itself."""
    properties = torch.cuda.get_device_properties(device)
    facts: Facts = {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "l2_mb": round(getattr(properties, "L2_cache_size", 0) / 1e6, 1),
        "cuda": torch.version.cuda or torch.version.hip or "unknown",
    }
    try:
        facts["triton"] = version("triton")
    except PackageNotFoundError:
        facts["triton"] = "not installed"
    return facts


def commit() -> str:
    """The checkout's, with a + where it has changes; "unknown" without one, or without git."""
    if not (_ROOT / ".git").exists():
        return "unknown"  # installed: what git finds further up is another project's
    try:
        git = ["git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT)]
        head = said([*git, "rev-parse", "--short=12", "HEAD"])
        changed = said([*git, "status", "--porcelain", "-uno"])
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")


def slug(name: str) -> str:
    """As a device's file or folder is called: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def said(command: list[str]) -> str:
    """What a command prints. Raises where it fails or takes 20 s."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
