"""What a bare corpus costs in quality: the same queries as labels, and as answers of an endpoint.

    python scripts/bare_corpus.py NAME=FOLDER --seeds 13 14
    python scripts/bare_corpus.py NAME=FOLDER --seeds 13 14 --heads rows.jsonl

The endpoint is a server on loopback that answers each document with the real train queries that it is relevant for, so
that the difference is that of the path alone: nothing is tuned on the train queries, documents of dev and test queries
are not asked, and the filters drop some queries. Recipe and sizes are those of scripts/ablation.py.

With --heads nothing is trained: heads are fitted to candidate lists of labelled queries, of queries extracted from the
documents (generate.model: extract) with their document as the label, and of these with the untuned first stage, or its
fusion with the head before any fit, as the teacher. All rerank the same candidates of the untuned first stage. Rows of
the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation import EXTRACTED, ROOT, cut, described, draw_queries, read_rows, taught_by, taught_by_first_stage

from trainer import context
from trainer.context import Run
from trainer.data.groups import Group
from trainer.evaluation.fusion import UNFITTED, fuse_with_first_stage
from trainer.evaluation.two_stage import query_scores
from trainer.mining import candidate_lists
from trainer.model import Reranker, TokenizedCollection, inverse_document_frequency
from trainer.pipeline import open_run, run
from trainer.recipe import load_recipe
from trainer.runtime.run_folder import read_json
from trainer.training import head_init

sys.path.insert(0, str(ROOT / "tests"))
from test_generate import ChatServer, serving  # noqa: E402 the server of the tests

METRIC = "nDCG@10"
RECIPE = ROOT / "scripts" / "ablation.yaml"


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the JSON lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(folder: Path, judgements: Path) -> dict[str, list[str]]:
    """Return {document as models read it: texts of the train queries that it is relevant for}."""
    queries = {row["_id"]: row["text"] for row in rows_of(folder / "queries.jsonl")}
    passages = {
        row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows_of(folder / "corpus.jsonl")
    }
    found: dict[str, list[str]] = {}
    for line in judgements.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            found.setdefault(passages[document], []).append(queries[query])
    return found


def in_answer(texts: Iterable[str]) -> str:
    """Return queries in the form that the prompt asks for."""
    return "\n".join(json.dumps({"query": text}) for text in texts) or "I have no query for this document."


def measured(folder: Path) -> dict[str, float]:
    """Return the test means of all systems of a run, with `shipped` for the exported one."""
    results = read_json(folder / "evaluate" / "results.json")
    means = {name: round(metrics[METRIC]["mean"], 4) for name, metrics in results["systems"].items()}
    return means | {"shipped": means[results["shipped"]]}


def common_keys(name: str, folder: Path, seed: int, options: argparse.Namespace) -> tuple[list[str], str]:
    """Return the recipe keys that all paths share, and the one that names the labels."""
    runs: Path = options.runs
    files = {}
    for split, most in (("train", options.queries), ("test", options.test_queries)):
        files[split] = runs / f"{name}-{split}-{most}-{seed}.tsv"
        lines = draw_queries(folder / "qrels" / f"{split}.tsv", most, seed if split == "train" else 0)
        files[split].parent.mkdir(parents=True, exist_ok=True)
        files[split].write_text("".join(lines), encoding="utf-8")
    base = cut(load_recipe(RECIPE, ["data.path=."]).reranker.model, options.layers, runs / "bases")
    parts = {"corpus": folder / "corpus.jsonl", "queries": folder / "queries.jsonl"}
    parts |= {"dev": folder / "qrels" / "dev.tsv", "test": files["test"]}
    keys = [
        f"seed={seed}",
        f"reranker.model={base}",
        *(f"data.{key}={path.absolute()}" for key, path in parts.items()),
    ]
    return [*keys, *options.overrides], f"data.qrels={files['train'].absolute()}"


def compare(name: str, folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Run both paths on one collection, and print the figures."""
    runs: Path = options.runs
    common, labels = common_keys(name, folder, seed, options)
    real = answers(folder, Path(labels.partition("=")[2]))
    with serving(ChatServer(lambda content: in_answer(real.get(content["document"], [])))) as server:
        made = [f"generate.model=chat:real-queries-{seed}@{server.url}", "generate.documents=1000000"]
        made += ["generate.queries_per_document=3", "generate.concurrency=4"]
        paths = {"labelled": [labels], "bare": made}
        for path, keys in paths.items():
            run(load_recipe(RECIPE, [f"name={name}-{path}-{seed}", *common, *keys]), runs, until="evaluate")
    labelled, bare = (measured(runs / f"{name}-{path}-{seed}") for path in paths)
    default = labelled.get("first_stage_default", labelled["first_stage"])
    for system in ("shipped", "fused"):
        gains = [figures[system] - default for figures in (labelled, bare)]
        share = f"{gains[1] / gains[0]:.0%}" if gains[0] > 0 else "no gain"
        print(f"{name}, seed {seed}, {system}: default {default:.4f}, gains {gains[0]:+.4f} {gains[1]:+.4f}, {share}")
    print(f"{name}, seed {seed}: labelled {labelled}\n{name}, seed {seed}: bare {bare}", flush=True)


