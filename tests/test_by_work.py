"""Two backends as one: which of them runs a call, and that it is given what it must be."""

import re
from pathlib import Path

import pytest
import torch

from dfa_kernels import backends
from dfa_kernels.backends import by_work
from dfa_kernels.backends.by_work import AGAIN, HOST, ByWork
from dfa_kernels.backends.contract import Layer, LayerUpdate, Point, Segment, Update
from dfa_kernels.backends.cuda import rules
from dfa_kernels.feedback import Feedback

CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[1] / "bench/results"


class Noting:
    """A backend that notes what it was given."""

    dtypes = frozenset({torch.float32, torch.bfloat16})
    reason = None

    def __init__(self, prepares=True):
        self.seen, self.prepares = [], prepares

    def unavailable(self, device):
        return self.reason

    def describe(self):
        return "it notes"

    def project(self, *given):
        self.seen.append(("project", *given))
        return "projected"

    def gradients(self, *given):
        self.seen.append(("gradients", *given))
        return "gradients"

    def step_(self, *given):
        self.seen.append(("step_", *given))

    def repeated(self, *given):
        if not self.prepares:
            return None
        return lambda *later: self.seen.append(("repeated", *later))

    @property
    def asked(self):
        return [name for name, *_ in self.seen]


@pytest.fixture
def pair(monkeypatch):
    """On a device of 100 multiprocessors."""
    monkeypatch.setattr(rules, "device_of", lambda _: rules.Device(0, 100))
    light, heavy = Noting(), Noting()
    return ByWork(("light", light), ("heavy", heavy)), light, heavy


def layer(rows, width, height, dtype=torch.bfloat16, k=1):
    x, h = torch.empty(rows, width, dtype=dtype), torch.empty(rows, height, dtype=dtype)
    return Layer(x, h, "relu", 0, k)


def update(layers, dtype=torch.float32):
    """Of one weight, with a segment for each of the layers."""
    x, h, *_ = layers[0]
    weight = torch.empty(h.shape[1], x.shape[1], dtype=dtype)
    error = torch.empty(x.shape[0], 10, dtype=x.dtype)
    own = Update(weight, (weight, weight), (0.1,) * 7)
    return LayerUpdate(own, None, [Segment(error, 0.1, each) for each in layers])


def calls(both, rows, width, dtype=torch.bfloat16):
    """Each of the three with 8 layers of one width."""
    layers = [layer(rows, width, width, dtype)] * 8
    error = torch.empty(rows, 10, dtype=dtype)
    yield lambda: both.project(error, Feedback(), 0.1, [Point(width, 0, 1, dtype)] * 8)
    yield lambda: both.gradients(error, Feedback(), 0.1, layers, torch.float32)
    yield lambda: both.step_(Feedback(), "adamw", [update([each]) for each in layers])


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "light"),
    [
        (256, 256, torch.bfloat16, True),
        (128, 64, torch.float32, True),
        (1, 1, torch.float32, True),
        (8192, 4096, torch.bfloat16, False),
        (65536, 1024, torch.bfloat16, False),
        (16384, 4096, torch.float32, False),
    ],
)
def test_small_networks_are_light_and_large_ones_heavy(pair, rows, width, dtype, light):
    both, *_ = pair
    # Of nothing but their shapes.
    with torch.device("meta"):
        for call in calls(both, rows, width, dtype):
            call()
    took, other = pair[1:] if light else pair[:0:-1]
    assert took.asked == ["project", "gradients", "step_"]
    assert other.asked == []


def test_what_is_given_and_returned_is_the_others(pair):
    both, light, _ = pair
    error, feedback, points = torch.ones(3, 2), Feedback(), [Point(4, 0, 1, torch.float32)]
    assert both.project(error, feedback, 0.5, points) == "projected"
    assert both.gradients(error, feedback, 0.5, [], torch.float32) == "gradients"
    assert light.seen == [
        ("project", error, feedback, 0.5, points),
        ("gradients", error, feedback, 0.5, [], torch.float32),
    ]


def seconds(flops, bytes_, rate):
    return flops / (100 * rate) + bytes_ / (100 * by_work.BYTES)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_work_is_that_of_a_roofline(pair, dtype, tf32, allow_tf32):
    """At the batch where it passes HOST the other one is taken."""
    allow_tf32(tf32)
    rate = by_work.HALF if dtype == torch.bfloat16 else by_work.TF32 if tf32 else by_work.FULL
    size = dtype.itemsize
    width, height = 300, 500

    def step(rows):
        return seconds(2 * rows * width * height, rows * (width + height) * size, rate) + seconds(
            0, width * height * 4 * 2 * 3, rate
        )

    def projection(rows):
        return seconds(2 * rows * 10 * height, rows * height * size, rate)

    for work in (step, projection):
        low, high = 1, 1 << 24
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if work(middle) >= HOST else (middle, high)
        for rows in (low, high):
            light, heavy = Noting(), Noting()
            both = ByWork(("l", light), ("h", heavy))
            with torch.device("meta"):
                if work is step:
                    both.step_(Feedback(), "adamw", [update([layer(rows, width, height, dtype)])])
                else:
                    error = torch.empty(rows, 10, dtype=dtype)
                    both.project(error, Feedback(), 1.0, [Point(height, 0, 1, dtype)])
            assert (len(light.seen), len(heavy.seen)) == ((1, 0) if rows == low else (0, 1))


