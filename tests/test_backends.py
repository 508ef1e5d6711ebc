"""The registry, and the conformance suite: the reference passes, and broken backends do not."""

import subprocess
import sys

import pytest
import torch

from dfa_kernels import backends, ops, testing
from dfa_kernels.backends import current
from dfa_kernels.backends.contract import Point, Repeated, distinct_rows
from dfa_kernels.backends.reference import Reference
from dfa_kernels.feedback import Feedback

CPU = torch.device("cpu")


class OnlyProjects:
    """A backend of the least kind: an optical processor, say."""

    def unavailable(self, device):
        return None if device.type == "cpu" else f"it has no {device.type}"

    def describe(self):
        return "projects only"

    def project(self, error, feedback, scale, points):
        return Reference().project(error, feedback, scale, points)


@pytest.fixture
def registered():
    names = []

    def register(backend, name="candidate"):
        backends.register(name, backend)
        names.append(name)
        return name

    yield register
    for name in names:
        backends.unregister(name)


def test_the_reference_passes_its_own_suite():
    passed = testing.check_backend("reference", "cpu")
    assert len(passed) == len(set(passed)) > 200
    for what in ("stream uniform", "layouts", "nan and inf"):
        assert what in passed


def test_a_backend_that_only_projects_passes_with_the_references_rest():
    before = list(backends.available())
    assert len(testing.check_backend(OnlyProjects())) > 200
    assert list(backends.available()) == before


# Each breaks one thing that the suite must notice, and names the check that does.
def _other_signs(self, error, feedback, scale, points):
    flipped = (
        Feedback(feedback.distribution, feedback.seed + 1) if not feedback.values else feedback
    )
    return Reference().project(error, flipped, scale, points)


def _row_off(self, error, feedback, scale, points):
    return [p.roll(1, 0) for p in Reference().project(error, feedback, scale, points)]


def _loses_a_column(self, error, feedback, scale, points):
    made = Reference().project(error, feedback, scale, points)
    for p in made:
        p[:, -1] = 0
    return made


def _spreads_nan(self, error, feedback, scale, points):
    made = Reference().project(error, feedback, scale, points)
    return [p + p.sum() * 0 for p in made]


def _restless(self, error, feedback, scale, points):
    made = Reference().project(error, feedback, scale, points)
    return [
        p * (1 + 1e-9 * torch.rand(())) if p.dtype == torch.float64 else _jitter(p) for p in made
    ]


def _jitter(p):
    return p + torch.finfo(p.dtype).eps * p.abs() * (torch.rand(p.shape) > 0.5)


def _bf16_inside(self, error, feedback, scale, points):
    coarse = error.bfloat16().to(error.dtype)
    return Reference().project(coarse, feedback, scale, points)


def _in_one_buffer(self, error, feedback, scale, points):
    made = Reference().project(error, feedback, scale, points)
    whole = torch.cat([p.flatten() for p in made]).split([p.numel() for p in made])
    return [part.view(p.shape) for part, p in zip(whole, made, strict=True)]


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_in_one_buffer, "share memory"),
        (_other_signs, "stream"),
        (_row_off, "stream"),
        (_loses_a_column, "stream"),
        (_spreads_nan, "nan and inf"),
        (_restless, "stream|project"),
        (_bf16_inside, "project"),
    ],
)
def test_a_broken_projection_fails(broken, check):
    backend = type("Broken", (OnlyProjects,), {"project": broken})()
    with pytest.raises(AssertionError, match=check):
        testing.check_backend(backend)


@pytest.mark.parametrize("what", ["dW", "db", "scale", "head"])
def test_a_broken_gradient_fails(what):
    class Broken(OnlyProjects):
        def gradients(self, error, feedback, scale, layers, dtype):
            if what == "scale":
                scale *= 1.01
            if what == "head":
                layers = [x._replace(stream=max(x.stream, 0)) for x in layers]
            made = Reference().gradients(error, feedback, scale, layers, dtype)
            if what == "dW":
                made = [(w + (w.abs().max() / 10 if w.numel() else 0), b) for w, b in made]
            if what == "db":
                made = [(w, b * 1.02) for w, b in made]
            return made

    with pytest.raises((AssertionError, RuntimeError), match=r"gradients|size"):
        testing.check_backend(Broken())


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_step_that_ignores_a_hyperparameter_fails(rule, column):
    class Broken(OnlyProjects):
        def step_(self, feedback, called, updates):
            if called == rule:
                updates = [
                    u._replace(
                        weight=u.weight._replace(hyper=_without(u.weight.hyper, column)),
                        bias=u.bias and u.bias._replace(hyper=_without(u.bias.hyper, column)),
                    )
                    for u in updates
                ]
            Reference().step_(feedback, called, updates)

    with pytest.raises(AssertionError, match=f"step_ {rule}"):
        testing.check_backend(Broken())


