"""What must hold and is no time: nothing kept for the feedback, the same bits in every run."""

from __future__ import annotations

import gc
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfa_kernels as dfa
from bench.gpu.context import Context
from bench.gpu.rows import fact
from dfa_kernels import ops
from dfa_kernels.backends.contract import HEAD, Layer, LayerUpdate, Segment, Update
from dfa_kernels.feedback import Feedback
from dfa_kernels.throughput.timing import graphed

#: Tables of pointers are kept between steps: as many bytes are not the feedback's.
TABLES = 1 << 16


class Held(NamedTuple):
    """Bytes after a step that were not there before; the most during it beside its results and
    stored δ; and whether some tensor is as large as B."""

    after: int
    during: int
    matrix: bool


def measure(context: Context) -> None:
    runs = context.pick(100, 3)
    context.emit(fact(f"of {runs} runs the same bits", equal_runs(context.device, runs), runs))
    if context.device.type != "cuda":
        return
    held = feedback_bytes(context.device)
    kept = 0 if held.after <= TABLES and not held.matrix else held.after
    context.emit(fact("memory held for feedback", kept, 0, "bytes"))
    context.emit(fact("memory held after a step, tables of pointers", held.after, unit="bytes"))
    context.emit(fact("memory in use during a step, beyond δ", held.during, unit="bytes"))
    apart = replayed(context.device)
    context.emit(fact("replayed AdamW steps, furthest from the same ones in turn", apart, 0.0))


def feedback_bytes(device: torch.device, error_width: int = 4096, width: int = 4096) -> Held:
    """Of the allocator, around a second step of layers with a B of (4096, 4096)."""
    rows, feedback = 64, Feedback(seed=7)
    error, layers = network(device, torch.bfloat16, rows, error_width, [width] * 3)
    updates = updates_of(error, layers)

    def step() -> None:
        ops.step_(feedback, "adamw", updates)

    step()
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    fresh = Feedback(seed=8)  # a B that nobody has seen
    ops.step_(fresh, "adamw", updates)
    torch.cuda.synchronize(device)
    delta = sum(x.saved.numel() * x.saved.itemsize for x in layers if x.stream != HEAD)
    during = torch.cuda.max_memory_allocated(device) - before - delta
    gc.collect()
    after = torch.cuda.memory_allocated(device) - before
    return Held(after, max(0, during), _is_there(error_width, width, updates, layers))


def _is_there(height: int, width: int, updates: list[LayerUpdate], layers: list[Layer]) -> bool:
    """Whether a tensor of B's shape exists that is no parameter, state or record."""
    known = {id(t) for u in updates for a in u[:2] if a for t in (a.parameter, *a.states)}
    known |= {id(t) for layer in layers for t in (layer.inputs, layer.saved)}
    return any(
        # not isinstance, which asks the object: a weak proxy whose object is gone raises
        type(t) is Tensor and t.is_cuda and t.numel() >= height * width and id(t) not in known
        for t in gc.get_objects()
    )


def equal_runs(device: torch.device, runs: int) -> int:
    """How many of ``runs`` gave the bits of the first: gradients whose sum over N is split, and a
    step of AdamW in mixed precision."""
    tiny = device.type != "cuda"
    rows, width = (64, 16) if tiny else (50_000, 256)
    error, layers = network(device, torch.bfloat16, rows, 10, [width] * 3)
    feedback = Feedback(seed=3)
    first: list[Tensor] = []
    equal = 0
    for _ in range(runs):
        updates = updates_of(error, layers)
        ops.step_(feedback, "adamw", updates)
        made = ops.gradients(error, feedback, 0.1, layers, torch.float32)
        found = [t for pair in made for t in pair]
        found += [t for u in updates for a in u[:2] if a for t in (a.parameter, *a.states)]
        first = first or found
        equal += all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
    return equal


def replayed(device: torch.device, steps: int = 8) -> float:
    """The largest difference between the weights after steps of AdamW on bf16 weights with masters,
    replayed from a CUDA graph, and after the same ones in turn; the rate is halved on the way."""
    made: list[list[Tensor]] = []
    for wrap, warmed in ((graphed, 5), (lambda step: step, 0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(96, 160), nn.Tanh(), nn.Linear(160, 10))
        net = dfa.DFA(dfa.fuse(model).to(device, torch.bfloat16))
        rate = torch.tensor(1e-3, device=device)
        optimizer = dfa.optim.AdamW(net, lr=rate, master_weights=True, capturable=True)
        x = torch.randn(128, 96, device=device, dtype=torch.bfloat16)
        y = torch.randint(10, (128,), device=device)
        run = wrap(partial(_step, net, optimizer, x, y))
        for i in range(steps - warmed):
            if i == steps - warmed - 2:
                rate.mul_(0.5)
            run()
        made.append([state["master"].clone() for state in optimizer.state.values()])
    return max((a - b).abs().max().item() for a, b in zip(*made, strict=True))


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(x).float(), y).backward()
    optimizer.step()


def network(
    device: torch.device, dtype: torch.dtype, rows: int, error_width: int, widths: list[int]
) -> tuple[Tensor, list[Layer]]:
    """An error, and the records of tanh layers and a head."""
    torch.manual_seed(0)
    error = torch.randn(rows, error_width, device=device, dtype=dtype)
    layers, x = [], torch.randn(rows, widths[0], device=device, dtype=dtype)
    for width in widths:
        h = torch.randn(rows, width, device=device, dtype=dtype).tanh_()
        layers.append(Layer(x, h, "tanh", 0, 1))
        x = h
    return error, [*layers, Layer(x, error.clone(), "identity", HEAD, 1)]


def updates_of(error: Tensor, layers: list[Layer]) -> list[LayerUpdate]:
    """fp32 parameters and AdamW's states, the same in each call."""
    generator = torch.Generator(error.device).manual_seed(1)

    def fresh(*shape: int) -> Update:
        made = [torch.rand(shape, generator=generator, device=error.device) for _ in range(3)]
        return Update(made[0], (made[1], made[2]), (1e-3, 0.9, 0.999, 1e-8, 0.01, 0.0, 3.0))

    return [
        LayerUpdate(
            fresh(x.saved.shape[1], x.inputs.shape[1]),
            fresh(x.saved.shape[1]),
            [Segment(error, 0.1, x)],
        )
        for x in layers
    ]