def test_every_segment_and_row_counts(pair):
    both, light, heavy = pair
    with torch.device("meta"):
        one = layer(16384, 512, 512)
        both.step_(Feedback(), "sgd", [update([one])])
        both.step_(Feedback(), "sgd", [update([one] * 40)])
        error = torch.empty(16384, 10, dtype=torch.bfloat16)
        for k in (1, 100):
            both.project(error, Feedback(), 1.0, [Point(512, 0, k, torch.bfloat16)])
    assert light.asked == heavy.asked == ["step_", "project"]


def test_repeated_steps_are_by_the_rows_of_their_error(pair):
    both, light, heavy = pair
    with torch.device("meta"):
        first = update([layer(128, 256, 256)])
        run = both.repeated(Feedback(), "adamw", [first])
        row = (0.2,) * 7
        given = []
        for rows in (128, 1 << 20, 7):
            each = layer(rows, 256, 256)
            error = torch.empty(rows, 10, dtype=torch.bfloat16)
            given.append((error, (each.inputs,), (each.saved,), [row]))
            run(*given[-1])
    assert light.seen == [("repeated", *given[0]), ("repeated", *given[2])]
    assert heavy.seen == [("repeated", *given[1])]


def test_a_repeated_step_is_light_where_it_saves_the_host_less(pair):
    both, *_ = pair

    def work(rows, width=256, height=512):
        return seconds(2 * rows * width * height, rows * (width + height) * 2, by_work.HALF) + (
            seconds(0, width * height * 4 * 2 * 3, 1.0)
        )

    rows = next(rows for rows in range(1, 1 << 20) if work(rows) >= AGAIN)
    for count, wanted in ((rows - 1, ["repeated"]), (rows + 1, [])):
        light = Noting()
        both = ByWork(("l", light), ("h", Noting()))
        with torch.device("meta"):
            each = layer(count, 256, 512)
            run = both.repeated(Feedback(), "adamw", [update([each])])
            error = torch.empty(count, 10, dtype=torch.bfloat16)
            run(error, (each.inputs,), (each.saved,), [(0.1,) * 7])
        assert light.asked == wanted


def test_k_rows_for_each_of_the_error_count_in_repeated_steps(pair):
    both, light, heavy = pair
    with torch.device("meta"):
        error = torch.empty(4096, 10, dtype=torch.bfloat16)
        for k in (1, 200):
            each = layer(4096 * k, 256, 256, k=k)
            run = both.repeated(Feedback(), "sgd", [update([each])])
            run(error, (each.inputs,), (each.saved,), [(0.1,) * 7])
    assert (light.asked, heavy.asked) == (["repeated"], ["repeated"])


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_is_prepared_where_one_prepares_nothing(which):
    pair = [Noting(prepares=i != which) for i in range(2)]
    both = ByWork(("l", pair[0]), ("h", pair[1]))
    assert both.repeated(Feedback(), "sgd", [update([layer(2, 3, 4)])]) is None


@pytest.mark.parametrize(
    ("asleep", "said"),
    [((1,), "light cannot"), ((2,), "heavy cannot"), ((1, 2), "neither can")],
)
def test_it_runs_where_both_do(pair, asleep, said):
    assert pair[0].unavailable(CPU) is None
    for which in asleep:
        pair[which].reason = "it is asleep"
    assert pair[0].unavailable(CPU) == (
        f"it hands small calls to light and large ones to heavy, and {said} run there"
    )


def test_it_takes_what_both_take():
    light, heavy = Noting(), Noting()
    light.dtypes = frozenset({torch.float32, torch.float16})
    assert ByWork(("l", light), ("h", heavy)).dtypes == {torch.float32}


def test_it_is_chosen_where_both_run(monkeypatch):
    assert backends.PREFERENCE[0] == "triton+cuda"
    own = backends.get("triton+cuda")
    assert (own._light, own._heavy) == (backends.get("cuda"), backends.get("triton"))
    for name in ("triton", "cuda"):
        monkeypatch.setattr(backends.get(name), "unavailable", lambda _: None)
    backends._found.clear()
    assert backends.chosen(CPU, torch.bfloat16)[0] == "triton+cuda"
    assert backends.chosen(CPU, torch.float64)[0] == "reference"
    monkeypatch.setattr(backends.get("cuda"), "unavailable", lambda _: "it is not built")
    assert backends.chosen(CPU, torch.bfloat16)[0] == "triton"
    backends._found.clear()


def medians(page, planner=None):
    """The last column, by operation and δ; of one planner's rows."""
    rows = [re.split(r" *\| *", line)[1:-1] for line in page.splitlines() if line[:1] == "|"]
    found = {
        (operation, delta): float(others[-1].split()[0])
        for operation, delta, *others in rows[2:]
        if planner in (None, others[0])
    }
    assert found
    return found


def test_the_hosts_time_is_what_was_measured():
    triton = medians((RESULTS / "launch.md").read_text())  # Triton's own part included
    cuda = medians((RESULTS / "launch_cuda.md").read_text(), "C++")
    assert triton.keys() == cuda.keys() and len(triton) == 6
    for least, repeated in ((HOST, False), (AGAIN, True)):
        saved = 1e-6 * min(
            triton[call] - cuda[call] for call in triton if ("repeated" in call[0]) == repeated
        )
        assert 0.5 * saved < least <= saved
