"""Backends that a careless friend wrote: registered by whoever imports this module."""

import os
import signal

import dfa_kernels as dfa


class Odd:
    """The reference, until ``steps`` calls have been made; then ``end``."""

    def __init__(self, steps, end):
        self.left, self.end = steps, end

    def unavailable(self, device):
        return None

    def describe(self):
        return "odd"

    def project(self, *given):
        return dfa.backends.get("reference").project(*given)

    def step_(self, *given):
        self.left -= 1
        if self.left < 0:
            self.end()
        dfa.backends.get("reference").step_(*given)


def raises():
    raise ValueError("the card fell\nout of its slot")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


BACKENDS = {
    "odd-steady": Odd(10**9, raises),
    "odd-raiser": Odd(8, raises),
    "odd-killer": Odd(8, kill),
}

for name, backend in BACKENDS.items():
    dfa.backends.register(name, backend)
