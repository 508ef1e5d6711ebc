"""The ray-traced scene: geometry that can be checked from outside."""

import pytest
import torch

from bench.paper.view import procedural
from bench.paper.view.cameras import Rays, around, check_pose
from bench.paper.view.procedural import BALLS, BOXES, photograph, trace


def shoot(origin, direction):
    o = torch.tensor([origin])
    d = torch.nn.functional.normalize(torch.tensor([direction]), dim=1)
    colour, t = trace(Rays(o, d, d))
    return colour[0], t.item()


@pytest.mark.parametrize("ball", BALLS)
def test_a_ray_to_a_balls_centre_ends_one_radius_before_it(ball):
    x, y, z = ball.centre
    colour, t = shoot((x, y, z + 3.0), (0.0, 0.0, -1.0))
    assert t == pytest.approx(3 - ball.radius, abs=1e-5)
    assert colour.argmax() == torch.tensor(ball.colour).argmax()


def test_the_box_has_its_own_turned_faces():
    (box,) = BOXES
    x, y, z = box.centre
    _, t = shoot((x, y, z + 3.0), (0.0, 0.0, -1.0))
    assert t == pytest.approx(3 - box.half[2], abs=1e-5)
    turn = torch.tensor(box.turn)
    _, t = shoot(
        (x + 0.4 * turn.cos().item(), y + 0.4 * turn.sin().item(), z),
        (-turn.cos().item(), -turn.sin().item(), 0.0),
    )
    assert t == pytest.approx(0.4 - box.half[0], abs=1e-4)


def test_what_hits_nothing_is_white_and_infinitely_far():
    colour, t = shoot((0.0, 0.0, 3.0), (0.0, 0.0, 1.0))
    assert colour.tolist() == [1, 1, 1] and t == float("inf")
    _, t = shoot((1.39, 0.0, 1.0), (0.0, 0.0, -1.0))
    assert t == pytest.approx(1.45, abs=1e-5)  # the disc's rim
    assert shoot((1.41, 0.0, 1.0), (0.0, 0.0, -1.0))[1] == float("inf")


def test_the_box_has_its_own_turned_normals():
    (box,) = BOXES
    centre, turn = torch.tensor(box.centre), torch.tensor(box.turn)
    outwards = torch.stack([turn.cos(), turn.sin(), torch.zeros(())])
    hit = procedural._box((centre + 2 * outwards)[None], -outwards[None], box)
    torch.testing.assert_close(hit.normal[0], outwards, rtol=0, atol=1e-6)


def test_a_ball_throws_a_shadow():
    """Where the red ball stands between the disc and the light, ambient light alone is left."""
    light, red = procedural._LIGHT, torch.tensor(BALLS[0].centre)
    under = red - light * (red[2] + 0.45) / light[2]
    shadowed, t = shoot((under[0].item(), under[1].item(), 0.0), (0.0, 0.0, -1.0))
    assert t == pytest.approx(0.45, abs=1e-5)
    tiles = 0.35 * torch.tensor([[0.9, 0.9, 0.85], [0.3, 0.3, 0.35]])
    assert (tiles - shadowed).abs().amax(1).min() < 1e-5


def test_highlights_move_with_the_eye():
    red = torch.tensor(BALLS[0].centre)
    normal = procedural._LIGHT
    at = red + BALLS[0].radius * normal
    seen = []
    for eye in (
        at + normal,
        at + torch.nn.functional.normalize(normal + torch.tensor([0, 0, 1.0]), dim=0),
    ):
        seen.append(shoot(tuple(eye.tolist()), tuple((at - eye).tolist()))[0])
    assert (seen[0] - seen[1]).abs().max() > 0.05


def test_depth_and_colour_belong_together():
    camera = procedural.load(8).camera
    pose = around(4.0, 0.5, 5)[2]
    colour, depth = photograph(camera, pose)
    assert colour.shape == (12, 12, 3) and depth.shape == (12, 12)
    points = pose[:3, 3] + (camera.directions() @ pose[:3, :3].T) * depth.unsqueeze(2)
    hit = depth.isfinite()
    assert 0.2 < hit.float().mean() < 0.8
    assert (points[hit].norm(dim=1) < 1.6).all() and (points[hit][:, 2] > -0.451).all()
    corner = colour[0, 0]
    assert corner.tolist() == [1, 1, 1] and not hit[0, 0]


def test_the_views_are_the_same_each_time_and_no_view_is_held_out_and_trained_on():
    one, two = procedural.load(8), procedural.load(8)
    for name, views in one.splits.items():
        assert torch.equal(views.pixels, two.splits[name].pixels)
        for pose in views.poses:
            check_pose(pose, name)
    eyes = {name: views.poses[:, :3, 3] for name, views in one.splits.items()}
    for name in ("validation", "test"):
        assert torch.cdist(eyes[name], eyes["train"]).min() > 0.15
    assert torch.cdist(eyes["validation"], eyes["test"]).min() > 1
