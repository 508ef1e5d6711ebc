"""The forward hooks by which a `DFA` module reaches into a model: where it cuts, and where the
error point is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from dfa_kernels.recording import active
from dfa_kernels.replay import Replay

if TYPE_CHECKING:
    from dfa_kernels.module import DFA

#: A module, and the key and the function of a hook of it.
Hooked = tuple[nn.Module, int, Callable[..., Any]]


class Owner:
    """The DFA module whose hooks these are, which they do not keep alive. A copy, or one that was
    loaded, is nobody's until the DFA module that it came with says that it is its."""

    def __init__(self) -> None:
        self.of: Callable[[], DFA | None] = _nobody

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return Owner()

    def __reduce__(self) -> tuple[Any, ...]:
        return Owner, ()


def _nobody() -> None:
    return None


def reached(owned: Owner, name: str, module: nn.Module, args: Any, output: Any) -> Any:
    owner = owned.of()
    recording = active.recording or (None if owner is None else Replay.of(owner))
    if recording is None or recording.owner is not owner:
        return output
    if recording.layers and recording.layers[-1].name == name:
        return output  # fused: cut already
    return recording.point(name, module, output)


def closes(owned: Owner, module: nn.Module, args: Any, output: Any) -> Any:
    recording = active.recording
    if recording is None or recording.owner is not owned.of():
        return output
    return recording.close(output)


def hangs(hooked: Hooked) -> bool:
    """Whether the hook is where it was put: somebody may have cleared it, or, where a model was
    loaded, registered another under the same key."""
    module, key, hook = hooked
    return module._forward_hooks.get(key) is hook


def dead(hook: Callable[..., Any]) -> bool:
    """Whether it is one of these, and nobody's: a copy of a wrapped model has those of no wrapper
    of its own."""
    if not isinstance(hook, partial) or hook.func not in (reached, closes):
        return False
    owned: Owner = hook.args[0]
    return owned.of() is None
