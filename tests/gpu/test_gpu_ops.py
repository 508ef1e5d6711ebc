"""The three operations on the device: as torch ops, in graphs, in streams, again."""

import torch
from gpu_cases import BACKENDS, DEVICE, on_gpu, over, pick, use
from torch.library import opcheck

from bench.gpu import sanitized
from bench.gpu.promises import TABLES, equal_runs, feedback_bytes, network, updates_of
from dfa_kernels import ops
from dfa_kernels.activation import CODES
from dfa_kernels.backends.contract import RULES, Point
from dfa_kernels.feedback import Feedback

FEEDBACK = Feedback(seed=3)


@over([torch.float32, torch.bfloat16])
def test_project_passes_opcheck(case):
    error = torch.randn(6, 5, device=DEVICE, dtype=case)
    args = (error, None, "rademacher", 3, 0.5, [9, 4, 4], [0, 0, 0], [1, 2, 1], [0, 1, 0])
    opcheck(torch.ops.dfa_kernels.project, args)


@over([torch.float32, torch.bfloat16])
def test_gradients_passes_opcheck(case):
    error, layers = network(DEVICE, case, 6, 5, [7, 4])
    args = (error, None, "uniform", 3, 0.5, *_lists(layers), torch.float32)
    opcheck(torch.ops.dfa_kernels.gradients, args)


@over([(rule, memory) for rule in RULES for memory in (False, True)])
def test_step_passes_opcheck(case):
    rule, in_memory = case
    error, layers = network(DEVICE, torch.float32, 6, 5, [7])
    shapes = [(x.saved.shape[1], x.inputs.shape[1]) for x in layers]
    parameters = [torch.randn(s, device=DEVICE) for s in shapes]
    parameters.append(torch.randn(shapes[0][0], device=DEVICE))
    states = [torch.rand_like(p) for p in parameters for _ in RULES[rule].states]
    copies = [p.bfloat16() for p in parameters[:1]]
    hyper = torch.full((3, len(RULES[rule].hyper)), 0.5, dtype=torch.float64)
    args = (
        parameters, states, copies, [True, False, False], hyper.to(DEVICE if in_memory else "cpu"),
        in_memory, rule, [True, False], [1, 1], [error], None, "rademacher", 3, [0, 0], [0.1, 0.1],
        *_lists(layers),
    )  # fmt: skip
    opcheck(torch.ops.dfa_kernels.step_, args)


def _lists(layers):
    return (
        [x.inputs for x in layers],
        [x.saved for x in layers],
        [CODES[x.activation] for x in layers],
        [x.stream for x in layers],
        [x.rows for x in layers],
    )


@over(BACKENDS)
@on_gpu
def test_a_graph_replays_what_eager_calls_give(case):
    """Twice, with new data the second time; the gradients' sum over N is split."""
    with use(case):
        _replays_calls()


def _replays_calls():
    error, layers = network(DEVICE, torch.bfloat16, 5000, 10, [256, 264])
    points = [Point(256, 0, 1, torch.bfloat16), Point(100, 1, 1, torch.float32)]

    def run():
        made = ops.project(error, FEEDBACK, 0.1, points)
        pairs = ops.gradients(error, FEEDBACK, 0.1, layers, torch.float32)
        return [*made, *(t for pair in pairs for t in pair)]

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(2):
        for t in (error, *(x.inputs for x in layers)):
            t.normal_()
        wanted = run()
        for t in captured:
            t.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, wanted, strict=True))


@over(BACKENDS)
@on_gpu
def test_a_graph_of_a_step_replays_what_eager_steps_do(case):
    with use(case):
        _replays_steps()


def _replays_steps():
    error, layers = network(DEVICE, torch.bfloat16, 300, 10, [256, 264])
    graphed, eager = updates_of(error, layers), updates_of(error, layers)
    for updates in (graphed, eager):
        ops.step_(FEEDBACK, "adamw", updates)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.step_(FEEDBACK, "adamw", graphed)
    for _ in range(3):
        graph.replay()
        ops.step_(FEEDBACK, "adamw", eager)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(_held(graphed), _held(eager), strict=True))


def _held(updates):
    both = [a for u in updates for a in (u.weight, u.bias)]
    return [t for a in both for t in (a.parameter, *a.states)]


@over(BACKENDS)
@on_gpu
def test_two_streams_at_once_give_what_one_gives(case):
    """Many calls in flight on both: neither may use what is the other's."""
    with use(case):
        _streams_agree()


def _streams_agree():
    error, layers = network(DEVICE, torch.bfloat16, 20_000, 10, [256] * 3)
    other_error, other_layers = network(DEVICE, torch.bfloat16, 30_000, 10, [128] * 4)
    other_error.mul_(2)
    cases = [(error, layers), (other_error, other_layers)]
    wanted = [ops.gradients(e, FEEDBACK, 0.1, x, torch.float32) for e, x in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    made = [[], []]
    for _ in range(20):
        for stream, (e, x), results in zip(streams, cases, made, strict=True):
            with torch.cuda.stream(stream):
                results.append(ops.gradients(e, FEEDBACK, 0.1, x, torch.float32))
    torch.cuda.synchronize()
    for results, right in zip(made, wanted, strict=True):
        for result in results:
            for pair, wanted_pair in zip(result, right, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(pair, wanted_pair, strict=True))


def test_a_hundred_runs_give_the_same_bits():
    runs = pick(100, 2)
    assert equal_runs(DEVICE, runs) == runs


@on_gpu
def test_the_case_for_compute_sanitizer():
    """Here it also compiles what compute-sanitizer would otherwise have to wait for."""
    sanitized.main()


@on_gpu
def test_nothing_is_held_for_feedback():
    held = feedback_bytes(DEVICE)
    assert held.after <= TABLES, f"{held.after} bytes are held after a step"
    # B in one byte an entry would be 16 MB; descriptors of bulk copies are a few hundred a program
    assert held.during <= 4 << 20, f"{held.during} bytes beside δ are in use during a step"
    assert not held.matrix, "a tensor as large as B exists"