def heads(name: str, folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Fit heads with labels and without on one collection, and add the test queries' values to the file."""
    key: dict[str, Any] = {"collection": name, "seed": seed}
    key |= {name: getattr(options, name) for name in ("queries", "test_queries", "layers", "precision")}
    if any(key.items() <= row.items() for row in read_rows(options.heads)):
        return
    common, labels = common_keys(name, folder, seed, options)
    runs: list[Run] = []
    for path, keys in {"labelled": [labels], "extracted": EXTRACTED}.items():
        recipe = load_recipe(RECIPE, [f"name={name}-heads-{path}-{seed}", "retriever.tune=off", *common, *keys])
        run(recipe, options.runs, until="retrieve")
        runs.append(open_run(recipe, options.runs))
    labelled, extracted = runs
    reranker = context.load_base(labelled)
    reranker.compute_in(options.precision)
    start_head(reranker, TokenizedCollection(labelled.collection, reranker.pairs))
    lists = {"labelled": candidate_lists(labelled.collection, labelled.reranked("train"))[: options.queries]}
    found = extracted.reranked("train")
    lists["extracted"] = candidate_lists(extracted.collection, found)[: options.queries]
    chosen = {one.query for one in lists["extracted"]}
    found = found.select([index for index, query in enumerate(found.queries.tolist()) if query in chosen])
    lists["by_first_stage"] = taught_by_first_stage(extracted.collection, found)
    candidates = labelled.reranked("test")
    tested = [Group(query, candidates.found(row), [], []) for row, query in enumerate(candidates.queries.tolist())]
    known: dict[Any, np.ndarray] = {}
    signals, mixture = signals_of(reranker, labelled, tested, known), head_init._mixture(reranker.model)
    values = {"first_stage": None, "unfitted": signals @ mixture}
    of_extracted = signals_of(reranker, extracted, lists["by_first_stage"], known) @ mixture
    lists["by_fusion"] = taught_by(found, fuse_with_first_stage(found, found.scored(lambda _: of_extracted), UNFITTED))
    for path, ours in lists.items():
        of_lists = signals_of(reranker, labelled if path == "labelled" else extracted, ours, known)
        values[path] = signals @ head_init.probe(of_lists, ours)
    row = key | {"counts": {path: len(ours) for path, ours in lists.items()}}
    row["values"] = {
        way: one for path, scores in values.items() for way, one in ways_of(labelled, path, scores).items()
    }
    with options.heads.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def ways_of(one: Run, path: str, scores: np.ndarray | None) -> dict[str, list[float]]:
    """Return each test query's value under the scores (pairs,) of all candidates, alone and with the first stage's."""
    candidates = one.reranked("test")
    logits = None if scores is None else candidates.scored(lambda _: scores)
    ways = {path: logits}
    if logits is not None:
        ways[f"{path}, fused"] = fuse_with_first_stage(candidates, logits, UNFITTED)
    return {
        way: [round(value, 4) for value in query_scores(one.collection, "test", candidates, METRIC, ranked).values()]
        for way, ranked in ways.items()
    }


def start_head(reranker: Reranker, tokenized: TokenizedCollection) -> None:
    """Set the idf of tokens and the average length, as before every fit."""
    documents = tokenized.documents(head_init.IDF_SAMPLE)
    average = float(np.mean([min(len(document), reranker.max_length) for document in documents]))
    reranker.model.start_head(inverse_document_frequency(documents, len(reranker.model.token_weights)), average)


def signals_of(reranker: Reranker, one: Run, lists: Sequence[Group], known: dict[Any, np.ndarray]) -> np.ndarray:
    """Return the signals of all documents of the lists, in their order; those of a pair are computed once."""
    rows = [(group.query, document) for group in lists for document in group.documents]
    missing = [row for row in dict.fromkeys(rows) if (one.folder, *row) not in known]
    if missing:
        found = reranker.signals(TokenizedCollection(one.collection, reranker.pairs).pairs(missing), "signals")
        known |= {(one.folder, *row): signals for row, signals in zip(missing, found, strict=True)}
    return np.stack([known[(one.folder, *row)] for row in rows])


def show_heads(file: Path) -> None:
    """Print means, and differences to the first stage with 95 % intervals over queries, the mean over seeds."""
    rows = read_rows(file)
    for name in dict.fromkeys(row["collection"] for row in rows):
        ours = [row["values"] for row in rows if row["collection"] == name]
        for way in ours[0]:
            parts = [np.mean([np.subtract(one[way], one["first_stage"]) for one in ours], axis=0)]
            print(f"| {name} | {way} | {np.mean([one[way] for one in ours]):.3f} | {described(parts)} |")


def main(words: Sequence[str] | None = None) -> None:
    """Compare both paths for all collections and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--test-queries", type=int, default=200)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/bare-corpus"))
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--heads", type=Path, metavar="FILE", help="only fit heads; rows of a finished measurement")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of --heads")
    options = parser.parse_args(words)
    for seed in options.seeds:
        for collection in options.collections:
            name, folder = collection.split("=", 1)
            (heads if options.heads else compare)(name, Path(folder), seed, options)
    if options.heads:
        show_heads(options.heads)


if __name__ == "__main__":
    main()
