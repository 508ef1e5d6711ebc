"""`dfa-kernels bench` on the command line: its options, and which of its errands was asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfa_kernels.training import extras

#: What the command imports, and the packages that bring it.
DEFAULT = Path("runs/bench")


def add(commands: Any) -> None:
    """The command, to a parser's subparsers."""
    bench = commands.add_parser(
        "bench",
        help="time a training step beside its rivals and the hardware's limits",
        description="Time whole training steps of an MLP, contestants taking turns in one process; "
        "end with tables and a result in JSON, which is written whenever something was measured. "
        "A ratio is to compiled backpropagation, less being faster; one whose quartiles straddle 1 "
        "is undecided.",
        argument_default=argparse.SUPPRESS,
    )
    several = {"nargs": "+", "action": "extend", "metavar": "NAME"}
    bench.add_argument(
        "--contestant",
        **several,
        help="bp-eager, bp-compiled, hand-written-bp, hand-written-dfa, tinydfa, biotorch, or a "
        "backend: reference, triton, cuda, triton+cuda (small calls by cuda, large ones by "
        "triton), one of yours, also as BACKEND/torch.optim and BACKEND/backward (all that can "
        "run)",
    )
    bench.add_argument(
        "--shape",
        nargs="+",
        action="extend",
        metavar="SHAPE",
        help="BATCH,LAYERS,WIDTH,OUTPUTS, or mlp:LAYERSxWIDTH[,batch=N][,outputs=N] (a few)",
    )
    bench.add_argument(
        "--dtype", **several, help="float32, float64, bfloat16, float16, autocast (float32)"
    )
    bench.add_argument("--device", metavar="NAME", help="default: a GPU if there is one")
    bench.add_argument("--optimizer", metavar="NAME", help="sgd, with momentum, or adamw (sgd)")
    bench.add_argument("--seconds", type=float, help="for each shape in each dtype (20)")
    bench.add_argument(
        "--processes", type=int, metavar="N", help="that time each shape, one after another (6)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="of a CPU (as torch has them)")
    bench.add_argument(
        "--import",
        dest="modules",
        nargs="+",
        action="extend",
        metavar="MODULE",
        help="imported first: modules that register backends",
    )
    bench.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out peak memory"
    )
    bench.add_argument("--out", type=Path, metavar="DIR", help=f"where to write ({DEFAULT})")
    bench.add_argument("--overwrite", action="store_true", help="replace the result in --out")
    errand = bench.add_mutually_exclusive_group()
    errand.add_argument(
        "--scaling",
        action="store_true",
        help="along depth, width, batch and outputs too, with exponents and crossovers",
    )
    errand.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("OLD", "NEW"),
        help="two results, row by row; exit status 1 where one is slower",
    )
    errand.add_argument(
        "--predict",
        metavar="SHAPE",
        help="a step's time by the cost model, on a device that was measured: see --device",
    )
    errand.add_argument(
        "--calibrate",
        type=Path,
        metavar="RESULT",
        help="fit the cost model to a result with --scaling; writes NAME.json to --out, for the "
        "device that --device names, or the result",
    )
    bench.set_defaults(run=run)


def run(asked: argparse.Namespace) -> int:
    """The errand that was asked for; its exit status."""
    extras.need("bench", "numpy", "rich", "scipy")
    given = {k: v for k, v in vars(asked).items() if k not in ("command", "run")}
    if "compare" in given:
        from dfa_kernels.throughput import compare

        return compare.run(*given["compare"])
    if "predict" in given:
        from dfa_kernels.throughput import predict

        return predict.run(given["predict"], given.get("device"))
    if "calibrate" in given:
        from dfa_kernels.throughput import predict

        return predict.calibrate(given["calibrate"], given.get("device"), given.get("out"))
    from dfa_kernels.throughput.command import measure

    out, overwrite = given.pop("out", DEFAULT), given.pop("overwrite", False)
    memory, scaling = given.pop("memory", True), given.pop("scaling", False)
    return measure(given, out, overwrite, memory, scaling)
