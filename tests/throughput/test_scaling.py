"""Exponents, constants and crossovers, from times that a formula made."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_kernels.throughput import cost, scaling
from dfa_kernels.throughput.cost import Constants, Sample
from dfa_kernels.throughput.job import Job
from dfa_kernels.throughput.memory import Memory
from dfa_kernels.throughput.networks import MLP, Shape
from dfa_kernels.throughput.options import SHAPES, parse_shape
from dfa_kernels.throughput.result import AXES
from dfa_kernels.throughput.scaling import BASE, VALUES, Scaling

JOB = Job(("bp-eager", "reference"), BASE["cpu"])
METHODS = {"bp-eager": "bp", "reference": "dfa"}
#: Ours launches more for each layer, and has less to multiply and to move.
MODELS = {
    "bp-eager": Constants(10.0, 5.0, 0.5, 1.0, 0.4, 0.1, 0.5),
    "reference": Constants(10.0, 5.0, 0.3, 1.0, 0.2, 0.4, 0.1),
}


def measured(models=MODELS, off=lambda i: 1.0):
    found = Scaling.empty()
    for i, place in enumerate(scaling.places("cpu")):
        for name, model in models.items():
            ms = cost.predict(model, place.shape, METHODS[name], "float32") * off(i)
            event = {"event": "measured", "contestant": name, "samples_ms": [ms] * 5}
            found.take(place.shape, event)
    return found


def curves(found):
    return scaling.curves(found, METHODS, JOB, "cpu")


@pytest.mark.parametrize("kind", VALUES)
def test_every_place_is_measured_once_and_the_base_lies_on_every_axis(kind):
    places = scaling.places(kind)
    shapes = [place.shape for place in places]
    assert len(set(shapes)) == len(shapes)
    assert next(p.axes for p in places if p.shape == BASE[kind]) == tuple(VALUES[kind])
    assert set(VALUES[kind]) == set(AXES)
    assert (VALUES[kind]["outputs"][0], VALUES[kind]["outputs"][-1]) == (10, 50_000)
    jobs = scaling.jobs(JOB, kind)
    assert [job.shape for job in jobs] == shapes
    assert cost.units(shapes[0], "bp", "float32").gflop == min(
        cost.units(s, "bp", "float32").gflop for s in shapes
    )


@given(st.floats(-3, 3), st.floats(0.01, 100), st.lists(st.integers(1, 10**6), min_size=3,
       max_size=8, unique=True))  # fmt: skip
def test_the_exponent_of_a_power_law(p, c, values):
    found, error = scaling.exponent([(v, c * v**p) for v in values])
    assert found == pytest.approx(p, abs=1e-6)
    assert error == pytest.approx(0, abs=1e-6)


def test_an_exponent_says_how_sure_it_is():
    assert scaling.exponent([(1, 1.0), (2, 2.0)]) is None
    assert scaling.exponent([(1, 1.0), (2, None), (3, 3.0)]) is None
    p, error = scaling.exponent([(1, 1.0), (10, 30.0), (100, 100.0)])
    assert p == pytest.approx(1.0)
    assert error == pytest.approx(0.2755, abs=1e-3)  # by hand: σ̂ / √Σx²


def test_the_units_of_a_step():
    units = cost.units(Shape(10, 2, 20, 5), "bp", "float32")
    sizes = MLP.of(Shape(10, 2, 20, 5)).sizes()
    forward = 2 * 10 * sum(d * k for d, k in sizes)
    assert units.gflop == pytest.approx((3 * forward - 2 * 10 * 784 * 20) / 1e9)
    products = [(10, 20, 784), (10, 20, 20), (10, 5, 20)] * 2 + [(10, 20, 20), (10, 5, 20)]
    narrow = sum(2 * m * n * k * math.sqrt(1 / m + 1 / n + 1 / k) for m, n, k in products)
    assert units.narrow == pytest.approx(narrow / 1e9)
    assert units.activation_mb == pytest.approx(10 * 20 * 2 * 4 / 1e6)
    assert units.output_mb == pytest.approx(10 * 5 * 4 / 1e6)
    assert units.parameter_mb == pytest.approx(4 * sum(d * k + d for d, k in sizes) / 1e6)
    assert (units.layer, units.step) == (3, 1)


positive = st.floats(0.01, 10)


@settings(max_examples=25, deadline=None)
@given(st.builds(Constants, *[positive] * 7), st.sampled_from(["bp", "dfa"]))
def test_the_fit_finds_the_constants_it_was_made_with(model, method):
    shapes = [place.shape for place in scaling.places("cpu")]
    samples = [Sample(s, cost.predict(model, s, method, "float32")) for s in shapes]
    fitted = cost.fit(samples, method, "float32")
    assert all(constant >= 0 for constant in fitted)
    for shape in [*shapes, Shape(64, 8, 512, 10), Shape(512, 8, 2048, 10)]:
        wanted = cost.predict(model, shape, method, "float32")
        assert cost.predict(fitted, shape, method, "float32") == pytest.approx(wanted, rel=1e-3)
    assert cost.fit(samples[:5], method, "float32") is None


def test_curves_have_points_in_order_memory_and_deaths():
    found = measured()
    wide = BASE["cpu"]._replace(width=4096)
    found.weigh(Memory("reference", tuple(wide), 123, 4))
    found.take(wide, {"event": "died", "contestant": "bp-eager", "why": "no memory"})
    made = {(c.contestant, c.axis): c for c in curves(found)}
    assert len(made) == 8
    curve = made["reference", "width"]
    assert [p.value for p in curve.points] == list(VALUES["cpu"]["width"])
    assert curve.points[-1].peak_memory_bytes == 123
    assert curve.points[0].peak_memory_bytes is None
    assert curve.memory_exponent is None
    assert 0 < curve.ms_exponent[0] < 2
    assert made["bp-eager", "width"].points[-1].error == "no memory"
    fitted = scaling.times(curves(found), "bp-eager")
    assert wide not in fitted
    assert len(fitted) == len(scaling.places("cpu")) - 1


def test_a_disturbed_visit_is_not_what_is_known_of_a_place():
    told = measured()
    other = Shape(64, 8, 512, 10)
    for samples in ([8.0, 9.0, 8.5], [24.0, 25.0, 26.0], [8.2, 8.4, 8.6]):
        told.take(other, {"event": "measured", "contestant": "reference", "samples_ms": samples})
    assert told.held_out("cpu") == {("reference", other): 8.6}
    assert scaling.VISITS * scaling.LEAST >= 9
    assert {job.least for job in scaling.jobs(JOB, "cpu")} == {scaling.LEAST}
    assert sum(job.seconds for job in scaling.jobs(JOB, "cpu")) * scaling.VISITS == pytest.approx(
        JOB.seconds * len(scaling.places("cpu"))
    )


def test_what_is_timed_among_the_places_is_held_out():
    base, other = BASE["cpu"], Shape(512, 4, 1024, 10)
    shapes = [job.shape for job in scaling.jobs(JOB, "cpu", (other, base))]
    assert len(shapes) == len(scaling.places("cpu")) + 1
    assert shapes.index((256, 4, 512, 10)) < shapes.index(other) < len(shapes) - 1  # by size
    told = measured()
    for name, samples in (
        ("reference", [99.0, 100.0, 170.0]), ("hand-written-dfa", [1.0]), ("bp-eager", [1.0])
    ):  # fmt: skip
        told.take(other, {"event": "measured", "contestant": name, "samples_ms": samples})
    told.take(other, {"event": "died", "contestant": "bp-eager", "why": "it fell"})
    made = curves(told)
    found = scaling.predictions(scaling.constants(made), made, told.held_out("cpu"))
    held = [p for p in found if not p.fitted]
    assert [(p.contestant, p.shape, p.measured_ms) for p in held] == [("reference", other, 100.0)]
    wanted = cost.predict(MODELS["reference"], Shape(512, 4, 1024, 10), "dfa", "float32")
    assert held[0].predicted_ms == pytest.approx(wanted, rel=1e-3)
    (same,) = (p for p in found if p.shape == base and p.contestant == "reference")
    assert same.measured_ms == pytest.approx(same.predicted_ms, rel=1e-3)


def test_where_dfa_starts_to_pay():
    made = {c.axis: c for c in scaling.crossovers(MODELS, METHODS, JOB, "cpu")}
    assert set(made) == set(AXES)
    width = made["width"]

    def apart(value):
        shape = BASE["cpu"]._replace(width=value)
        ours, theirs = (
            cost.predict(MODELS[n], shape, METHODS[n], "float32") for n in ("reference", "bp-eager")
        )
        return ours - theirs

    assert apart(int(width.value) - 1) >= 0 > apart(int(width.value))
    assert not width.until
    assert f"from about {width.value:,.0f} on" in width.sentence
    assert "256 batch, 4 depth, 10 outputs" in width.sentence
    # one shared B costs what the head's way back does: that many outputs change nothing
    assert made["outputs"].value is None
    dear = {**MODELS, "reference": MODELS["reference"]._replace(output_mb=5.0)}
    outputs = {c.axis: c for c in scaling.crossovers(dear, METHODS, JOB, "cpu")}["outputs"]
    assert outputs.until
    assert "up to about" in outputs.sentence


def test_where_it_pays_everywhere_or_nowhere():
    slow = {**MODELS, "reference": Constants(*(100 * c for c in MODELS["bp-eager"]))}
    fast = {**MODELS, "reference": Constants(*(c / 100 for c in MODELS["bp-eager"]))}
    for models, words in ((slow, "more time than bp-eager everywhere"), (fast, "less time than")):
        for crossover in scaling.crossovers(models, METHODS, JOB, "cpu"):
            assert crossover.value is None
            assert words in crossover.sentence
    assert scaling.crossovers({"reference": MODELS["reference"]}, METHODS, JOB, "cpu") == []


def test_a_crossing_is_found_to_the_digit():
    assert cost.crossing(lambda v: 100 - v, 1, 10_000) == (101, False)
    assert cost.crossing(lambda v: v - 100, 1, 10_000) == (100, True)
    assert cost.crossing(lambda v: 1.0, 1, 10_000) is None


def test_noise_moves_predictions_no_further_than_itself():
    noisy = curves(measured(off=lambda i: 1 + 0.05 * math.sin(7 * i)))
    held = {
        ("reference", shape): cost.predict(MODELS["reference"], shape, "dfa", "float32")
        for shape in SHAPES["cpu"]
    }
    for p in scaling.predictions(scaling.constants(noisy), noisy, held):
        if not p.fitted:
            assert p.predicted_ms == pytest.approx(p.measured_ms, rel=0.15)


#: Two runs on a busy machine with one thread, by the processor's time, which waiting is not in:
#: milliseconds of a step at the five CPU shapes, held out, and at places like `scaling`'s.
RECORDED = json.loads(Path(__file__).with_name("recorded_steps.json").read_text())


@pytest.mark.parametrize("run", RECORDED, ids=["first", "second"])
@pytest.mark.parametrize("name", ["bp-eager", "hand-written-dfa", "reference"])
def test_the_cpu_shapes_are_predicted_within_15_percent(run, name):
    method = "bp" if name.startswith("bp") else "dfa"
    samples = [Sample(parse_shape(text), ms[name]) for text, ms in run["fitted"].items()]
    fitted = cost.fit(samples, method, "float32")
    held = {parse_shape(text): ms[name] for text, ms in run["held"].items()}
    assert set(held) == set(SHAPES["cpu"])
    assert not set(held) & {sample.shape for sample in samples}
    for shape, ms in held.items():
        assert cost.predict(fitted, shape, method, "float32") == pytest.approx(ms, rel=0.15), shape
