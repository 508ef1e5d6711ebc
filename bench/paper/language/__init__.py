"""Language modelling: a decoder-only Transformer on WikiText (Launay et al. 2020, section 3.4).

task         the options, and what they add up to     attention    standard, fixed, Synthesizer
problem      data, runs, scores                       schedules    optimizers and their rates
corpus       the texts: WikiText, Python's library    perplexity   per word, windows over a text
tokens       byte-pair encoding, cached               gap          the share that DFA closes
model        the Transformer and its points           curves       the picture
"""

from bench.paper.language.task import Language

TASK = Language()
