"""Peak memory and time of reading a Criteo file, each in a fresh process of its own.

    python -m bench.paper.recommender.loading --rows 500000 5000000 --json FILE

The peak is the largest resident set of the process; what it had before it began to read (Python,
torch, pandas) stands beside it. The rows are `generated`'s: as wide as Criteo's, with at most
20,000 values a field.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import environment
from bench.paper.recommender import criteo, generated

_MIN_COUNT = 10


def measure(path: Path, cache: Path) -> dict[str, float]:
    """Read ``path`` into ``cache``. Meant for a process that did nothing else."""
    before = _peak()
    wall, cpu = time.perf_counter(), time.process_time()
    data = criteo.load(path, cache, _MIN_COUNT)
    return {
        "rows": sum(len(split.labels) for split in data.splits.values()),
        "text_MB": round(path.stat().st_size / 1e6),
        "cache_MB": round(sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 1e6),
        "values": sum(data.sizes),
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_MB": round(_peak()),
        "before_MB": round(before),
    }


def _peak() -> float:
    """The largest resident set so far, MB. (getrusage's would be the parent's, across exec.)"""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise SystemExit("the peak is read from /proc/self/status, which Linux alone has")
    return int(found[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 5_000_000])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        asked.json.write_text(json.dumps(measure(asked.one, asked.one.with_suffix(".cache"))))
        return
    made = []
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            path, beside = Path(folder) / "rows.tsv", Path(folder) / "measured.json"
            generated.write(path, rows)
            subprocess.run(
                [sys.executable, "-m", "bench.paper.recommender.loading", "--one", path,
                 "--json", beside],
                check=True,
            )  # fmt: skip
            made.append(json.loads(beside.read_text()))
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "how": "criteo.load of generated rows, each file in a fresh process: VmHWM of that process "
        "at the end and before reading; wall and CPU seconds of the loading alone",
        "load_average": os.getloadavg()[0],
        "min_count": _MIN_COUNT,
        "files": made,
        "environment": environment.describe(),
    }
    asked.json.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
