"""What measures the package, and what was measured.

    throughput   throughput_report    a step beside its rivals, by `dfa-kernels bench`
    agreement    suite/               whether pytest-benchmark says the same
    detection    planted              whether that command finds a slowdown, and only one that is
                                      there
    step         step_report          a step beside eager backpropagation: contestants, and memory
                                      in a process of its own
    quality      paper/               how well DFA learns: two data sets; the paper's four tasks
    grid                              which learning rates a method is tried with
    launch       launch_triton        the host's part of a call, and of a whole step, where nothing
    launch_cuda  launch_step          is launched
    instructions                      how many machine instructions a step takes the host
    machine_code                      what the kernels compile to: machine_cases and machine_built,
                                      read by machine_listing, judged by machine_gate, shown by
                                      machine_report
    gpu/                              all that needs a GPU
    readme                            the committed figures into README.md

results/README.md: every claim, and the file that holds its measurement.
"""
