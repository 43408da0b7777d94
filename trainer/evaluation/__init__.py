"""The measurement: a first stage and what reranks its candidates, on dev for the gate and on test for people.

Imports inside run down, like the package's own:

    release                             what dev shows of the model that leaves
    fusion                              the weight of first-stage scores: fitted on train, checked on dev
    two_stage                           systems measured on a split, as a table and as TREC runs
    results                             what is kept and shown
    gate  statistics  metrics           the verdict; intervals and paired tests; values of ir_measures

Nothing is imported here, so that a finished run shows its table without loading torch.
"""
