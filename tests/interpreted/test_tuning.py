"""Tiles by trial: a step is taken once, the trial is made once, and nothing about the file can
break a training."""

import json

import pytest
import torch
from oracle import check_gradients, check_project, head, record, stepped, tensors

from dfa_kernels import ops
from dfa_kernels.backends import get
from dfa_kernels.backends.contract import Point, Segment
from dfa_kernels.backends.triton import candidates, rules, tuning
from dfa_kernels.feedback import Feedback

FILE = "triton-tiles.json"


class Stopwatch:
    """Runs three times what it is to time; the fastest are tiles of ``n`` rows, and ``broken``
    tiles cannot be started."""

    def __init__(self, n=16, broken=()):
        self.n, self.broken, self.timed = n, broken, []

    def __call__(self, run, device):
        n = run.args[0].constants.n.value
        self.timed.append(n)
        if n in self.broken:
            run()  # as far as it comes
            raise RuntimeError("out of resource: shared memory")
        for _ in range(3):
            run()
        return float(n != self.n)


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """Ask for trials of three candidates: of the default's rows, 16 and 32."""

    def few(default, *_):
        return [default, *(default._replace(n=n) for n in (16, 32) if n != default.n)]

    def ask(stopwatch=None, folder=tmp_path):
        made = stopwatch or Stopwatch()
        monkeypatch.setattr(tuning, "ENABLED", True)
        monkeypatch.setattr(tuning, "timer", made)
        monkeypatch.setattr(tuning, "kept", tuning.Kept())
        monkeypatch.setattr(tuning, "_settled", {})
        monkeypatch.setenv(tuning.FOLDER, str(folder))
        tuning._warn.cache_clear()
        return made

    monkeypatch.setattr(candidates, "update", few)
    monkeypatch.setattr(candidates, "project", few)
    monkeypatch.setenv(rules.VARIABLE, rules.ON_THE_FLY)  # one launch, unless a test asks for two
    ask.file = tmp_path / FILE
    return ask


def updates(rule):
    torch.manual_seed(1)
    error = torch.randn(70, 5)
    layers = [record(70, 9, 12), record(70, 12, 8, "gelu"), head(error, 8)]
    return [stepped(rule, [Segment(error, 0.1, x)] * 2) for x in layers]


def step(rule):
    """Parameters and states after one step."""
    given = updates(rule)
    ops.step_(Feedback(seed=3), rule, given)
    return tensors(given)


def equal(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("n", [16, 32])
def test_a_step_is_taken_once_by_the_tiles_that_were_chosen(rule, n, tune, either_delta, launched):
    picked = {k: getattr(rules, f"{k}_tiles") for k in ("project", "update")}
    with pytest.MonkeyPatch.context() as patched:
        for kernel, pick in picked.items():
            chosen = lambda *given, pick=pick: pick(*given)._replace(n=n)  # noqa: E731
            patched.setattr(rules, f"{kernel}_tiles", chosen)
        wanted = step(rule)
    assert not equal(wanted, tensors(updates(rule)))
    stopwatch = tune(Stopwatch(n))
    assert equal(step(rule), wanted)
    kernels = 1 if either_delta == rules.ON_THE_FLY else 2
    assert len(set(stopwatch.timed)) > 1
    assert len(json.loads(tune.file.read_text())) == kernels
    assert equal(step(rule), wanted)  # by what is known now
    assert [x.constants.n.value for x in launched[-kernels:]] == [n] * kernels


def test_a_shape_class_is_tried_once_and_never_again(tune, launched):
    first = tune()
    step("sgd")
    assert len(first.timed) == len(set(first.timed)) > 1
    step("sgd")
    assert len(first.timed) == len(set(first.timed))
    assert launched[-1].trial is None
    again = tune()  # a process that finds the file
    step("sgd")
    assert again.timed == []
    assert launched[-1].constants.n.value == 16
    step("adamw")
    assert again.timed != []


def test_projections_and_gradients_are_right_by_any_tiles(tune):
    stopwatch = tune(Stopwatch(32))
    error = torch.randn(70, 5)
    check_gradients(error, Feedback(), 0.1, [record(70, 9, 12), head(error, 12)])
    check_project(error, Feedback(), 0.1, [Point(12, 0, 2, torch.float32)])
    assert len(stopwatch.timed) >= 4


def test_without_being_asked_nothing_is_tried(tune, monkeypatch, launched):
    stopwatch = tune()
    monkeypatch.setattr(tuning, "ENABLED", False)
    step("sgd")
    assert stopwatch.timed == []
    assert all(x.trial is None for x in launched)
    assert not tune.file.exists()


def test_what_cannot_be_started_is_passed_over_and_leaves_no_trace(tune):
    tune(Stopwatch(32))
    wanted = step("sgd")
    stopwatch = tune(Stopwatch(16, broken=(16,)), folder=tune.file.parent / "other")
    stopwatch.n = 32
    assert equal(step("sgd"), wanted)
    assert 16 in stopwatch.timed


def test_where_nothing_can_be_tried_the_default_is_started(tune, monkeypatch):
    wanted = step("sgd")
    tune(Stopwatch(broken=range(1000)))
    assert equal(step("sgd"), wanted)
    assert not tune.file.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '{"a": 3}', '{"a": {"n": 1}}', '{"a": {"rows": 1}}', "\x00\xff"]
)
def test_a_broken_file_is_replaced(content, tune):
    tune.file.write_text(content)
    stopwatch = tune()
    step("sgd")
    assert stopwatch.timed
    assert len(json.loads(tune.file.read_text())) == 1
    assert tune().timed == []


