"""The recommender task: what can be asked for, and the problem that it makes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from bench.paper.recommender import criteo, generated, table
from bench.paper.recommender.fields import Data, check_classes, split_of
from bench.paper.recommender.models import PAPER, SMALL, Sizes
from bench.paper.recommender.prediction import FROZEN, Prediction, Training
from bench.paper.recommender.table import KNOWN, Layout
from bench.paper.task import Problem, Task
from dfa_kernels.training import InputError

#: Options that have a meaning with some data, or with some models, alone.
_DATA_OF = {
    "file": ("criteo", *KNOWN, "table"), "drop": (*KNOWN, "table"), "label": ("table",),
    "columns": ("table",), "delimiter": ("table",), "rows": ("generated",),
}  # fmt: skip
_MODELS_OF = {
    "tower": ("deepfm", "dcn", "autoint", "afn"), "logarithmic": ("afn",),
    "attention_layers": ("autoint",), "cross_layers": ("dcn",),
}  # fmt: skip

_CLIP = 100.0  # of Deep & Cross, whose cross layers multiply; as in the paper's code


class Recommender(Task):
    name = "recommender"
    models: ClassVar = {
        "deepfm": "a factorization machine beside a tower",
        "dcn": "Deep & Cross: cross layers beside a tower",
        "autoint": "attention between fields beside a tower",
        "afn": "a logarithmic layer below a tower",
        "fm": "a factorization machine, by bp alone",
    }
    data: ClassVar = {
        "generated": "rows in Criteo's format with a known best AUC",
        "criteo": "Criteo's TSV (--file train.txt)",
        "bank": "bank-full.csv of the UCI repository, without duration",
        "adult": "adult.data of the UCI repository",
        "table": "any CSV with a label of two values (--file, --label)",
    }
    controls = (FROZEN,)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        data = parser.add_argument_group("data")
        data.add_argument("--file", metavar="NAME", help="in --root (train.txt for criteo)")
        data.add_argument("--label", metavar="NAME", help="the table's column to predict")
        data.add_argument(
            "--drop", nargs="+", default=[], metavar="NAME",
            help="columns of the table to leave out",
        )  # fmt: skip
        data.add_argument(
            "--columns", nargs="+", default=[], metavar="NAME",
            help="the table's columns, where the file has no header",
        )  # fmt: skip
        data.add_argument("--delimiter", metavar="C", help="of the table (,)")
        data.add_argument(
            "--min-count", type=int, default=10, metavar="N",
            help="rarer values share one embedding (10)",
        )  # fmt: skip
        data.add_argument("--rows", type=int, metavar="N", help="to generate (200000; quick 20000)")
        data.add_argument(
            "--cache", type=Path, metavar="DIR", help="of what was read (cache in --out)"
        )
        model = parser.add_argument_group("model")
        model.add_argument(
            "--size", choices=("small", "paper"), default="small",
            help="small: towers of 128 × 3, for two cores; paper: its code's sizes (small)",
        )  # fmt: skip
        model.add_argument("--embedding", type=int, metavar="N", help="instead of the size's")
        model.add_argument("--tower", type=int, nargs="+", metavar="N", help="the layers' widths")
        model.add_argument("--logarithmic", type=int, metavar="N", help="neurons of AFN's layer")
        model.add_argument("--attention-layers", type=int, metavar="N", help="of AutoInt")
        model.add_argument("--cross-layers", type=int, metavar="N", help="of Deep & Cross")
        model.add_argument("--dropout", type=float, default=0.0, metavar="P", help="(0)")
        model.add_argument(
            "--no-norm", dest="norm", action="store_false",
            help="towers of dfa_kernels.Linear, without batch normalisation between",
        )  # fmt: skip
        train = parser.add_argument_group("training")
        train.add_argument("--batch", type=int, default=512, metavar="N", help="rows (512)")
        train.add_argument("--epochs", type=float, metavar="N", help="(10; quick 3)")
        train.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="(0)")

    def rates(self, options: argparse.Namespace) -> tuple[float, ...]:
        if options.quick:
            return (1e-3, 1e-2)
        if options.size == "paper":
            return (5e-5, 2e-4, 1e-3)
        return (3e-4, 1e-3, 3e-3, 1e-2)

    def problem(self, options: argparse.Namespace) -> Problem:
        sizes = _sizes(options)
        _check(options, sizes)
        options.method = _methods(options)
        training = Training(
            options.batch,
            options.epochs or (3 if options.quick else 10),
            options.weight_decay,
            _CLIP if options.model == "dcn" else 0.0,
            options.distribution,
        )
        data, more = _data(options)
        more = {"min_count": options.min_count, **more}
        return Prediction(options.model, sizes, data, training, more)


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = (PAPER if options.size == "paper" else SMALL)[options.model]
    if options.model == "fm":
        return replace(sizes, embedding=options.embedding or sizes.embedding)
    asked: dict[str, Any] = {
        "embedding": options.embedding, "tower": options.tower and tuple(options.tower),
        "logarithmic": options.logarithmic, "attention_layers": options.attention_layers,
        "cross_layers": options.cross_layers,
        "dropout": options.dropout, "norm": options.norm,
    }  # fmt: skip
    return replace(sizes, **{k: v for k, v in asked.items() if v is not None})


def _check(options: argparse.Namespace, sizes: Sizes) -> None:
    for given, belongs in (("data", _DATA_OF), ("model", _MODELS_OF)):
        value = getattr(options, given)
        for option, of in belongs.items():
            if getattr(options, option) and value not in of:
                option = option.replace("_", "-")
                raise InputError(f"--{option} is for --{given} {' or '.join(of)}, not for {value}")
    least = {
        "--min-count": options.min_count, "--rows": options.rows, "--batch": options.batch,
        "--embedding": options.embedding, "--logarithmic": options.logarithmic,
        "--attention-layers": options.attention_layers, "--cross-layers": options.cross_layers,
        "--tower": min(options.tower or [1]),
    }  # fmt: skip
    for option, value in least.items():
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, got {value}")
    if options.epochs is not None and not 0 < options.epochs < float("inf"):
        raise InputError(f"--epochs must be positive and finite, got {options.epochs:g}")
    if not 0 <= options.dropout < 1:
        raise InputError(f"--dropout must be at least 0 and below 1, got {options.dropout:g}")
    if not 0 <= options.weight_decay < float("inf"):
        raise InputError(f"--weight-decay must be at least 0, got {options.weight_decay:g}")
    if sizes.norm and sizes.tower and options.batch < 2:
        raise InputError("--batch must be at least 2 for batch normalisation: or say --no-norm")
    if len(options.delimiter or ",") != 1:
        raise InputError(f"--delimiter must be one character, got {options.delimiter!r}")


def _methods(options: argparse.Namespace) -> list[str]:
    """A factorization machine has no tower: every method would be backpropagation."""
    if options.model != "fm":
        return options.method
    if "bp" not in options.method:
        raise InputError(
            f"--model fm has no tower that {' or '.join(options.method)} could train: say "
            "--method bp"
        )
    return ["bp"]


# Data -------------------------------------------------------------------------------------------


def _data(options: argparse.Namespace) -> tuple[Data, dict[str, Any]]:
    """The rows, and what is known of them beside."""
    if options.data == "generated":
        return _generated(options)
    if options.root is None:
        raise InputError(f"--data {options.data} needs --root DIR, the folder of its file")
    if options.data == "criteo":
        path = options.root / (options.file or "train.txt")
        data = criteo.load(path, _cache(options), options.min_count, watch=_watch(path))
    else:
        layout, name = _layout(options)
        path = options.root / layout.file
        data = table.load(options.root, layout, options.min_count, name)
    check_classes(data, path)
    return data, {}


def _layout(options: argparse.Namespace) -> tuple[Layout, str]:
    if options.data in KNOWN:
        known = KNOWN[options.data]
        drop = (*known.drop, *options.drop)
        return replace(known, file=options.file or known.file, drop=drop), options.data
    if not options.file or not options.label:
        raise InputError("--data table needs --file NAME and --label NAME, the column to predict")
    columns = tuple(options.columns)
    if len(set(columns)) < len(columns):
        raise InputError(f"--columns names a column twice: {' '.join(columns)}")
    layout = Layout(
        options.file, options.label, tuple(options.drop), columns, options.delimiter or ","
    )
    return layout, Path(options.file).stem


def _generated(options: argparse.Namespace) -> tuple[Data, dict[str, Any]]:
    rows = options.rows or (20_000 if options.quick else 200_000)
    cache = _cache(options)
    path, beside = cache / f"generated-{rows}.tsv", cache / f"generated-{rows}.npy"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not beside.exists():  # it comes last, and whole
            partial = beside.with_suffix(".partial.npy")
            np.save(partial, generated.write(path, rows))
            partial.replace(beside)
        probabilities = np.load(beside)
    except (OSError, ValueError) as failed:
        raise InputError(f"--cache {cache} cannot be used: {failed}") from None
    data = criteo.load(path, cache, options.min_count, "generated", _watch(path))
    check_classes(data, path)
    true = probabilities[split_of(0, rows) == 2].astype(np.float64)
    labels = data.splits["test"].labels
    best = {
        "best_AUC": round(float(roc_auc_score(labels, true)), 4),
        "best_log_loss": round(float(log_loss(labels, true)), 4),
    }
    print(
        f"the true probabilities reach AUC {best['best_AUC']:.4f}, log loss "
        f"{best['best_log_loss']:.4f} on the test split",
        file=sys.stderr,
    )
    return data, best


def _cache(options: argparse.Namespace) -> Path:
    return options.cache or options.out / "cache"


def _watch(path: Path) -> Any:
    """Says now and then how much of a large file is read."""
    shown = 0.0

    def watch(share: float) -> None:
        nonlocal shown
        if share - shown >= 0.1 and share < 1:
            shown = share
            print(f"{path}: {100 * share:.0f} % read", file=sys.stderr)

    return watch
