"""The first stage: candidates for every judged query, found once and used by mining, dev and test alike.

Dense (bi-encoder, vectors in shards on disk), BM25, both fused, or the user's own TREC run. With enough train queries
BM25's parameters and the weights of the fusion are tuned on them.

Imports inside run down, like the package's own:

    retrieve                            every engine asked once, for all splits together
    tuning                              settings chosen on the train queries
    engines                             all engines together, under any settings
    dense  bm25  fusion  trec_run       the engines; the user's own TREC run
    candidates                          the candidates of every query
    embeddings                          vectors in shards on disk
"""

from trainer.retriever.candidates import NOTHING, Candidates, Ranking
from trainer.retriever.embeddings import BiEncoder, Embeddings, Shards
from trainer.retriever.engines import Settings, language_of
from trainer.retriever.retrieve import candidates_of_dict, embed, retrieve_splits, retrieve_unjudged, shards
from trainer.retriever.tuning import Tuning

__all__ = [
    "NOTHING",
    "BiEncoder",
    "Candidates",
    "Embeddings",
    "Ranking",
    "Settings",
    "Shards",
    "Tuning",
    "candidates_of_dict",
    "embed",
    "language_of",
    "retrieve_splits",
    "retrieve_unjudged",
    "shards",
]
