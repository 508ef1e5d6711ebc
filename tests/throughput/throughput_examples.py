"""Results as a run would write them, with figures that nobody measured."""

import statistics

from dfa_kernels.throughput.result import (
    BASELINE,
    FASTER,
    SLOWER,
    UNDECIDED,
    Ceilings,
    Crossover,
    Curve,
    Point,
    Prediction,
    Result,
    Row,
)

SHAPES = ((128, 3, 256, 10), (512, 4, 1024, 10), (256, 4, 1024, 10000))
NOISE = [0.96 + i % 9 / 100 for i in range(20)]


def row(contestant, method, shape, samples, base, **others):
    """A row of these samples, with its ratio to those of the baseline."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    ratios = [a / b for a, b in zip(samples, base, strict=True)]
    r_low, ratio, r_high = statistics.quantiles(ratios, n=4, method="inclusive")
    verdict = FASTER if r_high < 1 else SLOWER if r_low > 1 else UNDECIDED
    batch, depth, width, outputs = shape
    weights = 784 * width + (depth - 1) * width**2 + width * outputs
    flops = (6 if method == "bp" else 4) * batch * weights
    return Row(
        contestant=contestant,
        method=method,
        shape=shape,
        dtype="float32",
        device="cpu",
        ms=middle,
        quartiles=(low, high),
        ratio=ratio,
        ratio_quartiles=(r_low, r_high),
        verdict=None if contestant == BASELINE else verdict,
        samples_per_s=batch / middle * 1e3,
        flops=flops,
        bytes=12 * weights,
        launches=40,
        tflops=flops / middle / 1e9,
        gbps=12 * weights / middle / 1e6,
        percent_of_matrix_rate=flops / middle / 1e9 / 0.12 * 100,
        percent_of_bandwidth=12 * weights / middle / 1e6 / 20 * 100,
        percent_of_launches=40 * 1.5e-3 / middle * 100,
        peak_memory_bytes=16 * weights,
        feedback_bytes=0 if method == "bp" else outputs * width,
        rounds=len(samples),
        samples_ms=tuple(samples),
        **others,
    )


def result():
    """Three contestants on three shapes, one of which died on the last; curves; a prediction."""
    rows = []
    for scale, shape in zip((1.0, 20.0, 50.0), SHAPES, strict=True):
        base = [scale * (4 + 0.1 * (i % 7)) for i in range(20)]
        rows += [
            row(BASELINE, "bp", shape, base, base),
            row("reference", "dfa", shape, [0.7 * b + 0.01 for b in base], base),
            row("hand-written-dfa", "dfa", shape, [b * n for b, n in zip(base, NOISE, strict=True)],
                base),
        ]  # fmt: skip
    died = "RuntimeError: the card fell out"
    rows.append(Row("optical", "dfa", SHAPES[-1], "float32", "cpu", error=died))
    points = [
        Point(w, w**1.8 / 1e4, (w**1.8 / 1.1e4, w**1.8 / 0.9e4), 12 * w * w)
        for w in (128, 256, 512)
    ]
    curves = [
        Curve(name, method, "width", (256, 4, 512, 10), "float32", "cpu", tuple(points),
              (1.8, 0.02), (2.0, 0.0))
        for name, method in ((BASELINE, "bp"), ("reference", "dfa"))
    ]  # fmt: skip
    return Result(
        environment={
            "date": "2026-11-24", "processor": "an example", "cores": 2, "threads": 2,
            "device": "cpu", "optimizer": "sgd", "torch": "2.13.0", "python": "3.11.7",
            "dfa_kernels": "0.1.0",
        },
        ceilings=Ceilings(20.0, {"float32": 0.12}, 1.5),
        rows=tuple(rows),
        scaling=tuple(curves),
        crossovers=(
            Crossover("width", "reference", BASELINE, (256, 4, 512, 10), "float32", "cpu", 96.0,
                      False, "From a width of about 96 on, reference is faster."),
        ),
        predictions=(
            Prediction("reference", "dfa", SHAPES[0], "float32", "cpu", 3.1, 2.9, False),
        ),
        notes=("TinyDFA is not installed: No module named 'tinydfa'.",),
    )  # fmt: skip
