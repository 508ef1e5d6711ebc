"""Blender scenes, captures and LLFF from disk, and what is refused in one sentence."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.paper.view import blender, capture, llff
from bench.paper.view.cameras import Camera, distort
from bench.paper.view.views import read_image, split
from dfa_kernels.training import InputError
from tests.paper import view_files as files

FOX = Path(__file__).parents[3] / "shared" / "data" / "nerf" / "fox"


def load_blender(root, every=1):
    return blender.load(root, 1, 1.0, every, 2.0, 6.0)


def load_capture(root, shrink=1):
    return capture.load(root, shrink, None, None, None)


def load_llff(root):
    return llff.load(root, 1, None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each format once; tests copy what they change."""
    root = tmp_path_factory.mktemp("scenes")
    files.write_blender(root / "blender")
    files.write_capture(root / "capture")
    files.write_llff(root / "llff")
    return root


@pytest.fixture
def copy(written, tmp_path):
    def make(name):
        return Path(shutil.copytree(written / name, tmp_path / name))

    return make


# What is read ------------------------------------------------------------------------------------


def test_blender_splits_poses_and_background(copy):
    root = copy("blender")
    scene = load_blender(root)
    assert scene.name == "blender" and scene.volume == (2.0, 6.0, 1.0) and not scene.ndc
    assert [len(v.poses) for v in scene.splits.values()] == [3, 2, 2]
    torch.testing.assert_close(scene.splits["train"].poses, files.poses(3, 3.5))
    assert scene.camera == files.CAMERA
    # Pixels that see the scene's edge are transparent in part of their nine rays alone.
    truth = torch.from_numpy(np.stack(files.photographs(files.poses(3, 3.5)))).float()
    off = (scene.splits["train"].pixels.float() - truth).abs()
    assert (off.amax(3) < 2).float().mean() > 0.8 and off.mean() < 25
    assert scene.splits["train"].pixels[:, 0, 0].tolist() == [[255] * 3] * 3
    assert [len(part) for part in load_blender(root, every=2).splits["test"]] == [1, 1]


def test_capture_is_centred_and_scaled_and_split_in_order_of_name(copy):
    root = copy("capture")
    scene = load_capture(root)
    files.edit(root / "transforms.json", lambda values: values["frames"].reverse())
    again = load_capture(root)
    poses = files.poses(9)
    for name, chosen in (("test", [0, 8]), ("validation", [4]), ("train", [1, 2, 3, 5, 6, 7])):
        views = scene.splits[name]
        assert torch.equal(views.pixels, again.splits[name].pixels)
        torch.testing.assert_close(views.poses[:, :3, :3], poses[chosen][:, :3, :3])
    every = torch.cat([v.poses[:, :3, 3] for v in scene.splits.values()])
    assert every.norm(dim=1).mean().item() == pytest.approx(4, abs=1e-3)
    torch.testing.assert_close(scene.splits["test"].poses, poses[[0, 8]], rtol=0, atol=1e-2)
    assert scene.camera == files.CAMERA._replace(cx=6.5, cy=6.5)
    assert scene.volume.near == pytest.approx(1.2, abs=0.01)
    assert scene.volume.far == pytest.approx(8, abs=0.01)


def test_a_distorted_capture_casts_the_rays_that_its_lens_bent(tmp_path):
    lens = {"k1": 0.1, "k2": -0.05, "p1": 0.004, "p2": -0.003}
    files.write_capture(tmp_path, **lens)
    scene = load_capture(tmp_path)
    straight = scene.camera.directions().double()
    x, y = distort(straight[..., 0], -straight[..., 1], *lens.values())
    pixels = torch.arange(files.SIDE).double() + 0.5
    u, v = x * scene.camera.fx + scene.camera.cx, y * scene.camera.fy + scene.camera.cy
    torch.testing.assert_close(u, pixels.expand(13, 13), rtol=0, atol=1e-4)
    torch.testing.assert_close(v, pixels.unsqueeze(1).expand(13, 13), rtol=0, atol=1e-4)


