"""`dfa-kernels train`: dfa, bp and shallow side by side on one architecture and real data.

    options      what can be asked for            model       the network and its optimizer
    datasets     digits, Fashion-MNIST            experiment  the loop: interleaved, resumable
    memory       peak memory, in a fresh process  report      the log and the table
    plot         the curves                       command     all of it, in order
    progress     a bar, or lines                  checkpoint  written whole or not at all
    interruption  stopping between two steps      extras      what else must be installed
    device       what --device names

Reading data and reporting need the extra: pip install "dfa_kernels[train]".
"""


class InputError(ValueError):
    """What was asked for cannot be done; the message is one sentence with names and numbers."""
