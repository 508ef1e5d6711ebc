"""Pages' sources, with figures that nobody measured."""

from dataclasses import replace

import throughput_examples as examples

from dfa_kernels.profiling.parts import Line
from dfa_kernels.profiling.report import Log, Profile
from dfa_kernels.throughput.result import Ceilings

HOSTILE = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&'


def slower(found, factor):
    """The same run on a machine where everything but the baseline takes longer."""

    def changed(row):
        if row.ms is None or row.verdict is None:
            return row
        return replace(
            row,
            ms=row.ms * factor,
            ratio=row.ratio * factor,
            ratio_quartiles=tuple(q * factor for q in row.ratio_quartiles),
            samples_ms=tuple(ms * factor for ms in row.samples_ms),
        )

    return replace(found, rows=tuple(map(changed, found.rows)))


def another():
    """Another commit's result, in which everything of DFA takes a fifth longer."""
    found = slower(examples.result(), 1.2)
    return replace(found, environment={**found.environment, "commit": "fedcba9"})


def log(**environment):
    """A profile of dfa and bp; by default of the machine of `throughput_examples`."""

    def line(part, layer, ms, flops, floor):
        return Line(part, layer, ms, (0.9 * ms, 1.1 * ms), flops, 4000, floor, "memory")

    profile = Profile(
        method="dfa", backend="reference", optimizer="dfa_kernels.optim.SGD", fused=True, ms=4.0,
        quartiles=(3.9, 4.2), profiled_ms=4.4, python_ms=0.5,
        parts=(
            line("forward", "", 1.5, 10**8, 1.0), line("error", "", 0.2, 0, None),
            line("projection", "", 0.3, 10**6, 0.1), line("update", "", 1.5, 10**8, 1.2),
        ),
        layers=(line("forward", "hidden1", 1.0, 10**8, 0.8),),
        notes=("it was an example",),
    )  # fmt: skip
    plain = replace(profile, method="bp", backend="none: plain autograd", fused=False, ms=6.0)
    return Log(
        environment={**examples.result().environment, **environment},
        options={"method": "dfa bp", "shape": "128,3,256,10"},
        subject="3 × 256 tanh, 10 outputs, batch 128",
        ceilings=Ceilings(20.0, {"float32": 0.12}, 1.5),
        methods={"dfa": profile, "bp": plain},
        failed={"shallow": "it died: RuntimeError: no"},
    )


def hostile():
    """A result whose every text would be a script, were it not escaped."""
    found = examples.result()
    rows = [replace(r, contestant=r.contestant + HOSTILE, error=HOSTILE) for r in found.rows]
    rows.append(replace(found.rows[-1], contestant=HOSTILE, error=HOSTILE, dtype=HOSTILE))
    curves = [replace(c, contestant=HOSTILE, dtype=HOSTILE) for c in found.scaling]
    return replace(
        found,
        environment={**found.environment, "processor": HOSTILE, HOSTILE: HOSTILE},
        rows=(*found.rows, *rows),
        scaling=tuple(curves),
        crossovers=tuple(replace(c, sentence=HOSTILE) for c in found.crossovers),
        predictions=tuple(replace(p, contestant=HOSTILE) for p in found.predictions),
        notes=(HOSTILE,),
        ceilings=Ceilings(20.0, {"float32": 0.12, HOSTILE: 0.1}, 1.5),
    )