def test_the_field_of_view_stands_in_for_focal_lengths(tmp_path):
    files.write_capture(tmp_path, fl_x=None, fl_y=None, cx=None, cy=None, camera_angle_x=0.75)
    assert load_capture(tmp_path).camera == files.CAMERA


def test_llff_faces_forward_in_ndc(copy):
    scene = load_llff(copy("llff"))
    assert scene.ndc and scene.volume == (0.0, 1.0, None)
    poses = torch.cat([v.poses for v in scene.splits.values()])
    assert poses[:, 2, 2].min() > 0.95  # all face −z
    torch.testing.assert_close(poses[:, :3, 3].mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    # Distances between cameras are the file's, scaled so that the nearest depth is 4/3.
    eyes = files.poses(9, 0.15)[[0, 8], :3, 3]
    found = scene.splits["test"].poses[:, :3, 3]
    ratio = (found[0] - found[1]).norm() / (eyes[0] - eyes[1]).norm()
    assert ratio.item() == pytest.approx(4 / 3 / 2.4, rel=1e-3)
    rays = scene.rays(scene.splits["test"].poses[0])
    torch.testing.assert_close(rays.origins[:, 2], torch.full((169,), -1.0), rtol=0, atol=1e-4)
    for pose in scene.orbit(5):
        assert pose[2, 2] > 0.9


def test_drawn_rays_belong_to_their_pixels(copy):
    scene = load_capture(copy("capture"))
    rays, colours = scene.draw(64, torch.Generator().manual_seed(0))
    views = scene.splits["train"]
    every = [scene.rays(pose) for pose in views.poses]
    directions = torch.cat([r.directions for r in every])
    origins = torch.cat([r.origins for r in every])
    pixels = views.pixels.view(-1, 3).float() / 255
    for origin, direction, colour in zip(rays.origins, rays.directions, colours, strict=True):
        apart = (directions - direction).norm(dim=1) + (origins - origin).norm(dim=1)
        assert torch.equal(pixels[apart.argmin()], colour) and apart.min() < 1e-6
    assert len({tuple(o.tolist()) for o in rays.origins}) == 6  # of all training views


def test_shrinking_averages_blocks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (25, 34, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = read_image(tmp_path / "a.png", "here", 2, None)
    means = pixels[:24].reshape(12, 2, 17, 2, 3).mean((1, 3))
    assert small.shape == (12, 17, 3) and np.abs(small.numpy() - means).max() <= 0.5
    with pytest.raises(
        InputError, match=r"34 × 25 pixels, shrunk 3 times, is smaller than 11 × 11"
    ):
        read_image(tmp_path / "a.png", "here", 3, None)


def test_transparent_pixels_lie_on_the_background(tmp_path):
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[:, 6:] = [200, 100, 50, 255]
    pixels[:, :3] = [200, 100, 50, 51]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    white = read_image(tmp_path / "a.png", "here", 1, 1.0)
    assert white[0, 7].tolist() == [200, 100, 50] and white[0, 4].tolist() == [255] * 3
    assert white[0, 0].tolist() == pytest.approx([244, 224, 214], abs=1)
    assert read_image(tmp_path / "a.png", "here", 1, 0.0)[0, 4].tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [6, 7, 25])
def test_every_view_is_in_one_split(count):
    pixels = torch.arange(count).view(-1, 1, 1, 1)
    parts = split(pixels, pixels.view(-1, 1, 1), Path("x"))
    found = [int(i) for part in parts.values() for i in part.pixels.flatten()]
    assert sorted(found) == list(range(count)) and all(len(p.pixels) for p in parts.values())


@pytest.mark.skipif(not FOX.is_dir(), reason="no fox capture here")
def test_the_fox_capture():
    scene = load_capture(FOX, shrink=72)
    assert [len(v.poses) for v in scene.splits.values()] == [18, 3, 4]
    assert scene.splits["train"].pixels.shape == (18, 26, 15, 3)
    assert scene.camera.k1 == 0.0578421 and scene.camera.fx == pytest.approx(1375.52 / 72)
    mean = scene.splits["train"].pixels.float().mean((0, 1, 2))
    assert mean[0] > mean[2]  # a red fox on warm wallpaper


# What is refused ---------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-80])


def frame(change):
    """Change frame 2 of transforms.json."""
    return lambda root: files.edit(
        root / "transforms.json", lambda values: change(values["frames"][2])
    )


def top(**changed):
    return lambda root: files.edit(root / "transforms.json", lambda values: values.update(changed))


def matrix(row, column, value):
    return frame(lambda f: f["transform_matrix"][row].__setitem__(column, value))


def saved(pixels):
    return lambda root: Image.fromarray(pixels).save(root / "images" / "0002.png")


def write(text):
    return lambda root: (root / "transforms.json").write_text(text)


FRAME = r"transforms\.json, frame 2 \(images/0002\.png\): "
CAPTURES = {
    "no file": (lambda r: (r / "transforms.json").unlink(), r"transforms\.json does not exist$"),
    "no JSON": (write('{"w": 1,\n "h": }'), r"transforms\.json, line 2: it is no JSON: Expecting"),
    "empty": (write(""), r"transforms\.json, line 1: it is no JSON"),
    "binary": (lambda r: (r / "transforms.json").write_bytes(b"\xff\xfe\x00"), "is not text"),
    "a list": (write("[1]"), "holds a list, not an object with frames"),
    "no frames": (top(frames=[]), "has no list of frames"),
    "frames of text": (top(frames=["a"]), "frame 0: it has no file_path"),
    "few frames": (
        lambda r: files.edit(r / "transforms.json", lambda v: v["frames"].__delitem__(slice(5, 9))),
        "holds 5 frames, but a split .* needs at least 6",
    ),
    "no matrix": (frame(lambda f: f.pop("transform_matrix")), FRAME + "it has no transform_matrix"),
    "3 × 3": (
        frame(lambda f: f.update(transform_matrix=[[1, 0, 0]] * 3)), FRAME + r".*\(3, 3\), not 4"
    ),
    "ragged": (frame(lambda f: f["transform_matrix"][0].pop()), FRAME + ".*matrix of numbers"),
    "text": (matrix(0, 0, "a"), FRAME + ".*matrix of numbers"),
    "no rotation": (matrix(0, 0, 0.5), FRAME + "the pose is not a rotation"),
    "not finite": (matrix(0, 3, float("nan")), FRAME + ".*an entry that is not finite"),
    "no image": (
        lambda r: (r / "images" / "0002.png").unlink(), FRAME + r".*0002\.png does not exist"
    ),
    "truncated": (
        lambda r: truncate(r / "images" / "0002.png"), FRAME + r".*0002\.png cannot be read"
    ),
    "no picture": (
        lambda r: (r / "images" / "0002.png").write_text("fox"), FRAME + ".* cannot be read"
    ),
    "16 bits": (saved(np.zeros((13, 13), np.uint16)), FRAME + "its image .* not 8 bits a channel"),
    "another size": (
        saved(np.zeros((14, 13, 3), np.uint8)), FRAME + "its image is 13 × 14 pixels .*13 × 13"
    ),
    "another w": (top(w=26), "w × h is 26 × 13, but its images are 13 × 13"),
    "focal length 0": (top(fl_x=0), "fl_x must be positive, got 0"),
    "focal length text": (top(fl_x="long"), "fl_x is 'long', not a number"),
    "cx infinite": (top(cx=float("inf")), "cx is inf"),
    "fisheye": (top(is_fisheye=True), "is_fisheye is not part of the lens model"),
    "folding lens": (top(k1=-9.0), "k1 -9, .* cannot be inverted over the whole image"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_that_cannot_be_used_is_refused(copy, name):
    change, message = CAPTURES[name]
    root = copy("capture")
    change(root)
    with pytest.raises(InputError, match=message) as refused:
        load_capture(root)
    assert "\n" not in str(refused.value)


def test_a_truncated_jpeg_is_refused(copy):
    """Pillow would fill the rest with grey."""
    root = copy("capture")
    noise = np.random.default_rng(0).integers(0, 256, (13, 13, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images" / "0002.jpg")
    truncate(root / "images" / "0002.jpg")
    frame(lambda f: f.update(file_path="images/0002"))(root)
    with pytest.raises(InputError, match=r"frame 2 \(images/0002\): .*0002\.jpg cannot be read"):
        load_capture(root)


def test_cameras_in_one_place_have_no_scale(copy):
    root = copy("capture")

    def gather(values):
        for i in range(9):
            for row in range(3):
                values["frames"][i]["transform_matrix"][row][3] = 0.0

    files.edit(root / "transforms.json", gather)
    with pytest.raises(InputError, match="a camera stands where all look"):
        load_capture(root)


def test_blender_files_must_agree(copy):
    root = copy("blender")
    files.edit(root / "transforms_val.json", lambda v: v.update(camera_angle_x=0.7))
    with pytest.raises(
        InputError, match=r"transforms_val\.json: camera_angle_x is 0\.7, but 0\.75"
    ):
        load_blender(root)
    files.edit(root / "transforms_val.json", lambda v: v.update(camera_angle_x=4))
    with pytest.raises(InputError, match="must be below π, got 4"):
        load_blender(root)
    (root / "transforms_test.json").unlink()
    with pytest.raises(InputError, match=r"transforms_test\.json does not exist"):
        load_blender(root)


def test_blender_images_must_have_one_size(copy):
    root = copy("blender")
    for i in range(2):
        Image.new("RGBA", (14, 14)).save(root / "test" / f"r_{i}.png")
    with pytest.raises(
        InputError, match=r"transforms_test\.json: its images are 14 × 14 .*13 × 13"
    ):
        load_blender(root)


def rows(change):
    def apply(root):
        values = np.load(root / "poses_bounds.npy")
        np.save(root / "poses_bounds.npy", change(values))

    return apply


def entry(row, column, value):
    def change(values):
        values[row, column] = value
        return values

    return rows(change)


def turned(values):
    """Frame 3 looks back."""
    values[3, [1, 2, 6, 7, 11, 12]] *= -1
    return values


LLFF = {
    "no file": (lambda r: (r / "poses_bounds.npy").unlink(), r"poses_bounds\.npy does not exist"),
    "no array": (
        lambda r: (r / "poses_bounds.npy").write_text("1"), r"npy is no sound NumPy file"
    ),
    "truncated": (lambda r: truncate(r / "poses_bounds.npy"), "is no sound NumPy file"),
    "15 columns": (rows(lambda v: v[:, :15]), r"has shape \(9, 15\), not \(views, 17\)"),
    "3 dimensions": (rows(lambda v: v[None]), r"has shape \(1, 9, 17\)"),
    "text": (rows(lambda v: v.astype(str)), "not of numbers"),
    "no rows": (rows(lambda v: v[:0]), "holds 0 rows"),
    "a row less": (rows(lambda v: v[1:]), "has 8 poses, but .*images holds 9 images"),
    "no images": (lambda r: shutil.rmtree(r / "images"), "images is no folder"),
    "bounds": (entry(4, 15, 9.0), r"frame 4 \(0004\.png\): its bounds 9, 5\.6 are not 0"),
    "no rotation": (entry(5, 0, 0.3), r"frame 5 \(0005\.png\): the pose is not a rotation"),
    "not finite": (entry(5, 3, np.nan), r"frame 5 \(0005\.png\): .*an entry that is not"),
    "another focal length": (entry(6, 14, 3.0), "frame 6 .*its height, width or focal length"),
    "another size": (
        rows(lambda v: np.where(np.arange(17) == 4, 26.0, v)), "should be 13 × 26, but are 13 × 13"
    ),
    "looks back": (rows(turned), r"frame 3 \(0003\.png\): it does not face the way of the mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", LLFF)
def test_an_llff_folder_that_cannot_be_used_is_refused(copy, name):
    change, message = LLFF[name]
    root = copy("llff")
    change(root)
    with pytest.raises(InputError, match=message) as refused:
        load_llff(root)
    assert "\n" not in str(refused.value)


def test_a_camera_of_an_angle_sees_that_angle():
    ends = Camera.of_angle(100, 50, 0.75).directions()[25, [0, -1], 0]
    wide = torch.atan(ends[1] * 100 / 99) - torch.atan(ends[0] * 100 / 99)
    assert wide.item() == pytest.approx(0.75, abs=1e-5)
