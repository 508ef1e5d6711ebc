"""Environment variables, looked up for little: every step asks for some."""

from __future__ import annotations

import os
from typing import Any

# Where ``os.environ.get`` looks; it takes close to a microsecond to find nothing there.
_held: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]


class Variable:
    """An environment variable: ``get()`` is ``os.environ.get(name)``, for less."""

    def __init__(self, name: str) -> None:
        self._key = os.environ.encodekey(name)

    def held(self) -> Any:
        """What ``os.environ`` holds: to be compared; None where it is not set."""
        return _held.get(self._key)

    def get(self) -> str | None:
        found = _held.get(self._key)
        return None if found is None else os.environ.decodevalue(found)
