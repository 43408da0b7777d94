"""Evaluation of the first stage and of rerankers: on dev for the release gate, on test for the results table.

Imports inside run down, like the package's own:

    release                             the verdict on the exported model, from dev
    fusion                              the weight of first-stage scores: fitted on train, checked on dev
    two_stage                           systems measured on a split, as a table and as TREC runs
    results                             results.json, and the table on the terminal
    gate  statistics  metrics           the release gate; intervals and paired tests; values of ir_measures

Nothing is imported here, so that a finished run shows its table without importing torch.
"""