def test_tiles_that_are_no_candidates_are_tried_again(tune):
    tune()
    step("sgd")
    ((key, entry),) = json.loads(tune.file.read_text()).items()
    assert key.startswith("cpu; triton ")
    tune.file.write_text(json.dumps({key: {**entry, "n": 1024}}))
    stopwatch = tune()
    step("sgd")
    assert stopwatch.timed
    assert json.loads(tune.file.read_text())[key] == entry


def test_a_folder_that_cannot_be_written_costs_a_sentence(tune, tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    stopwatch = tune(folder=blocked)
    with pytest.warns(
        RuntimeWarning, match="tuned tiles are not kept for the next process"
    ) as told:
        step("sgd")
        step("adamw")
    assert sum("not kept" in str(w.message) for w in told) == 1  # numpy may say more
    timed = len(stopwatch.timed)
    step("sgd")
    assert len(stopwatch.timed) == timed  # this process knows


def test_what_another_process_wrote_stays(tune):
    tune()
    first, second = tuning.Kept(), tuning.Kept()
    tiles = rules.update_tiles(
        rules.device_of(torch.device("cpu")), True, False, False, True, [(8, 8)]
    )
    assert first.get("a") is second.get("b") is None
    first.put("a", tiles)
    second.put("b", tiles)
    assert set(json.loads(tune.file.read_text())) == {"a", "b"}
    assert first.get("a") == second.get("a") == tiles
    assert [f.name for f in tune.file.parent.iterdir()] == [FILE]


def test_without_memory_for_a_trial_the_default_is_started(tune, monkeypatch, launched):
    wanted = step("sgd")
    stopwatch = tune()

    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patched:
        given = updates("sgd")
        patched.setattr(torch.Tensor, "clone", fail)
        with pytest.warns(RuntimeWarning, match=r"no memory to try tiles in: [\d,]+ bytes"):
            ops.step_(Feedback(seed=3), "sgd", given)
    assert equal(tensors(given), wanted)
    assert stopwatch.timed == []


def test_a_capture_tries_nothing(tune, monkeypatch, launched):
    tune()
    step("sgd")
    launch = launched[0]
    assert launch.trial is not None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    prepared = []
    assert tuning.fastest(launch, torch.device("cuda"), prepared.append) is launch
    assert prepared == []


def test_info_says_so(tune, monkeypatch):
    monkeypatch.setattr(tuning, "ENABLED", False)
    assert "tiles by rule (DFA_KERNELS_TRITON_TUNE=1 tries others)" in get("triton").describe()
    tune()
    assert f"tiles by trial (DFA_KERNELS_TRITON_TUNE), kept in {tune.file}" in (
        get("triton").describe()
    )


def test_the_file_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv(tuning.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.file() == tmp_path / "dfa_kernels" / FILE
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuning.file() == tmp_path / "home" / ".cache" / "dfa_kernels" / FILE


def test_sizes_are_rounded_up():
    assert tuning.rounded(0, 1, 2, 3, 4096, 4097) == (1, 1, 2, 4, 4096, 8192)


DEVICE = rules.Device("cuda", 90, 132)
DEFAULTS = [
    (candidates.update, rules.update_tiles(DEVICE, half, False, fly, True, [(4096, 4096)]), (half,))
    for half in (True, False)
    for fly in (True, False)
] + [
    (candidates.project, rules.project_tiles(DEVICE, half, False, True, 8192, 4096, e), (half, e))
    for half in (True, False)
    for e in (1, 10, 512)
]


@pytest.mark.parametrize(("make", "default", "given"), DEFAULTS)
def test_candidates(make, default, given):
    found = list(make(default, *given))
    assert found[0] == default
    assert 3 <= len(found) == len(set(found)) <= 40
    for tiles in found:
        assert tiles.n <= 128 and tiles.d == default.d and tiles.k <= 256
        assert all(v & (v - 1) == 0 for v in (tiles.n, tiles.k, tiles.warps))
        assert tiles.k >= 16


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_timer_takes_the_median(kind, monkeypatch):
    times = iter([9.0, 1.0, 2.0, 3.0, 8.0, 7.0, 4.0])
    ran = []

    class Event:
        def __init__(self, enable_timing):
            pass

        record = synchronize = lambda self: None

        def elapsed_time(self, end):
            return next(times)

    clock = iter(t for end in [9e-3, 1e-3, 2e-3, 3e-3, 8e-3, 7e-3, 4e-3] for t in (0.0, end))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(clock))
    assert tuning.on_device(lambda: ran.append(1), torch.device(kind)) == pytest.approx(4.0)
    assert len(ran) == 8
