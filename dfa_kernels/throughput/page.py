"""`dfa-kernels report`: one self-contained HTML page of results and profiles, side by side.

Everything that a file says is text to the template, which escapes it; numbers become places on
charts in `plots`. The page asks nothing of a network: its policy forbids it.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dfa_kernels.profiling import report as profiling
from dfa_kernels.profiling.stretches import steps
from dfa_kernels.throughput import charts, result
from dfa_kernels.throughput.result import BASELINE, FASTER, SLOWER, UNDECIDED, Result, Row
from dfa_kernels.throughput.roofline import rooflines
from dfa_kernels.throughput.source import Source, is_ours
from dfa_kernels.training import InputError

_TEMPLATE = "page.html.jinja"
_TITLE = "dfa_kernels: what was measured"
#: Bytes at the beginning of a page, in which its title stands.
_HEAD = 4096
#: Facts that tell two sources apart, the first that does being used.
_TELLING = ("device", "commit", "dfa_kernels", "torch", "threads", "optimizer", "date")


def report(files: Sequence[Path], out: Path, overwrite: bool = False) -> int:
    """Write the page and say its verdicts; the exit status. A page that was there is replaced.

    Args:
        overwrite: replace whatever else is there, but for the results themselves.

    Raises:
        InputError: a file cannot be read, or the page not written.
    """
    sources = read(files)
    if out.is_dir():
        raise InputError(f"--out {out} is a folder, not a page: give {out / 'report.html'}")
    if any(out.exists() and path.samefile(out) for path in files):
        raise InputError(f"--out {out} is one of the results: the page would replace it")
    if not overwrite and out.exists() and not _is_page(out):
        raise InputError(
            f"--out {out} exists and is no page of dfa-kernels report: replace it with "
            "--overwrite, or give another --out"
        )
    text = render(sources)
    beside = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, out)
    except OSError as refused:
        raise InputError(f"--out {out} cannot be written: {refused.strerror}") from None
    for verdict in verdicts(sources):
        print(f"{verdict.label}: {verdict.sentence}" if verdict.label else verdict.sentence)
    print(out)
    return 0


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return f"<title>{_TITLE}</title>".encode() in file.read(_HEAD)
    except OSError:
        return False


# Sources ----------------------------------------------------------------------------------------


def read(files: Sequence[Path]) -> list[Source]:
    """Results and profiles, in order; each with a label that tells it from the others.

    Raises:
        InputError: naming the file.
    """
    found: list[tuple[Path, str, Result | None, profiling.Log | None]] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as refused:
            why = getattr(refused, "strerror", None) or "it is not text"
            raise InputError(f"{path} cannot be read: {why}") from None
        log = _profile(text, path)
        found.append((path, text, None if log else result.parse(text, str(path)), log))
    sources = [
        Source(i, "", path.name, text, taken, log)
        for i, (path, text, taken, log) in enumerate(found)
    ]
    labels = _labels([path for path, *_ in found], [s.environment for s in sources])
    return [replace(s, label=label) for s, label in zip(sources, labels, strict=True)]


def _profile(text: str, path: Path) -> profiling.Log | None:
    """None where it is something else."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None  # result.parse says where
    if not isinstance(found, dict) or found.get("kind") != profiling.KIND:
        return None
    return profiling.parse(found, str(path))


def _labels(paths: Sequence[Path], facts: Sequence[dict[str, Any]]) -> list[str]:
    """What differs between them; where that is not enough, the files' names."""
    telling = [n for n in _TELLING if len({str(f.get(n)) for f in facts}) > 1]
    for count in range(1, len(telling) + 1):
        labels = [", ".join(str(f[n]) for n in telling[:count] if f.get(n)) for f in facts]
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    return names


# Verdicts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """``label``: whose, where there are several. ``kind``: of `result.VERDICTS`, or ""."""

    label: str
    sentence: str
    kind: str


def verdicts(sources: Sequence[Source]) -> list[Verdict]:
    """A sentence for each result."""
    results = [source for source in sources if source.result is not None]
    made = []
    for source in results:
        assert source.result is not None
        label = source.label if len(sources) > 1 else ""
        made.append(Verdict(label, *_verdict(source.result)))
    return made


