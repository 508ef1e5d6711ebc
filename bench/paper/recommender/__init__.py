"""Click-through prediction: FM, DeepFM, Deep & Cross, AutoInt and AFN, on Criteo or any table.

    python -m bench.paper recommender --model deepfm --data bank --root DIR

    task        options and data sources       fields      vocabularies, splits
    prediction  a model in training            criteo      13 integers, 26 categories, streamed
    models      the five, defined once         table       CSV with a label column
    picture     calibration, all methods       generated   Criteo's format, best AUC known
                                               loading     memory and time of reading

Launay et al., NeurIPS 2020, section 3.2.
"""

from bench.paper.recommender.task import Recommender

TASK = Recommender()
