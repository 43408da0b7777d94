"""Calls of rerank clients, in an environment that has them; started by check_clients.py.

    ENVIRONMENT/bin/python scripts/client_calls.py

reads lines of JSON {"client", "address", "key", "query", "documents", "top_n"}, and answers each with a line of JSON:
{"client", "version", "rows": [[index, score], ...]} in the client's order, or with "error" instead of "rows", the class
and message of the client's exception. Nothing here imports this project.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

Rows = list[tuple[int, float]]


class Call(NamedTuple):
    """What a client is asked: a server, its key, a query, distinct documents, and how many of them come back."""

    address: str
    key: str
    query: str
    documents: list[str]
    top_n: int

    def indices(self, found: list[tuple[str, float]]) -> Rows:
        """Return the rows of a client that gives texts instead of indices."""
        return [(self.documents.index(text), score) for text, score in found]


def cohere_v2(call: Call) -> Rows:
    """Call `ClientV2.rerank`."""
    import cohere

    client = cohere.ClientV2(api_key=call.key, base_url=call.address)
    answer = client.rerank(
        model="mine", query=call.query, documents=call.documents, top_n=call.top_n, max_tokens_per_doc=4096, priority=1
    )
    return [(row.index, row.relevance_score) for row in answer.results]


def cohere_v1(call: Call) -> Rows:
    """Call `Client.rerank` with objects as documents, which it gets back."""
    import cohere

    documents = [{"text": text, "title": "not read"} for text in call.documents]
    client = cohere.Client(api_key=call.key, base_url=call.address)
    answer = client.rerank(
        model="mine", query=call.query, documents=documents, top_n=call.top_n, return_documents=True, rank_fields=None
    )
    return call.indices([(row.document.text, row.relevance_score) for row in answer.results])


def voyageai(call: Call) -> Rows:
    """Call Voyage's client, which requires `data` and `usage.total_tokens`."""
    import voyageai

    client = voyageai.Client(api_key=call.key, base_url=f"{call.address}/v1")
    answer = client.rerank(call.query, call.documents, model="mine", top_k=call.top_n)
    if not answer.total_tokens > 0:
        raise ValueError("no tokens were counted")
    return call.indices([(row.document, row.relevance_score) for row in answer.results])


def litellm(call: Call, provider: str, path: str = "") -> Rows:
    """Call litellm as one of its providers."""
    import litellm

    answer = litellm.rerank(
        model=f"{provider}/mine",
        query=call.query,
        documents=call.documents,
        top_n=call.top_n,
        api_base=call.address + path,
        api_key=call.key,
    )
    return [(row["index"], row["relevance_score"]) for row in answer.results][: call.top_n]


def llama_index(call: Call, postprocessor: Any) -> Rows:
    """Call a post-processor of LlamaIndex."""
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in call.documents]
    found = postprocessor.postprocess_nodes(nodes, query_str=call.query)
    return call.indices([(node.node.text, node.score) for node in found])


def llama_index_tei(call: Call) -> Rows:
    """Call LlamaIndex's post-processor for TEI."""
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    token = f"Bearer {call.key}"
    return llama_index(
        call, TextEmbeddingInference(base_url=call.address, model_name="mine", top_n=call.top_n, auth_token=token)
    )


def llama_index_jina(call: Call) -> Rows:
    """Call LlamaIndex's post-processor for Jina."""
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return llama_index(
        call, JinaRerank(base_url=f"{call.address}/v1", api_key=call.key, model="mine", top_n=call.top_n)
    )


def llama_index_cohere(call: Call) -> Rows:
    """Call LlamaIndex's post-processor for Cohere."""
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return llama_index(call, CohereRerank(base_url=call.address, api_key=call.key, model="mine", top_n=call.top_n))


def haystack(call: Call, ranker: Any) -> Rows:
    """Call a ranker of Haystack."""
    from haystack import Document

    found = ranker.run(query=call.query, documents=[Document(content=text) for text in call.documents])["documents"]
    return call.indices([(document.content, document.score) for document in found])


