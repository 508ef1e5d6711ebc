"""Memory that launches on one stream share: kept where it is small, of each thread its own."""

import threading

import torch

from dfa_kernels.backends.cuda import launch


def test_a_small_scratch_is_kept_and_a_large_one_is_not():
    scratch = launch.Scratch(torch.device("cpu"))
    first, counters, held = scratch(1000, 3)
    assert held is None
    assert scratch(10, 300)[0] == first
    assert scratch(10, 1)[1] != counters  # there are more of them now
    assert scratch(2000, 0)[0] == scratch(1000, 0)[0]
    address, counters, held = scratch(launch.KEPT + 1, 1)
    assert held.data_ptr() == address
    assert counters == scratch(1, 1)[1]


def test_threads_share_no_scratch(nothing):
    launcher, found = launch.Launcher(nothing), []

    def run():
        found.append(launcher.scratch(torch.device("cpu"), 0, 0))

    for start in (run, threading.Thread(target=run).start):
        start()
    while len(found) < 2:
        pass
    assert found[0] is not found[1]
    assert launcher.scratch(torch.device("cpu"), 0, 0) is found[0]
