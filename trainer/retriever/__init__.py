"""The first stage: candidates of every judged query, retrieved once for mining, dev and test.

Dense (bi-encoder, vectors in shards on disk), BM25, both fused, or the user's own TREC run. With enough train queries
BM25's parameters and the fusion weights are tuned on them.

Imports inside run down, like the package's own:

    retrieve                            candidates of all splits, with one search per engine
    tuning                              BM25's parameters and fusion weights, tuned on the train queries
    engines                             all engines of a recipe, searched and fused
    dense  bm25  fusion  trec_run       dense search, BM25, fusion of rankings, the user's own TREC run
    candidates                          the candidates of every query
    embeddings                          vectors in shards on disk
"""

from trainer.retriever.candidates import NOTHING, Candidates, RankedLists
from trainer.retriever.embeddings import BiEncoder, Embeddings, Shards
from trainer.retriever.engines import Settings, language_of
from trainer.retriever.retrieve import retrieve_splits, retrieve_unjudged, shards
from trainer.retriever.tuning import Tuning

__all__ = [
    "NOTHING",
    "BiEncoder",
    "Candidates",
    "Embeddings",
    "RankedLists",
    "Settings",
    "Shards",
    "Tuning",
    "language_of",
    "retrieve_splits",
    "retrieve_unjudged",
    "shards",
]
