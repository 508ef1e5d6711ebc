"""What a GPU is asked, in one run that leaves a page: `python -m bench.gpu`.

parts        in which order, how long     supervisor   in a process that may die
context      what a part works with       rows         what it finds out
report       the JSON and the page        machine      what it was measured on
rehearsal    all of it without a GPU      sources      what is measured, by its content
earlier      runs that it goes on from

build        csrc/ by this machine's nvcc
checks       tests/gpu, compute-sanitizer (sanitized: what that is given)
promises     no bytes for B, the same bits in every run
ceilings     copies and products at most  kernels      `project` and `update` on their own
steps        whole ones beside their rivals (contestants; compiling: once, or left out)
scaling      along depth, width, batch and outputs
choice       Triton's or CUDA's           epilogue     ReLU in its product's kernel
launches     an empty kernel's            sweep        other tiles, where asked for
"""