def haystack_cohere(call: Call) -> Rows:
    """Call Haystack's ranker for Cohere."""
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    key = Secret.from_token(call.key)
    return haystack(call, CohereRanker(model="mine", api_key=key, api_base_url=call.address, top_k=call.top_n))


def haystack_tei(call: Call) -> Rows:
    """Call Haystack's ranker for TEI."""
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    ranker = HuggingFaceTEIRanker(url=call.address, top_k=call.top_n, token=Secret.from_token(call.key), max_retries=0)
    return haystack(call, ranker)


def haystack_jina(call: Call) -> Rows:
    """Call Haystack's ranker for Jina, which takes the whole address."""
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    key = Secret.from_token(call.key)
    return haystack(call, JinaRanker(model="mine", api_key=key, base_url=f"{call.address}/v1/rerank", top_k=call.top_n))


def langchain(call: Call, compressor: Any) -> Rows:
    """Call a document compressor of LangChain."""
    from langchain_core.documents import Document

    found = compressor.compress_documents([Document(page_content=text) for text in call.documents], call.query)
    return call.indices([(document.page_content, document.metadata["relevance_score"]) for document in found])


def langchain_cohere(call: Call) -> Rows:
    """Call LangChain's compressor for Cohere."""
    from langchain_cohere import CohereRerank

    return langchain(call, CohereRerank(base_url=call.address, cohere_api_key=call.key, model="mine", top_n=call.top_n))


def langchain_infinity(call: Call) -> Rows:
    """Call LangChain's compressor for Infinity."""
    from infinity_client import Client as InfinityClient
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank

    headers = {"Authorization": f"Bearer {call.key}"}
    client = InfinityClient(base_url=f"{call.address}/infinity", headers=headers)
    return langchain(call, InfinityRerank(client=client, model="mine", top_n=call.top_n))


def infinity_client(call: Call) -> Rows:
    """Call Infinity's own client."""
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    body = RerankInput(
        query=call.query, documents=call.documents, model="mine", top_n=call.top_n, return_documents=True
    )
    client = AuthenticatedClient(base_url=f"{call.address}/infinity", token=call.key, raise_on_unexpected_status=True)
    answer: Any = rerank.sync(client=client, body=body)
    if not hasattr(answer, "results"):  # this client returns a refusal with 422
        raise RuntimeError(answer.detail[0].msg)
    return call.indices([(row.document, row.relevance_score) for row in answer.results])


def rerankers(call: Call, provider: str, path: str) -> Rows:
    """Call the package `rerankers`, which always asks for all documents."""
    from rerankers import Reranker

    options = {"api_key": call.key, "api_provider": provider, "url": call.address + path, "verbose": 0}
    found = Reranker("mine", model_type="APIRanker", **options).rank(
        query=call.query, docs=call.documents, doc_ids=list(range(len(call.documents)))
    )
    return [(row.document.doc_id, row.score) for row in found.results][: call.top_n]


