"""The measurement: a first stage and what reranks its candidates, on dev for the gate and on test for people.

Imports inside run down, like the package's own:

    two_stage                           systems measured on a split, as a table and as TREC runs
    gate  results                       the verdict on the model that leaves; what is kept and shown
    statistics                          intervals and a paired test of per-query numbers

Nothing is imported here, so that a finished run shows its table without loading torch.
"""
