"""The cross-encoder: load, score, rank, save.

Imports inside run down, like the package's own:

    teacher                             a cross-encoder whose scores are cached on disk
    scoring                             rows of a collection, tokenised once and scored by all processes
    reranker                            the model with its tokenizer
    loading  fusion                     loading a model folder with checks; fusion with first-stage scores
    heads  scores                       fresh heads; standardised scores
    tokenizer  batching  packing        special tokens; batches of similar length; sequences without padding
    interaction                         the interaction head; it imports nothing of ours, because exports contain it
"""

from trainer.model.fusion import Fusion
from trainer.model.heads import with_classifier
from trainer.model.reranker import Batches, Ranked, Reranker, ScoringModel
from trainer.model.scoring import TokenizedCollection, fit_length, inverse_document_frequency, rerank, score_rows

__all__ = [
    "Batches",
    "Fusion",
    "Ranked",
    "Reranker",
    "ScoringModel",
    "TokenizedCollection",
    "fit_length",
    "inverse_document_frequency",
    "rerank",
    "score_rows",
    "with_classifier",
]
