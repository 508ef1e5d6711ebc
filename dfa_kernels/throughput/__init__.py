"""`dfa-kernels bench`: how fast a training step is, beside every rival and the hardware's limits.

    arguments    the command line                command      a run, from options to tables
    options      what can be asked for           result       the file that a run writes
    contestants, by_hand, rivals                 the steps that are timed; `lineup`: their names
    networks     what they train                 counting     flops and bytes, from the mathematics
    timing       turns and clocks                job, turns, runner   a process that takes turns
    ceilings     what the device can do          memory, resident     peak memory
    rows, spread from samples to rows            table        the terminal
    scaling      curves and crossovers           cost, predict        the cost model, and devices/
    compare      two results                     environment  the machine
    page         `dfa-kernels report`; with page_arguments, charts, roofline, plots, source and a
                 template

Tables and statistics need the extra: pip install "dfa_kernels[bench]".
"""
