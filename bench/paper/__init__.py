"""The paper's four tasks, each trained by DFA, backpropagation and shallow from one definition.

    python -m bench.paper graph --model gat --data planetoid --dataset cora --root DIR
    python -m bench.paper report

    task         what a task offers           view/         neural view synthesis (NeRF)
    options      what can be asked for        recommender/  click-through prediction
    training     one network, resumable       graph/        geometric learning
    study        methods × rates × seeds      language/     language modelling
    rows         the JSON                     verdict       what its rows say
    report       one HTML page, beside the paper's figures (published)

Launay et al., NeurIPS 2020, section 3 and appendix. Needs the extra: pip install ".[paper]".
"""
