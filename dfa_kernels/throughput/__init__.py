"""`dfa-kernels bench`: how fast a training step is, beside every rival and the hardware's limits.

    result     the file that a run writes, and its reader

Tables and figures need the extra: pip install "dfa_kernels[bench]".
"""
