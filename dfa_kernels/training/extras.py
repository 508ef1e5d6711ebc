"""What a command needs beyond torch, which an extra of the package brings."""

from __future__ import annotations

from importlib.util import find_spec

from dfa_kernels.training import InputError

#: What a module is installed as, where that has another name.
_PACKAGES = {"sklearn": "scikit-learn"}


def need(extra: str, *modules: str) -> None:
    """
    Raises:
        InputError: some of them are not installed.
    """
    missing = [_PACKAGES.get(module, module) for module in modules if find_spec(module) is None]
    if missing:
        bring = "brings it" if len(missing) == 1 else "brings them"
        raise InputError(
            f'it needs {" and ".join(missing)}: pip install "dfa_kernels[{extra}]" {bring}'
        )
