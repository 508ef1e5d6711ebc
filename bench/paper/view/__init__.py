"""Neural view synthesis: NeRF on a procedural scene, Blender scenes, captures and LLFF.

python -m bench.paper view --quick
python -m bench.paper view --data capture --root DIR --downscale 24

task         options, defaults            model        the two fields
problem      training and scores          rendering    samples along rays, and their colour
views        photographs, poses, splits   cameras      lenses, poses, rays
procedural   blender   capture   llff     pictures     views, depths, an orbit
transforms   the frames' file of blender and capture
"""

from bench.paper.view.task import TASK

__all__ = ["TASK"]
