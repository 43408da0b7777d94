"""The cross-encoder: load, score, rank, save.

Imports inside run down, like the package's own:

    teacher                             a cross-encoder asked for scores, and the scores that it gave before
    scoring                             a collection's rows, tokenised once and scored by all processes
    reranker                            the model with its tokenizer
    loading  fusion  arguments          a model from a folder, checked; first-stage scores added; arguments checked
    heads  scores                       fresh heads; scores of different systems on one scale
    tokenizer  batching  packing        special tokens; batches of one length; sequences without padding
    interaction                         the interaction head, which stands alone: it is exported as it is
"""

from trainer.model.fusion import Fusion
from trainer.model.heads import with_classifier
from trainer.model.reranker import Batches, Ranked, Reranker, ScoringModel
from trainer.model.scoring import TokenizedCollection, fit_length, rarity, rerank, score_rows

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