def post(call: Call, path: str, body: dict[str, Any]) -> Any:
    """Send a body without a client."""
    request = urllib.request.Request(
        call.address + path,
        json.dumps({"query": call.query} | body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {call.key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["detail"]) from None


def http_jina(call: Call) -> Rows:
    """Send the form that Jina documents."""
    body = {"model": "mine", "documents": call.documents, "top_n": call.top_n, "return_documents": True}
    answer = post(call, "/v1/rerank", body | {"truncation": True})
    return call.indices([(row["document"]["text"], row["relevance_score"]) for row in answer["results"]])


def http_tei(call: Call) -> Rows:
    """Send the form that TEI documents."""
    body = {"texts": call.documents, "truncate": True, "truncation_direction": "Right", "return_text": True}
    answer = post(call, "/rerank", body | {"raw_scores": False})
    return call.indices([(row["text"], row["score"]) for row in answer])[: call.top_n]


def http_elasticsearch(call: Call) -> Rows:
    """Send what Elasticsearch's service `hugging_face` sends, which accepts no unknown key in the answer."""
    answer = post(call, "/rerank", {"texts": call.documents, "return_text": True, "top_n": call.top_n})
    if any(set(row) != {"index", "score", "text"} for row in answer):
        raise ValueError("unknown keys")
    return [(row["index"], row["score"]) for row in answer]


def http_vllm_score(call: Call) -> Rows:
    """Send a body of vLLM's `/score`."""
    answer = post(call, "/v1/score", {"model": "mine", "text_1": call.query, "text_2": call.documents})
    rows = sorted(answer["data"], key=lambda row: -row["score"])
    return [(row["index"], row["score"]) for row in rows][: call.top_n]


class Client(NamedTuple):
    """A client: its environment, the package whose version is shown, and its call."""

    environment: str
    package: str
    call: Callable[[Call], Rows]


CLIENTS = {
    "cohere ClientV2": Client("cohere7", "cohere", cohere_v2),
    "cohere Client": Client("cohere7", "cohere", cohere_v1),
    "voyageai": Client("cohere7", "voyageai", voyageai),
    "litellm cohere/": Client("litellm", "litellm", partial(litellm, provider="cohere")),
    "litellm jina_ai/": Client("litellm", "litellm", partial(litellm, provider="jina_ai")),
    "litellm hosted_vllm/": Client("litellm", "litellm", partial(litellm, provider="hosted_vllm")),
    "litellm infinity/": Client("litellm", "litellm", partial(litellm, provider="infinity", path="/infinity")),
    "litellm huggingface/": Client("litellm", "litellm", partial(litellm, provider="huggingface")),
    "LlamaIndex Cohere": Client("cohere5", "llama-index-postprocessor-cohere-rerank", llama_index_cohere),
    "LlamaIndex TEI": Client("cohere7", "llama-index-postprocessor-tei-rerank", llama_index_tei),
    "LlamaIndex Jina": Client("cohere7", "llama-index-postprocessor-jinaai-rerank", llama_index_jina),
    "Haystack Cohere": Client("cohere7", "cohere-haystack", haystack_cohere),
    "Haystack TEI": Client("cohere7", "huggingface-api-haystack", haystack_tei),
    "Haystack Jina": Client("cohere7", "jina-haystack", haystack_jina),
    "LangChain Cohere": Client("cohere5", "langchain-cohere", langchain_cohere),
    "LangChain Infinity": Client("cohere5", "langchain-community", langchain_infinity),
    "infinity_client": Client("cohere7", "infinity-client", infinity_client),
    "rerankers cohere": Client("cohere7", "rerankers", partial(rerankers, provider="cohere", path="/v2/rerank")),
    "rerankers jina": Client("cohere7", "rerankers", partial(rerankers, provider="jina", path="/v1/rerank")),
    "rerankers voyage": Client("cohere7", "rerankers", partial(rerankers, provider="voyage", path="/v1/rerank")),
    "rerankers TEI": Client(
        "cohere7", "rerankers", partial(rerankers, provider="text-embeddings-inference", path="/rerank")
    ),
    "HTTP Jina": Client("cohere7", "", http_jina),
    "HTTP TEI": Client("cohere7", "", http_tei),
    "HTTP Elasticsearch": Client("cohere7", "", http_elasticsearch),
    "HTTP vLLM /score": Client("cohere7", "", http_vllm_score),
}


def main() -> None:
    """Call a client for each line, and write what it returned or raised."""
    for line in sys.stdin:
        task = json.loads(line)
        client = CLIENTS[name := task.pop("client")]
        answer: dict[str, Any] = {"client": name, "version": version(client.package) if client.package else ""}
        try:
            answer["rows"] = client.call(Call(**task))
        except Exception as error:  # a client may raise anything
            answer["error"] = f"{type(error).__name__}: {error}"
        print(f"\n{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
