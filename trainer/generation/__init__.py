"""Queries made from the documents of a corpus, for the stage `generate`: by a language model, or taken from them.

With a model, a document is one request, which `trainer/endpoints` sends. A made query belongs to the document whose
request it answered, whatever the document or the answer says.

Imports inside run down, like the package's own:

    estimate  batch                     requests, tokens, costs and hours before sending; files of the Batch API
    making                              requests, answers, filters and report of a collection
    extraction  scores                  queries that are parts of the documents; a cross-encoder's grades
    filters  sources                    which queries are dropped; which documents are asked
    prompt                              the request for a document, and the queries in its answer
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.generation.batch import read_answers as read_answers
    from trainer.generation.batch import write_requests as write_requests
    from trainer.generation.estimate import forecast as forecast
    from trainer.generation.extraction import cut as cut
    from trainer.generation.making import Draft as Draft
    from trainer.generation.making import requests_of as requests_of
    from trainer.generation.scores import grades_of_scores as grades_of_scores
    from trainer.generation.sources import plan as plan

__getattr__ = face(__name__)