def _verdict(taken: Result) -> tuple[str, str]:
    """Of the backend that was the fastest over all shapes, in one process each."""
    rows = [row for row in taken.rows if is_ours(row) and row.ratio is not None]
    if not rows:
        return f"No DFA backend has a ratio to {BASELINE} here.", ""
    backends = {row.contestant: [r for r in rows if r.contestant == row.contestant] for row in rows}
    most = max(map(len, backends.values()))
    best = min((own for own in backends.values() if len(own) == most), key=_middle)
    counts = {v: sum(row.verdict == v for row in best) for v in result.VERDICTS}
    ratios = sorted(row.ratio for row in best if row.ratio is not None)
    places = f"{len(best)} shapes" if len(best) > 1 else "the one shape"
    range_ = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(best) > 1 else ""
    told = ", ".join(
        f"{word} on {counts[v]}"
        for v, word in ((FASTER, "faster"), (SLOWER, "slower"), (UNDECIDED, "undecided"))
        if counts[v] or v == FASTER
    )
    kind = FASTER if counts[FASTER] > len(best) / 2 else UNDECIDED
    if counts[SLOWER] > len(best) / 2:
        kind = SLOWER
    sentence = (
        f"A DFA step by {best[0].contestant} takes {statistics.median(ratios):.2f} of compiled "
        f"backpropagation's time at the median of {places}{range_}: {told}."
    )
    return sentence, kind


def _middle(rows: Sequence[Row]) -> float:
    """The geometric mean of their ratios."""
    return statistics.fmean(math.log(row.ratio) for row in rows if row.ratio)


# The page ---------------------------------------------------------------------------------------


def render(sources: Sequence[Source]) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("dfa_kernels.throughput"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = [s for s in sources if s.result is not None]
    profiles = [s for s in sources if s.log is not None]
    return environment.get_template(_TEMPLATE).render(
        title=_TITLE,
        sources=sources,
        verdicts=verdicts(sources),
        several=len(sources) > 1,
        beside=len(results) > 1,
        ratios=charts.ratios(results),
        changes=charts.changes(results),
        rooflines=rooflines(sources),
        steps=steps(profiles),
        curves=charts.curves(results),
        crossovers=_told(results, lambda r: [c.sentence for c in r.crossovers]),
        predictions=charts.predictions(results),
        details=charts.details(results),
        heads=charts.DETAILS,
        facts=_facts(sources),
        notes=_told(results, lambda r: list(r.notes))
        + [(s, [f"{m}: {why}" for m, why in s.log.failed.items()]) for s in profiles if s.log],
        embedded=[(s, _embedded(s.text)) for s in sources],
    )


def _told(sources: Iterable[Source], of: Any) -> list[tuple[Source, list[str]]]:
    return [(s, of(s.result)) for s in sources if of(s.result)]


def _facts(sources: Sequence[Source]) -> list[tuple[str, list[str], bool]]:
    """Every fact: its name, each source's, and whether they differ."""
    environments = [s.environment for s in sources]
    ceilings = [asdict(s.ceilings) for s in sources]
    rows = {name: [str(e.get(name, "–")) for e in environments] for e in environments for name in e}
    rows["copy, GB/s"] = [_number(c["gbps"]) for c in ceilings]
    for dtype in dict.fromkeys(d for c in ceilings for d in c["tflops"]):
        rows[f"products in {dtype}, TFLOP/s"] = [_number(c["tflops"].get(dtype)) for c in ceilings]
    rows["smallest operation, µs"] = [_number(c["launch_us"]) for c in ceilings]
    return [(name, cells, len(set(cells)) > 1) for name, cells in rows.items()]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _embedded(text: str) -> Markup:
    """JSON inside a script element: no character of it can end the element, or begin a comment."""
    whole = json.dumps(json.loads(text), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        whole = whole.replace(character, f"\\u{ord(character):04x}")
    return Markup(whole)
