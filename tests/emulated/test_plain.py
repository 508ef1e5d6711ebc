"""What csrc/plain.h plans is what dfa_kernels/backends/grouped would have launched, bit for bit."""

import pytest
import torch

from dfa_kernels.backends.contract import HEAD, RULES, Layer, LayerUpdate, Segment, Update
from dfa_kernels.backends.cuda.kernels import Kernels
from dfa_kernels.feedback import Feedback
from tests import emulator

HYPER = {"sgd": (0.1, 0.9, 0.5, 0.01, 0, 1, 0), "adamw": (0.1, 0.8, 0.99, 1e-3, 0.01, 0, 7)}

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch is older than 2.10"
)


class Seen:
    """The compiled module, and what was asked of it."""

    def __init__(self, core, plainly=True):
        self.project, self.update = core.project, core.update
        self.asked = []
        self._plain = core.plain_step if plainly else lambda *_: False

    def plain_step(self, *arguments):
        self.asked.append(self._plain(*arguments))
        return self.asked[-1]


def layers(error, dtype):
    """A layer with two rows for each of the error's, one without, and a head."""
    n = error.shape[0]
    sizes = (("tanh", 7, 24, 0, 2), ("gelu", 24, 16, 3, 1), ("identity", 16, 10, HEAD, 1))
    for name, k, d, stream, repeat in sizes:
        x, saved = torch.randn(n * repeat, k).to(dtype), torch.rand(n * repeat, d).to(dtype)
        yield Layer(x, saved, name, stream, repeat)


def updates(rule, dtype=torch.float32, width=10, change=lambda t: t):
    torch.manual_seed(1)
    made = []
    error = torch.randn(21, width).to(dtype)
    for i, layer in enumerate(layers(error, dtype)):
        pair = []
        for shape in ((layer.saved.shape[1], layer.inputs.shape[1]), layer.saved.shape[1:]):
            states = tuple(change(torch.rand(shape)) for _ in RULES[rule].states)
            pair.append(Update(change(torch.randn(shape)), states, HYPER[rule]))
        segments = [Segment(error, 0.25, layer)] * (1 + i % 2)
        made.append(LayerUpdate(pair[0], pair[1] if i != 1 else None, segments))
    return made


def stepped(kernels, rule, given):
    kernels.step_(Feedback("uniform", seed=2**62 + 5), rule, given)
    pairs = [u for update in given for u in update[:2] if u is not None]
    return [t for u in pairs for t in (u.parameter, *u.states)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_steps(rule, dtype):
    seen = Seen(emulator.core())
    plain = stepped(Kernels(seen), rule, updates(rule, dtype))
    assert seen.asked == [True]
    grouped = stepped(Kernels(Seen(emulator.core(), False)), rule, updates(rule, dtype))
    before = [t for u in updates(rule, dtype) for p in u[:2] if p for t in (p.parameter, *p.states)]
    for a, b, c in zip(plain, grouped, before, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_gradients():
    error = torch.randn(21, 10)
    given = list(layers(error, torch.float32))
    seen = Seen(emulator.core())
    arguments = error, Feedback(seed=3), 0.25, given, torch.bfloat16
    plain = Kernels(seen).gradients(*arguments)
    assert seen.asked == [True]
    grouped = Kernels(Seen(emulator.core(), False)).gradients(*arguments)
    for a, b in zip(plain, grouped, strict=True):
        assert a[0].dtype == torch.bfloat16
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def transposed(t):
    return t.T.contiguous().T if t.dim() == 2 else t


@pytest.mark.parametrize(
    "options", [{"change": transposed}, {"width": 33}], ids=["transposed", "a wide error"]
)
def test_what_is_not_plain_is_left_to_python(nothing, options):
    given = updates("sgd", **options)
    seen = Seen(nothing)
    before = [t.clone() for u in given for t in (u.weight.parameter, *u.weight.states)]
    Kernels(seen).step_(Feedback(), "sgd", given)
    assert seen.asked == [False]
    after = [t for u in given for t in (u.weight.parameter, *u.weight.states)]
    assert all(map(torch.equal, before, after))


def replaced(given, **changed):
    """With another record in the last update."""
    *first, last = given
    (segment, *_) = last.segments
    segments = [segment._replace(layer=segment.layer._replace(**changed))]
    return [*first, last._replace(segments=segments)]


def described(changed):
    """The same in every process, which a tensor's values are not."""
    ((name, value),) = changed.items()
    if torch.is_tensor(value):
        return f"{name} {tuple(value.shape)} {value.stride()} {value.dtype}"
    return f"{name} {value}"


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": torch.randn(20, 16)},
        {"inputs": torch.randn(21, 15)},
        {"inputs": torch.randn(21, 16).double()},
        {"saved": torch.randn(21, 9)},
        {"saved": torch.randn(21, 10).half()},
        {"activation": "unknown"},
        {"stream": -2},
        {"rows": 2},
        {"inputs": torch.randn(16, 21).T},
        {"inputs": torch.randn(1, 16).expand(21, 16)},
        {"inputs": None},
        {"stream": None},
    ],
    ids=described,
)
def test_records_that_are_not_plain(nothing, changed):
    seen = Seen(nothing)
    given = replaced(updates("sgd"), **changed)
    assert not Kernels(seen)._run_plainly(Feedback(), "sgd", given)
    assert seen.asked == [False]
