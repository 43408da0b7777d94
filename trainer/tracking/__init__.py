"""Training metrics: `metrics.jsonl`, and Weights & Biases if the recipe sets `track.mode`.

Imports inside run down, like the package's own:

    log                                 one line of metrics per step
    weights_and_biases                  one W&B run per training
"""
