"""Which modules of a model are meant by modules, names and globs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn


def resolve(
    names: Mapping[str, nn.Module], points: Iterable[nn.Module | str] | nn.Module | str
) -> list[str]:
    """Names of the points, in the model's order."""
    given = [points] if isinstance(points, (str, nn.Module)) else list(points)
    chosen: set[str] = set()
    for point in given:
        if isinstance(point, nn.ModuleList):
            chosen.update([resolve_one(names, inside) for inside in point])
        elif isinstance(point, nn.Module):
            chosen.add(resolve_one(names, point))
        elif isinstance(point, str):
            matched = [
                n for n in names if fnmatchcase(n, point) and n.count(".") == point.count(".")
            ]
            if not matched:
                raise ValueError(
                    f"point {point!r} matches none of the {len(names)} modules: {_some(names)}"
                )
            chosen.update(matched)
        else:
            raise TypeError(f"a point must be a module or a name, got {type(point).__name__}")
    return [n for n in names if n in chosen]


def resolve_one(names: Mapping[str, nn.Module], module: nn.Module | str) -> str:
    if isinstance(module, str):
        if module not in names:
            raise ValueError(f"no module is named {module!r}: there are {_some(names)}")
        return module
    if not isinstance(module, nn.Module):
        raise TypeError(f"error_at must be a module or a name, got {type(module).__name__}")
    for name, candidate in names.items():
        if candidate is module:
            return name
    raise ValueError(f"{type(module).__name__} is not a module inside the model")


def _some(names: Mapping[str, nn.Module]) -> str:
    shown = list(names)[:8]
    return ", ".join(map(repr, shown)) + (", …" if len(names) > len(shown) else "")
