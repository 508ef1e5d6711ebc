"""`dfa-kernels profile`: one training step taken apart, against what the device can do at most.

    arguments  the command line               command  all of it, in order
    options    what can be asked for          subject  the network, its loss, optimizer and step
    ranges     names on what runs, opened     work     flops and bytes, counted as the step runs
               from outside while it is       trace    the profiler's events, and whose each is
               profiled                       parts    time, floor and gap of every part
    report     the table and the JSON         picture  the step on a time axis
    stretches  the step on the page of `dfa-kernels report`

Time is torch.profiler's and torch.utils.benchmark's. Needs the extra: pip install
"dfa_kernels[bench]".
"""

#: Where a step's time goes, in the order in which it does. ``backward``: what autograd carries
#: through layers; ``projection``: e·B ⊙ f′; ``update``: dW and db, with the optimizer's step where
#: it is fused with them; ``optimizer``: what is stepped, or zeroed, outside of that.
PARTS = ("forward", "error", "projection", "backward", "update", "optimizer")

#: What is left of the step when nothing of the above runs.
PYTHON = "Python"
