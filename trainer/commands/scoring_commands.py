"""The commands whose argument is a model: pull, score, search and serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.commands.apps import TrustRemoteCode, command, despite_quiet, reranker_app

MODELS = "Models"
Precision = Annotated[
    Literal["fp32", "bf16", "fp16", "auto"],
    typer.Option(help="The number format to compute in; auto takes the fastest on this machine."),
]


@command(reranker_app, panel=MODELS)
def pull(
    repository: Annotated[str, typer.Argument(help="A model on the Hugging Face Hub.", metavar="OWNER/NAME")],
    folder: Annotated[
        Path | None, typer.Argument(help="The new folder for it; NAME by default.", metavar="FOLDER")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit; the branch main by default.", metavar="REVISION")
    ] = None,
) -> None:
    """Download a model from the Hugging Face Hub to a folder, with its fusion weights, calibration and ONNX graph.

    A download that was stopped continues. To use a model without a folder of it, give OWNER/NAME to the other commands.
    """
    from trainer.commands.pull import pull_model

    with despite_quiet():
        pull_model(repository, folder, revision)


@command(reranker_app, panel=MODELS)
def score(
    model: Annotated[
        str, typer.Argument(help="A run folder, a model folder, a Hub id or package:NAME/SUBFOLDER.", metavar="MODEL")
    ],
    source: Annotated[
        Path, typer.Argument(help='The lists: JSON lines of {"query", "documents"}, or a TREC run.', metavar="IN")
    ],
    output: Annotated[Path, typer.Argument(help="The file for the same lists in the model's order.", metavar="OUT")],
    data: Annotated[
        Path | None,
        typer.Option(help="The texts of a TREC run: a recipe, the folder of a run, or a folder in BEIR layout."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="The maximum length of a pair in tokens; the model's own limit by default.")
    ] = None,
    precision: Precision = "fp32",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write calibrated probabilities of relevance as scores.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Rerank many lists offline. After an interruption the same command resumes."""
    from trainer.commands.run_folders import data_section
    from trainer.commands.score import score

    section = None if data is None else data_section(data)
    score(model, source, output, section, max_length, precision, trust_remote_code, probabilities)


@command(reranker_app, panel=MODELS)
def search(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, e.g. runs/quickstart.", metavar="RUN")],
    query: Annotated[str, typer.Argument(help="The query.")],
    top_k: Annotated[int, typer.Option(help="The number of documents to print.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the body that POST /search returns.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search the corpus of a run with its first stage and its reranker, and show the order before and after."""
    from trainer.commands.search import search

    with despite_quiet():
        search(run, query, top_k, as_json, trust_remote_code)


@command(reranker_app, panel=MODELS)
def serve(
    model: Annotated[
        str, typer.Argument(help="The folder of a run, e.g. runs/quickstart, or a model.", metavar="RUN_OR_MODEL")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    precision: Precision = "fp32",
    engine: Annotated[
        Literal["torch", "onnx", "onnx-fused", "onnx-int8", "auto"],
        typer.Option(help="The engine: a format of the export, for CPUs; auto takes the fastest on this machine."),
    ] = "torch",
    max_documents: Annotated[int, typer.Option(help="The largest number of documents in a request.", min=1)] = 1000,
    max_waiting: Annotated[
        int, typer.Option(help="The largest number of waiting documents; further requests get status 429.", min=1)
    ] = 4000,
    max_body: Annotated[int, typer.Option(help="The largest body of a request in MiB.", min=1)] = 10,
    batch_tokens: Annotated[
        int | None,
        typer.Option(help="The number of tokens in a batch; chosen for the device by default.", min=1),
    ] = None,
    page: Annotated[bool, typer.Option(help="Serve a page at / for trying the model.")] = True,
    search: Annotated[bool, typer.Option(help="Search the corpus of the run with POST /search.")] = True,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve a reranker over HTTP, with the request formats of Cohere, Jina, Voyage, TEI, Infinity and vLLM.

    If the environment variable RERANKER_API_KEY is set, clients must send its value as their API key.
    """
    from trainer.serving import server

    server.require_packages()
    from trainer.serving.settings import MIB, Settings

    settings = Settings(
        key=server.api_key(),
        max_documents=max_documents,
        max_waiting=max_waiting,
        max_body=max_body * MIB,
        batch_tokens=batch_tokens,
        page=page,
        search=search,
    )
    server.serve(model, host, port, settings, precision, trust_remote_code, engine)
