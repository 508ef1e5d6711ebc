"""Lenses, poses and rays."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.paper.view.cameras import (
    Camera,
    Rays,
    around,
    cast,
    check_pose,
    distort,
    focus,
    look_at,
    swing,
    to_ndc,
    undistort,
)  # fmt: skip
from dfa_kernels.training import InputError

UP = torch.tensor([0.0, 0.0, 1.0])


def test_pixel_centres_lie_at_half_integers():
    camera = Camera.of_angle(4, 2, math.pi / 2)  # focal length 2
    directions = camera.directions()
    assert directions.shape == (2, 4, 3)
    torch.testing.assert_close(directions[0, 0], torch.tensor([-0.75, 0.25, -1.0]))
    torch.testing.assert_close(directions[1, 3], torch.tensor([0.75, -0.25, -1.0]))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_shrunk_camera_looks_through_the_middle_of_each_block(times):
    camera = Camera(12, 6, 10.0, 11.0, 5.2, 3.1)
    blocks = camera.directions().view(6 // times, times, 12 // times, times, 3)
    torch.testing.assert_close(camera.shrunk(times).directions(), blocks.mean((1, 3)))


def test_distortion_is_opencvs():
    """r² = 0.3125, radial = 1 + 0.03125 + 0.0009765625."""
    x, y = distort(torch.tensor(0.5), torch.tensor(0.25), 0.1, 0.01, 1e-3, 2e-3)
    assert x.item() == pytest.approx(0.51611328 + 2 * 1e-3 * 0.125 + 2e-3 * 0.8125, abs=1e-6)
    assert y.item() == pytest.approx(0.25805664 + 1e-3 * 0.4375 + 2 * 2e-3 * 0.125, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    k1=st.floats(-0.15, 0.3), k2=st.floats(-0.05, 0.2),
    p1=st.floats(-0.02, 0.02), p2=st.floats(-0.02, 0.02),
    x=st.floats(-0.7, 0.7), y=st.floats(-0.7, 0.7),
)  # fmt: skip
def test_undistort_inverts_distort(k1, k2, p1, p2, x, y):
    point = torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)
    back = undistort(*distort(*point, k1, k2, p1, p2), k1, k2, p1, p2)
    for found, meant in zip(back, point, strict=True):
        torch.testing.assert_close(found, meant, rtol=0, atol=1e-6)


def test_a_lens_that_folds_the_image_is_refused():
    camera = Camera(40, 40, 20.0, 20.0, 20.0, 20.0, k1=-0.9)
    with pytest.raises(InputError, match=r"k1 -0\.9.* cannot be inverted over the whole image"):
        camera.directions()


def test_a_point_that_only_a_turned_over_image_holds_is_refused():
    """r − 0.9 r³ is at most 0.41 near the centre, and 0.575 far on its other side."""
    x, y = torch.tensor([0.575, 0.4]).double(), torch.zeros(2).double()
    with pytest.raises(InputError, match="cannot be inverted"):
        undistort(x, y, -0.9, 0.0, 0.0, 0.0)
    assert undistort(x[1:], y[1:], -0.9, 0.0, 0.0, 0.0)[0].item() == pytest.approx(0.5486, abs=1e-4)


def test_a_rotated_camera_casts_rotated_rays():
    pose = look_at(torch.tensor([3.0, 0.0, 0.0]), torch.zeros(3), UP)
    rays = cast(torch.tensor([[0.0, 0.0, -1.0], [1.0, 2.0, -1.0]]), pose)
    torch.testing.assert_close(rays.origins, torch.tensor([[3.0, 0.0, 0.0]] * 2))
    torch.testing.assert_close(rays.directions[0], torch.tensor([-1.0, 0.0, 0.0]))
    torch.testing.assert_close(rays.directions[1], torch.tensor([-1.0, 1.0, 2.0]))
    torch.testing.assert_close(rays.views[1], torch.tensor([-1.0, 1.0, 2.0]) / 6**0.5)


def test_chunks_are_the_rays_in_order():
    rays = Rays(torch.rand(7, 3), torch.rand(7, 3), torch.rand(7, 3))
    parts = rays.chunks(3)
    assert [len(part.origins) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.views for part in parts]), rays.views)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(1.2, 50))
def test_a_point_on_a_ray_is_on_its_ndc_ray(seed, t):
    """(x, y, z) ↦ (−f_x x / (W z / 2), −f_y y / (H z / 2), 1 + 2 n / z), n = 1."""
    g = torch.Generator().manual_seed(seed)
    camera = Camera(30, 20, 25.0, 27.0, 15.0, 10.0)
    origin = 0.3 * torch.rand(1, 3, generator=g, dtype=torch.float64) - 0.15
    direction = torch.rand(1, 3, generator=g, dtype=torch.float64) - 0.5
    direction[:, 2] = -1
    x, y, z = (origin + t * direction)[0].tolist()
    meant = torch.tensor([-25 * x / (15 * z), -27 * y / (10 * z), 1 + 2 / z], dtype=torch.float64)
    ndc = to_ndc(Rays(origin, direction, direction), camera)
    step = ((meant - ndc.origins[0]) / ndc.directions[0])[2]
    assert 0 <= step < 1
    torch.testing.assert_close(
        ndc.origins[0] + step * ndc.directions[0], meant, rtol=1e-6, atol=1e-6
    )
    assert ndc.origins[0, 2].item() == pytest.approx(-1, abs=1e-6)


# Poses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "poses",
    [around(4.0, 0.5, 7), swing(around(4.0, 0.5, 5)[:3], torch.tensor([0.1, 0.2, 0.3]), 6)],
)
def test_orbits_are_poses_of_cameras_that_look_at_one_point(poses):
    for pose in poses:
        check_pose(pose, "here")
    at = focus(poses)
    towards = torch.nn.functional.normalize(at - poses[:, :3, 3], dim=1)
    torch.testing.assert_close(-poses[:, :3, 2], towards, rtol=0, atol=1e-4)


def test_focus_is_where_all_cameras_look():
    at = torch.tensor([0.3, -0.2, 0.5])
    poses = look_at(torch.randn(6, 3) * 3, at, UP)
    torch.testing.assert_close(focus(poses), at, rtol=0, atol=1e-4)


def mirrored(pose):
    pose[:, 0] *= -1


def scaled(pose):
    pose[:3, :3] *= 1.01


def sheared(pose):
    pose[0, 1] += 0.1


def projective(pose):
    pose[3, 0] = 0.5


def broken(pose):
    pose[1, 3] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (mirrored, "not a rotation: it mirrors"),
        (scaled, "not a rotation: RᵀR is off the identity by 0.02"),
        (sheared, "not a rotation: RᵀR is off"),
        (projective, "last row is .0.5, 0.0, 0.0, 1.0., not 0 0 0 1"),
        (broken, "an entry that is not finite"),
    ],
)
def test_what_is_no_pose_is_refused(change, message):
    pose = around(4.0, 0.5, 3)[1]
    check_pose(pose, "a.json, frame 1")
    change(pose)
    with pytest.raises(InputError, match=f"^a.json, frame 1: .*{message}"):
        check_pose(pose, "a.json, frame 1")
