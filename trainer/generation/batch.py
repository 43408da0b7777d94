"""Requests as a file for the Batch API of OpenAI and compatible services, and its file of answers.

Batches cost about half, and are answered within a day instead of at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.data import Faults, read_lines
from trainer.endpoints.chat import ChatRequest, without_thoughts
from trainer.endpoints.sender import unanswered
from trainer.endpoints.store import Answer, Store
from trainer.recipe import Endpoint
from trainer.runtime.run_folder import replacing


def write_requests(requests: Sequence[ChatRequest], endpoint: Endpoint, store: Store, path: Path) -> int:
    """Write the requests that are not in the store, one a line, and return their number."""
    address = f"{urlsplit(endpoint.url).path}/chat/completions"
    missing = unanswered(requests, store)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for request in missing:
            body = {"model": request.model, "messages": list(request.messages), **request.parameters}
            line = {"custom_id": request.key, "method": "POST", "url": address, "body": body}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(missing)


def read_answers(path: Path, keys: Collection[str], store: Store) -> tuple[int, int]:
    """Add the answers in a file of the Batch API to the store; return how many were added, and how many cannot be used.

    An answer to a request that is not among `keys` is not used: the documents or the recipe changed since.
    """
    faults, before, unusable = Faults(), len(store.answers), 0
    for _, line in read_lines(path, faults):
        key, answer = _answer(line)
        if answer is None or key not in keys:
            unusable += bool(line.strip())
        else:
            store.add({key: answer})
    faults.stop()
    return len(store.answers) - before, unusable


def _answer(line: str) -> tuple[str, Answer | None]:
    """Return the key and the answer in a line, None if it holds none."""
    try:
        content: Any = json.loads(line)
        key, response = str(content["custom_id"]), content["response"]
        choice, usage = response["body"]["choices"][0], response["body"].get("usage") or {}
        text = without_thoughts(choice["message"].get("content") or choice["message"].get("refusal") or "")
        tokens = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        return key, Answer(text, str(choice.get("finish_reason") or ""), *tokens, seconds=0.0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "", None
