"""What the kernels cannot take is refused with its numbers, before anything is changed."""

import pytest
import torch
from oracle import head, record, stepped, tensors

from dfa_kernels import ops
from dfa_kernels.backends.contract import Point, Segment
from dfa_kernels.backends.grouped.layout import LIMIT, STRIDE, check
from dfa_kernels.backends.triton import kernels as triton_backend
from dfa_kernels.feedback import Feedback


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int32, torch.bool])
def test_dtypes(dtype):
    message = rf"takes float32, bfloat16, float16, but the error is {dtype}.*use the reference"
    with pytest.raises(TypeError, match=message):
        check(torch.zeros(2, 3, dtype=dtype), "the error")
    with pytest.raises(TypeError, match=message):
        ops.project(torch.zeros(2, 3, dtype=dtype), Feedback(), 1.0, [])


def test_rows_and_columns():
    check(torch.empty(LIMIT - 1, 1, device="meta"), "x")
    for shape in ((LIMIT, 1), (1, LIMIT)):
        with pytest.raises(
            ValueError, match=r"fewer than 2,147,483,520 rows.*has shape \(.*2147483520"
        ):
            check(torch.empty(shape, device="meta").as_strided(shape, (1, 1)), "x")


def test_row_strides():
    near = torch.empty(2, 5, device="meta").as_strided((2, 5), (STRIDE - 1, 1))
    check(near, "x")
    with pytest.raises(ValueError, match=r"16,777,216 elements apart, but x of shape \(2, 5\) has"):
        check(near.as_strided((2, 5), (STRIDE, 1)), "x")
    with pytest.raises(ValueError, match=r"33,554,430 apart \(2 rows for each row of the error\)"):
        check(near, "x", 2)


def _updates():
    error = torch.randn(9, 4)
    return [stepped("sgd", [Segment(error, 0.1, x)]) for x in (record(9, 7, 5), head(error, 5))]


def _unchanged(updates, message, raises):
    before = [t.clone() for t in tensors(updates)]
    with pytest.raises(raises, match=message):
        ops.step_(Feedback(), "sgd", updates)
    assert all(map(torch.equal, before, tensors(updates)))


def _last(updates, **changed):
    """The last update with another record: what comes before it must wait."""
    (segment,) = updates[-1].segments
    layer = segment.layer._replace(**changed)
    updates[-1] = updates[-1]._replace(segments=[segment._replace(layer=layer)])
    return updates


def test_a_wide_stride_of_an_input_changes_nothing(either_delta):
    updates = _updates()
    x = updates[-1].segments[0].layer.inputs
    far = x.as_strided((1, 5), (STRIDE, 1))
    _unchanged(_last(updates, inputs=far), "a layer's input of shape", ValueError)


def test_a_dtype_of_a_saved_tensor_changes_nothing(either_delta):
    updates = _updates()
    saved = updates[-1].segments[0].layer.saved
    _unchanged(_last(updates, saved=saved.double()), "float64: use the reference", TypeError)


def test_a_dtype_of_a_state_changes_nothing():
    updates = _updates()
    weight = updates[-1].weight
    states = tuple(s.double() for s in weight.states)
    updates[-1] = updates[-1]._replace(weight=weight._replace(states=states))
    _unchanged(updates, r"a parameter, state or copy of shape \(4, 5\) is torch.float64", TypeError)


class Fails:
    """A kernel that Triton cannot compile or start."""

    def __getitem__(self, grid):
        raise RuntimeError("out of resource: shared memory")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("module", ["project", "update"])
def test_a_kernel_that_does_not_start_changes_nothing(module, transposed, monkeypatch, delta):
    delta("stored")
    monkeypatch.setattr(getattr(triton_backend, module), f"{module}_kernel", Fails())
    updates = _updates()
    if transposed:  # stepped as a copy, which is not copied back
        weight = updates[0].weight
        turned = weight._replace(parameter=weight.parameter.T.contiguous().T)
        updates[0] = updates[0]._replace(weight=turned)
    _unchanged(updates, "out of resource", RuntimeError)


def test_a_failed_launch_does_not_spoil_the_next(monkeypatch, delta):
    delta("stored")
    error = torch.randn(600, 4)
    layers = [record(600, 7, 5)]
    wanted = ops.gradients(error, Feedback(), 0.1, layers, torch.float32)
    with monkeypatch.context() as patched:
        patched.setattr(triton_backend.update, "update_kernel", Fails())
        with pytest.raises(RuntimeError, match="out of resource"):
            ops.gradients(error, Feedback(), 0.1, layers, torch.float32)
    made = ops.gradients(error, Feedback(), 0.1, layers, torch.float32)
    assert all(map(torch.equal, wanted[0], made[0]))


def test_an_opaque_points_width_is_refused():
    error = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"δh of \d+ features"):
        ops.project(error, Feedback(), 1.0, [Point(STRIDE, 0, 1, torch.float16)])


def test_the_variable_is_checked(delta):
    delta("sometimes")
    with pytest.raises(ValueError, match="must be 'stored' or 'on-the-fly', got 'sometimes'"):
        ops.gradients(torch.zeros(2, 3), Feedback(), 1.0, [record(2, 3, 4)], torch.float32)
