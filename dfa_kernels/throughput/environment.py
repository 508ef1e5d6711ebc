"""The machine that a result was measured on, as far as a reader needs it."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path

import torch

import dfa_kernels


def describe() -> dict[str, object]:
    """Processor, cores, threads and versions; nothing that names the machine itself."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dfa_kernels": dfa_kernels.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
