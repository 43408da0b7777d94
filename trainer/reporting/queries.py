"""A record for each test query, with texts: `evaluate/queries.jsonl`.

Everything is read from the collection and the evaluation's TREC runs, so the file can be written again for a finished
run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.data import Collection, trec_fields, trec_id
from trainer.errors import RunError
from trainer.evaluation.metrics import RankingById, best_order, per_query
from trainer.evaluation.seeds import SYSTEM
from trainer.runtime.console import visible
from trainer.runtime.run_folder import read_json, replacing

FILE = "queries.jsonl"
TOP = 10  # documents of each list in a record
LETTERS = 600  # most characters of a text in a record
MISSED = 2  # most relevant documents in a record that the first stage did not return
NOT_RETRIEVED, LOW, UNLABELLED = "not retrieved", "retrieved but low", "probably unlabelled"
REMEDIES = {
    NOT_RETRIEVED: "rerank more candidates, or improve the first stage",
    LOW: "more or better train queries like these",
    UNLABELLED: "judge the first document: the model and the first stage agree on it",
}
Order = dict[int, list[int]]  # {query row: document rows, best first}


def shipped_system(results: Mapping[str, Any]) -> str:
    """Return the name of the exported system."""
    return results.get("shipped") or ("distilled" if "distilled" in results["systems"] else "tuned")


def main_metric(results: Mapping[str, Any]) -> str:
    """Return the metric that chose the checkpoint."""
    return next(iter(results["systems"]["first_stage"]))


def read_orders(collection: Collection, folder: Path, results: Mapping[str, Any]) -> dict[str, Order]:
    """Return the orders of the systems that have a TREC run in `folder`, and of the ceiling."""
    orders = _read_runs(collection, folder, results, results["systems"])
    grades = collection.qrels[results["split"]]
    orders["ceiling"] = {
        query: best_order(rows, grades[query], results["depth"]) for query, rows in orders["first_stage"].items()
    }
    return orders


def _read_runs(
    collection: Collection, folder: Path, results: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Order]:
    """Return the orders in those TREC runs `NAME.trec` that exist."""
    queries = {trec_id(identity): row for row, identity in enumerate(collection.query_ids)}
    documents = {trec_id(identity): row for row, identity in enumerate(collection.document_ids)}
    orders: dict[str, Order] = {}
    for system in names:
        path = folder / f"{system}.trec"
        if path.is_file():
            orders[system] = {row: [] for row in collection.answerable(results["split"])}
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    query, _, document, *_ = trec_fields(line, 6)
                    orders[system][queries[query]].append(documents[document])
    return orders


def read_rankings(collection: Collection, folder: Path, split: str, names: Iterable[str]) -> dict[str, RankingById]:
    """Return the rankings in those TREC runs of an evaluation that exist, with ids."""
    queries, documents = collection.query_ids, collection.document_ids
    return {
        name: {queries[query]: [documents[row] for row in rows] for query, rows in order.items()}
        for name, order in _read_runs(collection, folder, {"split": split}, names).items()
    }


def score_orders(collection: Collection, split: str, order: Order, metric: str) -> dict[int, float]:
    """Return {query row: value} of one metric for an order."""
    queries, documents = collection.query_ids, collection.document_ids
    ranking = {queries[query]: [documents[row] for row in rows] for query, rows in order.items()}
    values = per_query([metric], collection.named_qrels(split), ranking)[metric]
    return {query: values[queries[query]] for query in order}


def write_queries(collection: Collection, folder: Path) -> None:
    """Write `queries.jsonl` to the folder of an evaluation, in the order of the judgements."""
    results = read_json(folder / "results.json")
    with replacing(folder / FILE) as partial, partial.open("w", encoding="utf-8") as file:
        for record in describe_queries(collection, folder, results):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_queries(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that `write_queries` wrote; raise RunError if one is damaged."""
    with (folder / FILE).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise RunError(
                    f"{folder / FILE}:{number}: is damaged; delete the file, then run the same command again"
                ) from None


