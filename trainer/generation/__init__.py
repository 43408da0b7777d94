"""Queries made from the documents of a corpus, for the stage `generate`: by a language model, or taken from them.

With a model, a document is one request. Its answer is kept under a hash of the request's content in an append-only
file, so that nothing is paid twice: not after a kill, and not for documents that did not change. A made query belongs
to the document whose request it answered, whatever the document or the answer says.

Imports inside run down, like the package's own:

    estimate  batch                     requests, tokens, costs and hours before sending; files of the Batch API
    making                              requests, answers, filters and report of a collection
    extraction                          queries that are parts of the documents
    filters  sources  check             which queries are dropped; which documents are asked; grades of a judge
    prompt                              the request for a document, and the queries in its answer
    endpoint                            requests with back-off, concurrency and limits
    store                               answers by the content of the request
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.generation.batch import read_answers as read_answers
    from trainer.generation.batch import write_requests as write_requests
    from trainer.generation.check import grades_of_scores as grades_of_scores
    from trainer.generation.check import read_grade as read_grade
    from trainer.generation.check import request_for_pair as request_for_pair
    from trainer.generation.endpoint import Spent as Spent
    from trainer.generation.estimate import forecast as forecast
    from trainer.generation.extraction import cut as cut
    from trainer.generation.making import Draft as Draft
    from trainer.generation.making import ask as ask
    from trainer.generation.making import requests_of as requests_of
    from trainer.generation.sources import plan as plan
    from trainer.generation.store import Store as Store

__getattr__ = face(__name__)
