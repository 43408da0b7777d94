"""What a bare corpus costs in quality: the same queries as labels, and as answers of an endpoint.

    python scripts/bare_corpus.py NAME=FOLDER --seeds 13 14

The endpoint is a server on loopback that answers each document with the real train queries that it is relevant for, so
that the difference is that of the path alone: nothing is tuned on the train queries, documents of dev and test queries
are not asked, and the filters drop some queries. Recipe and sizes are those of scripts/ablation.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ablation import ROOT, cut, draw_queries

from trainer.pipeline import run
from trainer.recipe import load_recipe
from trainer.runtime.run_folder import read_json

sys.path.insert(0, str(ROOT / "tests"))
from test_generate import ChatServer, serving  # noqa: E402 the server of the tests

METRIC = "nDCG@10"


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


def compare(name: str, folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Run both paths on one collection, and print the figures."""
    runs: Path = options.runs
    files = {}
    for split, most in (("train", options.queries), ("test", options.test_queries)):
        files[split] = runs / f"{name}-{split}-{most}-{seed}.tsv"
        lines = draw_queries(folder / "qrels" / f"{split}.tsv", most, seed if split == "train" else 0)
        files[split].parent.mkdir(parents=True, exist_ok=True)
        files[split].write_text("".join(lines), encoding="utf-8")
    recipe = ROOT / "scripts" / "ablation.yaml"
    base = cut(load_recipe(recipe, ["data.path=."]).reranker.model, options.layers, runs / "bases")
    parts = {"corpus": folder / "corpus.jsonl", "queries": folder / "queries.jsonl"}
    parts |= {"dev": folder / "qrels" / "dev.tsv", "test": files["test"]}
    common = [
        f"seed={seed}",
        f"reranker.model={base}",
        *(f"data.{key}={path.absolute()}" for key, path in parts.items()),
    ]
    common += options.overrides
    real = answers(folder, files["train"])
    with serving(ChatServer(lambda content: in_answer(real.get(content["document"], [])))) as server:
        made = [f"generate.model=chat:real-queries-{seed}@{server.url}", "generate.documents=1000000"]
        made += ["generate.queries_per_document=3", "generate.concurrency=4"]
        paths = {"labelled": [f"data.qrels={files['train'].absolute()}"], "bare": made}
        for path, keys in paths.items():
            run(load_recipe(recipe, [f"name={name}-{path}-{seed}", *common, *keys]), runs, until="evaluate")
    labelled, bare = (measured(runs / f"{name}-{path}-{seed}") for path in paths)
    default = labelled.get("first_stage_default", labelled["first_stage"])
    for system in ("shipped", "fused"):
        gains = [figures[system] - default for figures in (labelled, bare)]
        share = f"{gains[1] / gains[0]:.0%}" if gains[0] > 0 else "no gain"
        print(f"{name}, seed {seed}, {system}: default {default:.4f}, gains {gains[0]:+.4f} {gains[1]:+.4f}, {share}")
    print(f"{name}, seed {seed}: labelled {labelled}\n{name}, seed {seed}: bare {bare}", flush=True)


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
    options = parser.parse_args(words)
    for seed in options.seeds:
        for collection in options.collections:
            name, folder = collection.split("=", 1)
            compare(name, Path(folder), seed, options)


if __name__ == "__main__":
    main()