def describe_queries(collection: Collection, folder: Path, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for each test query: scores, ranks of the first relevant document, cause of failure, documents."""
    split, metric, shipped = results["split"], main_metric(results), shipped_system(results)
    orders = read_orders(collection, folder, results)
    scores = {system: score_orders(collection, split, order, metric) for system, order in orders.items()}
    seeds = _read_runs(collection, folder, results, [f"seed-{row['seed']}" for row in results.get("seeds", ())])
    by_seed = [score_orders(collection, split, order, metric) for order in seeds.values()]
    for query in collection.answerable(split):
        grades, positives = collection.qrels[split][query], set(collection.positives(split, query))
        lists = {system: order[query] for system, order in orders.items()}
        before, after = lists["first_stage"], lists[shipped]
        first = {system: _rank_of_first(rows, positives) for system, rows in lists.items()}
        missed = [row for row in positives if row not in set(before[: results["depth"]])]
        yield {
            "id": collection.query_ids[query],
            "text": cut(collection.query_texts([query])[0]),
            "metric": metric,
            "shipped": shipped,
            "scores": {system: values[query] for system, values in scores.items()}
            | ({SYSTEM: fmean(values[query] for values in by_seed)} if by_seed else {}),
            "first_relevant": first,
            "candidates": len(before),
            "relevant": len(positives),
            "missed": len(missed),
            "unjudged": {system: _unjudged(rows, grades) for system, rows in lists.items()}
            | ({SYSTEM: fmean(_unjudged(order[query], grades) for order in seeds.values())} if seeds else {}),
            "cause": _cause(before, after, grades, first, shipped, results["depth"]),
            "documents": _documents(collection, before, after, grades, sorted(missed)[:MISSED]),
        }


def cut(text: str, letters: int = LETTERS) -> str:
    """Return a text as one line of bounded length, with control characters escaped."""
    line = " ".join(text[: 4 * letters].split())  # most of it may be white space
    shown = visible(line[:letters])
    return f"{shown} …" if len(line) > letters or len(text) > 4 * letters else shown


def _unjudged(rows: Sequence[int], grades: Mapping[int, int]) -> int:
    return sum(row not in grades for row in rows[:TOP])


def _rank_of_first(rows: Sequence[int], positives: set[int]) -> int | None:
    return next((rank for rank, row in enumerate(rows, start=1) if row in positives), None)


def _cause(
    before: Sequence[int],
    after: Sequence[int],
    grades: Mapping[int, int],
    first: Mapping[str, int | None],
    shipped: str,
    depth: int,
) -> str | None:
    """Return the reason why the final list does not begin with a relevant document; None if it does.

    An unjudged document at the top that the first stage also ranks above every relevant one is probably relevant: two
    independent systems agree on it.
    """
    rank, rank_before = first[shipped], first["first_stage"]
    if rank == 1:
        return None
    if rank_before is None or rank_before > depth or not after:
        return NOT_RETRIEVED
    above = before[: rank_before - 1]
    return UNLABELLED if after[0] not in grades and after[0] in above else LOW


def _documents(
    collection: Collection, before: Sequence[int], after: Sequence[int], grades: Mapping[int, int], missed: list[int]
) -> list[dict[str, Any]]:
    """Return the top of both lists and some missed documents: id, text, grade (None: unjudged), rank in each list."""
    ranks = [{row: rank for rank, row in enumerate(rows, start=1)} for rows in (before, after)]
    rows = list(dict.fromkeys([*after[:TOP], *before[:TOP], *missed]))
    texts = collection.passages(rows) if rows else []
    return [
        {
            "id": collection.document_ids[row],
            "text": cut(text),
            "grade": grades.get(row),
            "relevant": grades.get(row, 0) >= collection.relevant_from,
            "before": ranks[0].get(row),
            "after": ranks[1].get(row),
        }
        for row, text in zip(rows, texts, strict=True)
    ]
