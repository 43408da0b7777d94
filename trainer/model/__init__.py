"""The cross-encoder: load, score, rank, save.

Imports inside run down, like the package's own:

    teacher                             a cross-encoder asked for scores, and the scores that it gave before
    scoring                             a collection's rows, tokenised once and scored by all processes
    reranker                            the model with its tokenizer
    loading  fusion                     a model from a folder, checked before and after; first-stage scores added
    heads  scores                       fresh heads; scores of different systems on one scale
    tokenizer  batching  packing        special tokens; batches of one length; sequences without padding
    interaction                         the interaction head, which stands alone: it is exported as it is
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.model.fusion import Fusion as Fusion
    from trainer.model.heads import with_classifier as with_classifier
    from trainer.model.reranker import Batches as Batches
    from trainer.model.reranker import Ranked as Ranked
    from trainer.model.reranker import Reranker as Reranker
    from trainer.model.reranker import ScoringModel as ScoringModel
    from trainer.model.scoring import TokenizedCollection as TokenizedCollection
    from trainer.model.scoring import fit_length as fit_length
    from trainer.model.scoring import rarity as rarity
    from trainer.model.scoring import rerank as rerank
    from trainer.model.scoring import score_rows as score_rows

__getattr__ = face(__name__)
