"""From a Chrome trace to the time of every part: whose each operation and kernel is."""

import json

import pytest
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from dfa_kernels.profiling import trace
from dfa_kernels.profiling.options import Options
from dfa_kernels.profiling.ranges import Range, watched
from dfa_kernels.profiling.subject import Subject, factory_of
from dfa_kernels.throughput.networks import Shape


def event(name, start, duration, category="cpu_op", thread=1, **arguments):
    named = {key.replace("_", " "): value for key, value in arguments.items()}
    return {
        "ph": "X", "name": name, "cat": category, "pid": 7, "tid": thread, "ts": start,
        "dur": duration, "args": named,
    }  # fmt: skip


def range_(name, start, duration, thread=1):
    return event(f"dfa/{name}", start, duration, "user_annotation", thread)


def sequence(number, forward=0):
    return {"Sequence_number": number, "Fwd_thread_id": forward}


STEP = [
    range_("step", 0, 1000),
    range_("forward", 10, 300),
    range_("forward/hidden", 20, 200),
    event("aten::linear", 30, 100, **sequence(5)),
    event("aten::addmm", 40, 60, **sequence(6)),
    event("aten::tanh", 150, 50, **sequence(7)),
    range_("error", 320, 60),
    event("aten::cross_entropy_loss", 330, 40, **sequence(8)),
    range_("backward", 400, 300),
    event("autograd::engine::evaluate_function: NllLossBackward0", 405, 30, **sequence(8, 1)),
    event("NllLossBackward0", 406, 28, **sequence(8, 1)),
    event("aten::nll_loss_backward", 410, 20),
    event("autograd::engine::evaluate_function: AddmmBackward0", 440, 60, **sequence(6, 1)),
    event("aten::mm", 450, 40),
    event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 510, 20),
    event("aten::detach", 512, 5),
    range_("update", 550, 100),
    range_("projection/hidden", 555, 30),
    event("aten::addmm", 560, 20),
    range_("update/hidden", 590, 50),
    event("aten::addmm_", 600, 30),
    range_("optimizer", 720, 100),
    event("Optimizer.step#SGD.step", 725, 90, "user_annotation"),
    event("aten::_fused_sgd_", 730, 70),
]


def of(events):
    (step,) = trace.steps({"traceEvents": events})
    return {unit: round(ms * 1e3, 6) for unit, ms in step.ms.items() if ms}


def test_every_operation_has_a_part_and_a_layer():
    assert of(STEP) == {
        ("forward", "hidden"): 150,  # nested operations count once
        ("error", ""): 40 + 20,  # and autograd's, by the node that the loss made
        ("backward", "hidden"): 40,
        ("backward", ""): 5,
        ("projection", "hidden"): 20,
        ("update", "hidden"): 30,
        ("optimizer", ""): 70,
    }


def test_the_order_of_events_does_not_matter():
    assert of(STEP[::-1]) == of(STEP)


def test_two_steps_are_apart_and_what_is_outside_of_them_is_nobodys():
    later = [{**e, "ts": e["ts"] + 5000} for e in STEP]
    stray = event("aten::mm", 3000, 500)
    first, second = trace.steps({"traceEvents": [*later, stray, *STEP]})
    assert first.ms == pytest.approx(second.ms) and first.whole == second.whole == 1.0
    assert first.busy == pytest.approx(0.375)
    assert first.part("update") == pytest.approx(0.03)


def test_the_last_operation_of_a_sequence_number_made_its_node():
    """Those before it only saw the next number: here a layer that makes no node."""
    events = [
        range_("step", 0, 100),
        range_("forward", 0, 50),
        range_("forward/frozen", 1, 10),
        event("aten::linear", 2, 5, **sequence(9)),
        range_("forward/head", 20, 10),
        event("aten::linear", 22, 5, **sequence(9)),
        range_("backward", 60, 30),
        event("autograd::engine::evaluate_function: AddmmBackward0", 61, 20, **sequence(9, 1)),
        event("aten::mm", 62, 10),
    ]
    assert of(events)["backward", "head"] == 10


def test_a_kernel_belongs_where_it_was_launched():
    """On a GPU: other threads, later times; host operations are not counted."""
    events = [
        range_("step", 0, 100),
        range_("forward", 5, 20),
        range_("forward/hidden", 6, 18),
        event("aten::addmm", 7, 10, **sequence(3)),
        event("cudaLaunchKernel", 9, 2, "cuda_runtime", correlation=11),
        range_("backward", 30, 60),
        event("autograd::engine::evaluate_function: AddmmBackward0", 32, 9, thread=2,
              **sequence(3, 1)),
        event("cudaLaunchKernel", 34, 2, "cuda_runtime", thread=2, correlation=12),
        range_("update#update_kernel", 50, 20, thread=2),
        event("cuLaunchKernelEx", 52, 3, "cuda_driver", thread=2, correlation=13),
        event("gemm", 200, 40, "kernel", thread=77, correlation=11),
        event("gemm", 240, 30, "kernel", thread=77, correlation=12),
        event("update_kernel", 270, 25, "kernel", thread=77, correlation=13),
        event("dfa/forward", 200, 40, "gpu_user_annotation", thread=77),
        event("lost", 400, 99, "kernel", thread=77, correlation=99),
    ]  # fmt: skip
    assert of(events) == {
        ("forward", "hidden"): 40,
        ("backward", "hidden"): 30,
        ("update", ""): 25,
    }
    (step,) = trace.steps({"traceEvents": events})
    assert step.whole == pytest.approx(0.295)  # to the end of the last kernel


def test_a_grouped_backends_kernel_on_a_cpu_is_an_operation():
    events = [
        range_("step", 0, 100),
        range_("optimizer", 10, 80),
        range_("update", 20, 60),
        range_("projection#project", 25, 10),
        range_("update#update", 40, 30),
        event("aten::empty", 41, 2),
    ]
    assert of(events) == {("projection", ""): 10, ("update", ""): 30}


def test_what_torch_compiled_is_an_operation():
    region = event("Torch-Compiled Region: 0/0", 12, 20)
    assert of([range_("step", 0, 100), range_("forward", 10, 40), region]) == {("forward", ""): 20}


@pytest.mark.parametrize(
    "name", ["dfa/update/a.b#k", "dfa/update", "dfa/forward/x", "dfa/update#k"]
)
def test_a_ranges_name_is_read_back(name):
    assert str(Range.read(name)) == name
    assert Range.read(name[1:]) is None


def test_no_name_of_the_machine_is_kept(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": [], "host_name": "box", "traceName": "/home/me"}))
    assert trace.load(path) == {"traceEvents": []}


def test_a_trace_of_torchs_own(tmp_path):
    """What torch writes today is what is read here: names, categories and arguments."""
    options = Options(shape=Shape(3, 2, 5, 4), method=("bp",), device="cpu")
    subject = Subject(options, "bp", factory_of(options))
    with watched(subject), profiler(activities=[ProfilerActivity.CPU]) as watch:
        subject.step()
        subject.step()
    watch.export_chrome_trace(str(tmp_path / "trace.json"))
    steps = trace.steps(trace.load(tmp_path / "trace.json"))
    assert len(steps) == 2
    layers = {"hidden1", "activation1", "hidden2", "activation2", "output"}
    for step in steps:
        assert {layer for part, layer in step.ms if part == "forward"} >= layers
        assert {layer for part, layer in step.ms if part == "backward"} >= layers
        assert step.part("error") > 0 and step.part("optimizer") > 0
        assert 0 < step.busy < step.whole
        assert all(s.start >= 0 and s.start + s.ms <= 1.01 * step.whole for s in step.spans)
