"""The embedded default: a stochastic block model whose documents have words and a topic.

Edges favour a node's own block, words favour a block's own topic, and each alone says too little:
what a node is shows in its neighbours' words. The same graph every time.
"""

from __future__ import annotations

import torch
from torch_geometric.utils import stochastic_blockmodel_graph

from bench.paper.graph.data import Graph

_CLASSES, _BLOCK = 5, 200  # blocks, and nodes of each
_WITHIN, _ACROSS = 3.0, 1.5  # edges of a node to its own block, and to all the others
_WORDS, _TOPIC, _LENGTH = 400, 60, 12  # the vocabulary, a topic's part of it, words drawn a node
_ON_TOPIC = 0.25  # of a node's words; the others come from the whole vocabulary
_TRAIN, _VALIDATION = 20, 300  # nodes of each class, and of all


def load() -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _draw()


def _draw() -> Graph:
    nodes = _CLASSES * _BLOCK
    within, across = _WITHIN / _BLOCK, _ACROSS / (nodes - _BLOCK)
    probability = torch.full((_CLASSES, _CLASSES), across).fill_diagonal_(within)
    edges = stochastic_blockmodel_graph([_BLOCK] * _CLASSES, probability)
    y = torch.arange(_CLASSES).repeat_interleave(_BLOCK)
    topics = torch.stack([torch.randperm(_WORDS)[:_TOPIC] for _ in range(_CLASSES)])
    anything = torch.randint(_WORDS, (nodes, _LENGTH))
    topical = topics[y].gather(1, torch.randint(_TOPIC, (nodes, _LENGTH)))
    words = torch.where(torch.rand(nodes, _LENGTH) < _ON_TOPIC, topical, anything)
    x = torch.zeros(nodes, _WORDS).scatter_(1, words, 1.0)
    blocks = [block * _BLOCK + torch.randperm(_BLOCK) for block in range(_CLASSES)]
    train = torch.cat([block[:_TRAIN] for block in blocks])
    rest = torch.cat([block[_TRAIN:] for block in blocks])
    rest = rest[torch.randperm(len(rest))]
    return Graph("sbm", x, edges, y, train, rest[:_VALIDATION], rest[_VALIDATION:])