def _without(hyper, column):
    hyper = list(hyper)
    hyper[column] = 2.0 if column == 6 and hyper[6] > 1 else 0.5 if not hyper[column] else 0.0
    if column == 6 and hyper[6] == 0.0:
        hyper[6] = 3.0
    return tuple(hyper)


def _ignored(update):
    return update._replace(copy=None)


def _stale(update):
    if update.copy is not None:
        update.copy.copy_(update.parameter)
    return _ignored(update)


@pytest.mark.parametrize("broken", [_ignored, _stale])
@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_step_that_writes_no_copy_or_the_old_one_fails(rule, which, broken):
    class Broken(OnlyProjects):
        def step_(self, feedback, called, updates):
            if called == rule:
                updates = [
                    u._replace(**{which: broken(getattr(u, which))}) if getattr(u, which) else u
                    for u in updates
                ]
            Reference().step_(feedback, called, updates)

    with pytest.raises(AssertionError, match=f"step_ {rule} with copies.*rounded ones"):
        testing.check_backend(Broken())


def _weights_row(update, seen):
    return update._replace(bias=update.bias and update.bias._replace(hyper=update.weight.hyper))


def _first_seen(update, seen):
    def known(u):
        return u and u._replace(hyper=seen.setdefault(u.hyper.data_ptr(), u.hyper.tolist()))

    return update._replace(weight=known(update.weight), bias=known(update.bias))


def _advanced(update, seen):
    update.weight.hyper[-1] += 1
    return update


@pytest.mark.parametrize("broken", [_weights_row, _first_seen, _advanced])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_step_that_does_not_read_its_rows_in_memory_fails(rule, broken):
    """It takes a weight's for its bias; reads them once; counts the steps itself."""

    class Broken(OnlyProjects):
        def __init__(self):
            self.seen = {}

        def step_(self, feedback, called, updates):
            if called == rule and isinstance(updates[0].weight.hyper, torch.Tensor):
                updates = [broken(u, self.seen) for u in updates]
            Reference().step_(feedback, called, updates)

    with pytest.raises(AssertionError, match=f"step_ {rule} by rows in memory"):
        testing.check_backend(Broken())


def test_a_step_that_truncates_its_copies_fails():
    class Broken(OnlyProjects):
        def step_(self, feedback, rule, updates):
            Reference().step_(feedback, rule, updates)
            for u in (u for update in updates for u in update[:2] if u and u.copy is not None):
                if u.copy.dtype == torch.bfloat16:
                    upper = u.parameter.view(torch.int32) >> 16
                    u.copy.copy_(upper.to(torch.int16).view(torch.bfloat16))

    with pytest.raises(AssertionError, match="with copies.*rounded ones"):
        testing.check_backend(Broken())


@pytest.mark.parametrize(
    "broken",
    [
        "by the first batch", "steps twice", "another order", "by the first numbers",
        "by the weight's numbers",
    ],
)  # fmt: skip
def test_a_repeated_step_of_other_bits_fails(broken):
    class Broken(OnlyProjects):
        def step_(self, feedback, rule, updates):
            Reference().step_(feedback, rule, updates)

        def repeated(self, feedback, rule, updates):
            known = Repeated.of(updates)

            def run(error, inputs, saved, rows):
                if broken == "another order":
                    error = error.flip(0)
                    inputs, saved = ([t.flip(0) for t in each] for each in (inputs, saved))
                elif broken == "by the first numbers":
                    rows = distinct_rows(updates)[0]
                elif broken == "by the weight's numbers":
                    rows = rows[:1] * 2
                made = known.whole(error, inputs, saved, rows)
                if broken == "by the first batch":
                    made = [
                        new._replace(segments=old.segments)
                        for new, old in zip(made, updates, strict=True)
                    ]
                for _ in range(2 if broken == "steps twice" else 1):
                    self.step_(feedback, rule, made)

            return run

    with pytest.raises(AssertionError, match=r"step_ sgd repeated N=.*: tensor \d+, .*other bits"):
        testing.check_backend(Broken())


# The registry ---------------------------------------------------------------------------------


def test_use_names_a_backend_for_a_block(registered):
    name = registered(OnlyProjects())
    assert backends.chosen(CPU)[0] == "reference"
    with backends.use(name):
        assert backends.chosen(CPU)[0] == name
        with backends.use(None):
            assert backends.chosen(CPU)[0] == "reference"
        assert backends.chosen(CPU)[0] == name
    assert backends.chosen(CPU)[0] == "reference"


def test_an_automatic_choice_passes_over_a_backend_that_does_not_take_the_dtype(
    registered, monkeypatch
):
    name = registered(OnlyProjects())
    monkeypatch.setattr(OnlyProjects, "dtypes", frozenset({torch.float32}), raising=False)
    monkeypatch.setattr(backends, "PREFERENCE", (name, "reference"))
    assert backends.chosen(CPU, torch.float32)[0] == name
    assert backends.chosen(CPU)[0] == name
    chosen, why = backends.chosen(CPU, torch.float64)
    assert chosen == "reference"
    assert f"{name}: it does not take float64" in why


