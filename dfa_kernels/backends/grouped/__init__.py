"""What the backends with two grouped kernels, `project` and `update`, share; neither Triton nor
CUDA is imported here.

    dfa_kernels/backends/grouped/
        backend.py   the three functions: checks and layouts, and where each δ comes from
        plan.py      what the launches are made of
        layout.py    what the kernels can take      hyper.py   a rule's row as they read it
"""
