"""The cross-encoder: load, score, rank, save.

Imports inside run down, like the package's own:

    rows                                a collection's rows, tokenised once and scored by all processes
    model                               the model with its tokenizer
    loading  fusion                     both from a folder, judged before and after; first-stage scores beside
    heads                               fresh heads
    tokenizer                           special tokens, in texts and around them
"""

from trainer.reranker.fusion import Fusion
from trainer.reranker.heads import with_classifier
from trainer.reranker.model import Batches, Ranked, Reranker, ScoringModel
from trainer.reranker.rows import TokenizedCollection, fit_length, rarity, rerank, score_rows

__all__ = [
    "Batches",
    "Fusion",
    "Ranked",
    "Reranker",
    "ScoringModel",
    "TokenizedCollection",
    "fit_length",
    "rarity",
    "rerank",
    "score_rows",
    "with_classifier",
]
