"""Geometric learning: six networks on citation graphs, two of them in two sizes.

    data            a graph, and what a network takes of it
    planetoid       Cora, CiteSeer, PubMed from their raw files      pickles   which they are
    blocks          the embedded default
    models          the networks, and how each is regularised        layers    of three of them
    problem         what both of these share
    classification  a class for each node                            picture   t-SNE
    autoencoder     which edges were held out

Launay et al. 2020, section 3.3.
"""

from __future__ import annotations

import argparse
from typing import ClassVar

from bench.paper.graph import blocks, planetoid
from bench.paper.graph.autoencoder import Autoencoder
from bench.paper.graph.classification import Classification
from bench.paper.graph.data import Graph
from bench.paper.graph.models import ARCHITECTURES
from bench.paper.graph.problem import OUTPUT, GraphProblem, Setting
from bench.paper.task import Task
from dfa_kernels.training import InputError


class GraphTask(Task):
    name = "graph"
    models: ClassVar = {name: a.line for name, a in ARCHITECTURES.items()}
    data: ClassVar = {
        "sbm": "a stochastic block model with words, made here",
        "planetoid": "--dataset from its raw files in --root",
    }

    controls = (OUTPUT,)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--dataset", choices=planetoid.DATASETS, help="of planetoid (cora)"
        )  # fmt: skip
        parser.add_argument("--steps", type=int, metavar="N", help="of a run (the model's own)")

    def problem(self, options: argparse.Namespace) -> GraphProblem:
        if options.steps is not None and options.steps < 1:
            raise InputError(f"--steps must be at least 1, got {options.steps}")
        architecture = ARCHITECTURES[options.model]
        own = architecture.quick if options.quick else architecture.steps
        variant = next(iter(architecture.variants))
        setting = Setting(options.model, variant, options.distribution, options.steps or own)
        kind = Autoencoder if options.model == "gae" else Classification
        return kind(_graph(options), setting)

    def rates(self, options: argparse.Namespace) -> tuple[float, ...]:
        return (0.01,) if options.quick else (0.005, 0.02, 0.05, 0.1)


def _graph(options: argparse.Namespace) -> Graph:
    if options.data == "sbm":
        for given, option in ((options.root, "--root"), (options.dataset, "--dataset")):
            if given is not None:
                raise InputError(f"{option} is for --data planetoid, and --data is sbm")
        return blocks.load()
    dataset = options.dataset or planetoid.DATASETS[0]
    if options.root is None:
        raise InputError(f"--data planetoid needs --root DIR, the folder of ind.{dataset}.x")
    return planetoid.load(options.root, dataset)


TASK = GraphTask()
