"""The first stage: candidates of every judged query, retrieved once for mining, dev and test.

Dense (bi-encoder, vectors in shards on disk), BM25, both fused, or the user's own TREC run. With enough train queries
BM25's parameters and the fusion weights are tuned on them.

Imports inside run down, like the package's own:

    searcher                            new queries, one at a time, over an open corpus
    retrieve                            candidates of all splits, with one search per engine
    tuning                              BM25's parameters and fusion weights, tuned on the train queries
    engines                             all engines of a recipe, searched and fused
    dense  bm25  fusion  trec_run       dense search, BM25, fusion of rankings, the user's own TREC run
    bf16_search                         exact dense search with a first pass in bf16
    candidates                          the candidates of every query
    embeddings                          vectors in shards on disk
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.retriever.candidates import NOTHING as NOTHING
    from trainer.retriever.candidates import Candidates as Candidates
    from trainer.retriever.candidates import RankedLists as RankedLists
    from trainer.retriever.embeddings import BiEncoder as BiEncoder
    from trainer.retriever.embeddings import Embeddings as Embeddings
    from trainer.retriever.embeddings import Shards as Shards
    from trainer.retriever.engines import Settings as Settings
    from trainer.retriever.engines import language_of as language_of
    from trainer.retriever.retrieve import candidates_of_dict as candidates_of_dict
    from trainer.retriever.retrieve import embed as embed
    from trainer.retriever.retrieve import embedded_share as embedded_share
    from trainer.retriever.retrieve import retrieve_splits as retrieve_splits
    from trainer.retriever.retrieve import retrieve_unjudged as retrieve_unjudged
    from trainer.retriever.retrieve import shards as shards
    from trainer.retriever.searcher import Searcher as Searcher
    from trainer.retriever.tuning import Tuning as Tuning

__getattr__ = face(__name__)
