"""Models behind HTTP endpoints: language models that answer, and rerankers that score.

Every answer is kept under a hash of what was sent, in an append-only file, so that nothing is paid twice: not after a
kill, and not for texts that did not change. Keys are read from the environment and are in no file and no message.

Imports inside run down, like the package's own:

    estimate                            requests, tokens and costs before anything is sent
    scorer                              an endpoint as a function from pairs of texts to scores
    asking                              requests sent with progress, and the failures among them
    sender                              requests with back-off, concurrency and limits
    grades                              a language model's grade of a document for a query
    rerank  chat                        requests in the forms of rerank servers; of OpenAI's chat API
    service  store                      the endpoint with its key; answers by the content of the request
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.endpoints.asking import Limits as Limits
    from trainer.endpoints.asking import ask as ask
    from trainer.endpoints.asking import cost_of as cost_of
    from trainer.endpoints.estimate import estimate_pairs as estimate_pairs
    from trainer.endpoints.grades import read_grade as read_grade
    from trainer.endpoints.grades import request_for_pair as request_for_pair
    from trainer.endpoints.scorer import PairScorer as PairScorer
    from trainer.endpoints.sender import Spent as Spent
    from trainer.endpoints.service import Service as Service
    from trainer.endpoints.service import service_problem as service_problem
    from trainer.endpoints.store import Store as Store
    from trainer.endpoints.store import store_of as store_of

__getattr__ = face(__name__)
