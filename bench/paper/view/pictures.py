"""Pictures of finished runs, methods side by side: held-out views, depths, an orbit.

views.png   test views: the photograph, then each method's rendering with its PSNR
depth.png   the depths of the same views, near bright and far dark
orbit.gif   all methods around the scene;  orbit.png: some of its frames
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 160  # pixels that the longer side of a tile has at least
_GAP, _LINE = 4, 14
_FRAME_MS = 120
_COLOURS = 128  # of the GIF
_STILLS = 6


class Picture(NamedTuple):
    """colour (height, width, 3) in [0, 1]; depth (height, width), infinite where nothing is."""

    colour: np.ndarray
    depth: np.ndarray


def write_views(
    truth: list[Picture], rendered: Mapping[str, list[Picture]], captions: Mapping[str, list[str]],
    folder: Path,
) -> list[Path]:  # fmt: skip
    """views.png and depth.png: a row for each view. A truth without depths (all NaN) is left out
    of the second."""
    rows = [
        [("truth", picture.colour)]
        + [(captions[m][i], views[i].colour) for m, views in rendered.items()]
        for i, picture in enumerate(truth)
    ]
    paths = [_save(_sheet(rows), folder / "views.png")]
    known = [picture for picture in truth if np.isfinite(picture.depth).any()]
    rows = []
    for i, picture in enumerate(truth):
        depths = {"truth": picture.depth} if known else {}
        depths |= {method: views[i].depth for method, views in rendered.items()}
        finite = np.concatenate([d[np.isfinite(d)] for d in depths.values()])
        low, high = np.percentile(finite, [1, 99])
        rows.append([(name, _shade(d, low, high)) for name, d in depths.items()])
    return [*paths, _save(_sheet(rows), folder / "depth.png")]


def write_orbit(orbits: Mapping[str, list[np.ndarray]], folder: Path) -> list[Path]:
    """orbit.gif and orbit.png, of frames (height, width, 3) by name."""
    count = min(len(frames) for frames in orbits.values())
    frames = [_sheet([[(name, f[i]) for name, f in orbits.items()]]) for i in range(count)]
    path = folder / "orbit.gif"
    # One palette, from all frames at once, so that colours do not flicker.
    palette = Image.fromarray(np.concatenate([np.asarray(f) for f in frames]))
    palette = palette.quantize(_COLOURS, Image.Quantize.MEDIANCUT)
    flat = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=_FRAME_MS, loop=0)
    stills = range(0, count, -(-count // _STILLS))
    rows = [[(name if i == 0 else "", f[i]) for i in stills] for name, f in orbits.items()]
    return [path, _save(_sheet(rows), folder / "orbit.png")]


def _shade(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    near = 1 - np.clip((depth - low) / max(high - low, 1e-9), 0, 1)  # infinitely far is dark
    return matplotlib.colormaps["magma"](near)[..., :3]


def _sheet(rows: list[list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Tiles of one size with a caption above each."""
    height, width = rows[0][0][1].shape[:2]
    times = max(1, round(_SIDE / max(height, width)))
    across, down = width * times + _GAP, height * times + _GAP + _LINE
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * across + _GAP, len(rows) * down + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for y, row in enumerate(rows):
        for x, (caption, tile) in enumerate(row):
            at = _GAP + x * across, _GAP + y * down
            pixels = Image.fromarray((255 * tile.clip(0, 1)).round().astype(np.uint8))
            enlarged = pixels.resize((width * times, height * times), Image.Resampling.NEAREST)
            pen.text(at, caption, fill="black", font=font)
            sheet.paste(enlarged, (at[0], at[1] + _LINE))
    return sheet


def _save(picture: Image.Image, path: Path) -> Path:
    picture.save(path, optimize=True)
    return path
