"""The first stage: candidates for every judged query, found once and used by mining, dev and test alike.

Dense (bi-encoder, vectors in shards on disk), BM25, both fused by reciprocal rank, or the user's own TREC run.

Imports inside run down, like the package's own:

    retrieve                            every engine asked once, for all splits together
    dense  bm25  fusion  own_run        the engines
    candidates                          what is handed on
    embeddings                          vectors in shards on disk
"""

from trainer.retriever.candidates import NOTHING, Candidates, Ranking
from trainer.retriever.embeddings import BiEncoder, Embeddings, Shards
from trainer.retriever.retrieve import language_of, retrieve_splits, retrieve_unjudged, shards

__all__ = [
    "NOTHING",
    "BiEncoder",
    "Candidates",
    "Embeddings",
    "Ranking",
    "Shards",
    "language_of",
    "retrieve_splits",
    "retrieve_unjudged",
    "shards",
]