def test_the_environment_names_a_backend(registered, monkeypatch):
    name = registered(OnlyProjects())
    monkeypatch.setenv(backends.VARIABLE, name)
    assert backends.chosen(CPU) == (name, f"named by {backends.VARIABLE}")
    monkeypatch.setenv(backends.VARIABLE, "abacus")
    with pytest.raises(ValueError, match=r"unknown backend 'abacus'.*reference"):
        backends.chosen(CPU)


def test_a_named_backend_that_cannot_run_raises(registered):
    name = registered(OnlyProjects())
    with (
        backends.use(name),
        pytest.raises(RuntimeError, match="cannot run on meta: it has no meta"),
    ):
        ops.project(torch.ones(2, 3, device="meta"), Feedback(), 1.0, [])


def test_available_says_why_not(registered):
    name = registered(OnlyProjects())
    here = backends.available("cpu")
    assert here["reference"] is None and here[name] is None
    assert here["triton"] in (
        "Triton is not installed (pip install triton)",
        "it runs on CUDA and ROCm devices, not on cpu",
    )
    assert backends.available("meta")[name] == "it has no meta"


def test_bad_registrations_are_refused(registered):
    name = registered(OnlyProjects())
    with pytest.raises(ValueError, match="'candidate' is registered already"):
        backends.register(name, OnlyProjects())
    with pytest.raises(TypeError, match="must offer project"):
        backends.register("other", object())
    with pytest.raises(ValueError, match="unknown backend 'abacus'"):
        backends.use("abacus")
    with pytest.raises(ValueError, match="cannot be unregistered"):
        backends.unregister("reference")


def test_unregistering_the_backend_in_use_goes_back_to_automatic():
    backends.register("candidate", OnlyProjects())
    backends.use("candidate")
    backends.unregister("candidate")
    assert backends.chosen(CPU)[0] == "reference"


def test_what_a_backend_lacks_comes_from_the_reference(registered):
    with backends.use(registered(OnlyProjects())):
        assert backends.function("gradients", CPU).__self__ is backends.get("reference")
        assert isinstance(backends.function("project", CPU).__self__, OnlyProjects)


# The reference's cache of B -------------------------------------------------------------------


def test_the_reference_keeps_the_widest_matrix_and_counts_its_bytes():
    reference = Reference()
    error = torch.randn(2, 5)
    for width, held in ((10, 10), (30, 30), (20, 30)):
        reference.project(error, Feedback(), 1.0, [Point(width, 0, 1, torch.float32)])
        assert reference.matrices.bytes() == 5 * held * 4
    reference.matrices.limit = 100
    reference.project(error, Feedback(seed=1), 1.0, [Point(40, 0, 1, torch.float32)])
    assert reference.matrices.bytes() == 5 * 40 * 4  # the older one went; the one in use stays
    reference.matrices.clear()
    assert reference.matrices.bytes() == 0


@pytest.mark.parametrize("distribution", ["rademacher", "uniform", "normal"])
def test_a_large_matrix_is_kept_small_and_gives_the_same_product(distribution, monkeypatch):
    error, feedback = torch.randn(7, 301), Feedback(distribution)
    point = Point(17, 0, 1, torch.float32)
    (whole,) = Reference().project(error, feedback, 0.3, [point])
    monkeypatch.setattr("dfa_kernels.backends.reference._COMPACT", 17 * 4 * 300)
    monkeypatch.setattr("dfa_kernels.backends.reference._SLAB", 17 * 4 * 100)
    reference = Reference()
    (sliced,) = reference.project(error, feedback, 0.3, [point])
    held = {"rademacher": 1, "uniform": 2, "normal": 4}[distribution]
    assert reference.matrices.bytes() == 301 * 17 * held
    torch.testing.assert_close(sliced, whole, rtol=1e-5, atol=1e-5)


def test_importing_the_package_needs_torch_alone():
    """Neither numpy nor any extra, and no compiler: torch's own are imported on demand."""
    code = (
        "import sys, torch; before = set(sys.modules); import dfa_kernels\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "new -= {'dfa_kernels', 'torch', *sys.stdlib_module_names}\n"
        "assert not new, new\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["triton", "cuda", "triton+cuda"])
def test_a_gpu_that_is_not_there_is_a_reason(name, monkeypatch):
    """Not torch's own complaint, whatever this build of it knows."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.available("cuda")[name] is not None
    assert current.absent(torch.device("cuda")) == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert current.absent(torch.device("cuda", 1)) is None
    assert current.absent(torch.device("cuda", 2)) == "there is no cuda:2: torch sees 2"
