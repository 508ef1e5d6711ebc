"""Triton's interpreter, quicker: what it does at every call and need not."""

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Of this process, and for good."""
    _patch_the_language_once()
    check_overflow(False)


def _patch_the_language_once() -> None:
    """The interpreter looks through all of triton.language at each call of a device function, which
    is half of its time; what it replaces there can stay replaced."""
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        visible = [v for v in function.__globals__.values() if v is tl or v is tl.core]
        key = frozenset(map(id, visible))
        if key not in patched:
            patch(function)
            patched.add(key)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


def check_overflow(wanted: bool) -> None:
    """Whether every integer sum and product is checked for overflow, a quarter of the time."""
    options = interpreter.InterpreterOptions(sanitize_overflow=wanted)
    interpreter.interpreter_builder.options = options
