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

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.retriever.candidates import NOTHING as NOTHING
    from trainer.retriever.candidates import Candidates as Candidates
    from trainer.retriever.candidates import Ranking as Ranking
    from trainer.retriever.embeddings import BiEncoder as BiEncoder
    from trainer.retriever.embeddings import Embeddings as Embeddings
    from trainer.retriever.embeddings import Shards as Shards
    from trainer.retriever.engines import Settings as Settings
    from trainer.retriever.engines import language_of as language_of
    from trainer.retriever.retrieve import retrieve_splits as retrieve_splits
    from trainer.retriever.retrieve import retrieve_unjudged as retrieve_unjudged
    from trainer.retriever.retrieve import shards as shards
    from trainer.retriever.tuning import Tuning as Tuning

__getattr__ = face(__name__)
