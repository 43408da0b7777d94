"""The cross-encoder: load, score, rank, save.

Imports inside run down, like the package's own:

    teacher                             a cross-encoder whose scores are cached on disk
    scoring                             rows of a collection, tokenised once and scored by all processes
    scoring_model                       several batches in one forward call, for data parallelism
    reranker                            the model with its tokenizer
    engines                             torch or ONNX Runtime, and which of them is faster here
    loading  fusion  arguments          loading a model folder with checks; first-stage scores; arguments checked
    windows                             long documents read in overlapping parts
    mixture                             lexical signals beside a standard checkpoint's logit
    decoder  modular                    the one-row head of a causal language model; a head saved as modules
    heads  scores  calibration  prompt  fresh heads; standardised scores; scores as probabilities; pairs in a prompt
    word_gradients                      gradients of the word embeddings, added in place
    tokenizer  packing                  special tokens; padded, packed and joined layouts
    batching  attention                 batches of similar length; attention within pairs, in each layout
    interaction                         the interaction head; it imports nothing of ours, because exports contain it
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.model.calibration import Calibration as Calibration
    from trainer.model.fusion import Fusion as Fusion
    from trainer.model.heads import with_classifier as with_classifier
    from trainer.model.mixture import Mixture as Mixture
    from trainer.model.mixture import has_mixture as has_mixture
    from trainer.model.reranker import Ranked as Ranked
    from trainer.model.reranker import Reranker as Reranker
    from trainer.model.scoring import ChosenWindows as ChosenWindows
    from trainer.model.scoring import TokenizedCollection as TokenizedCollection
    from trainer.model.scoring import best_window_of as best_window_of
    from trainer.model.scoring import fit_length as fit_length
    from trainer.model.scoring import inverse_document_frequency as inverse_document_frequency
    from trainer.model.scoring import rerank as rerank
    from trainer.model.scoring import score_rows as score_rows
    from trainer.model.scoring_model import Batches as Batches
    from trainer.model.scoring_model import ScoringModel as ScoringModel

__getattr__ = face(__name__)
