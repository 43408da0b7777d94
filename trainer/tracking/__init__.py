"""Training numbers: `metrics.jsonl`, and Weights & Biases where the recipe asks for it.

Imports inside run down, like the package's own:

    log                                 a line of numbers for every step
    weights_and_biases                  one run there for each training
"""
