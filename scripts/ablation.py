"""What each default brings: small runs that differ from the defaults in one thing, measured on dev.

    python scripts/ablation.py runbooks=data/runbooks cosqa=PATH/TO/cosqa scifact=PATH/TO/scifact
    python scripts/ablation.py NAME=FOLDER ... --only defaults depth-10 --seeds 13 14
    python scripts/ablation.py --table

Every run is an ordinary one of the recipe (scripts/ablation.yaml) up to `evaluate`, on a draw of the train queries that
the seed decides and with the base cut after its lowest layers. The file of results gets one line a run; what it holds
already under the same settings is not done again, so the script goes on after a stop, on another day or machine. A
run's folder is deleted when its line is written.

Nothing is chosen on test: it is measured for the variants of `TESTED` alone, and the table of variants is of dev.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from transformers import AutoModel, AutoTokenizer

from trainer.data import Collection, fingerprint_data
from trainer.data.groups import Group
from trainer.errors import TrainerError
from trainer.mining import Mined, sample
from trainer.model.scores import standardised
from trainer.model_files import references
from trainer.pipeline import run
from trainer.recipe import Recipe, load_recipe
from trainer.retriever import NOTHING, Candidates
from trainer.runtime.precision import machine
from trainer.runtime.run_folder import json_sha256, read_json, remove

ROOT = Path(__file__).parents[1]
TESTED = ("defaults", "fp32", "extracted", "extracted-first-stage-labels")
SMOOTHED = 0.1  # share of the label that the negatives of a list get
UNTESTED_QUERIES = 20  # of test, which a run wants to have and whose figures are not kept
RESAMPLES = 5000
WAYS = ("shipped", "fused")

Row = dict[str, Any]


def no_weight(*_: Any) -> float:
    """Return the first stage's weight in the training loss where its scores are left out."""
    return 0.0


def with_missed(group: Group, collection: Collection) -> Group:
    """Return a list with the positives that the first stage missed, with the lowest of its scores in the list."""
    grades = collection.qrels["train"][group.query]
    missed = [row for row in collection.positives("train", group.query) if row not in group.positives]
    known, first = len(group.positives), group.first or []
    return replace(
        group,
        positives=[*group.positives, *missed],
        grades=[*group.grades, *(grades[row] for row in missed)],
        first=[*first[:known], *(min(first) for _ in missed), *first[known:]],
    )


def mine_with_missed(section: Any, collection: Collection, *others: Any, **options: Any) -> Mined:
    """Mine as the recipe says, and add to each list the positives that the first stage missed."""
    mined = sample.mine(section, collection, *others, **options)
    return replace(mined, groups=[with_missed(group, collection) for group in mined.groups])


def taught_by_first_stage(collection: Collection, candidates: Candidates) -> list[Group]:
    """Return each train query's candidates, with the softmax of the first stage's scores as their labels."""
    del collection
    return taught_by(candidates, standardised(candidates.scores, candidates.documents != NOTHING))


def taught_by(candidates: Candidates, scores: np.ndarray) -> list[Group]:
    """Return the candidates of each query, with the softmax of scores (queries, depth) as their labels."""
    known = candidates.documents != NOTHING
    first = standardised(candidates.scores, known)
    labels = np.where(known, np.exp(scores), 0)
    labels /= labels.sum(axis=1, keepdims=True)
    lists = []
    for index, query in enumerate(candidates.queries.tolist()):
        documents = candidates.found(index)
        ours = slice(0, len(documents))
        lists.append(Group(query, documents, labels[index, ours].tolist(), [], first=first[index, ours].tolist()))
    return lists


def mine_by_first_stage(
    section: Any, collection: Collection, candidates: Candidates, *others: Any, **options: Any
) -> Mined:
    """Mine as the recipe says, and replace the groups by lists that the first stage labels."""
    mined = sample.mine(section, collection, candidates, *others, **options)
    return replace(mined, groups=taught_by_first_stage(collection, candidates))


def with_smoothed(group: Group) -> Group:
    """Return a list whose negatives share `SMOOTHED` of the label, by the softmax of their first-stage scores."""
    known = len(group.positives)
    likely = np.exp(np.array(group.first)[known:])
    positive = np.array(group.grades, dtype=float)
    labels = [*((1 - SMOOTHED) * positive / positive.sum()), *(SMOOTHED * likely / likely.sum())]
    return replace(group, positives=group.documents, grades=list(map(float, labels)), negatives=[])


def mine_with_smoothed(*parts: Any, **options: Any) -> Mined:
    """Mine as the recipe says, and smooth the labels of each list."""
    mined = sample.mine(*parts, **options)
    return replace(mined, groups=[with_smoothed(group) for group in mined.groups])


def smoothed_lists(collection: Collection, candidates: Candidates) -> list[Group]:
    """Return the lists to which the head is fitted, with smoothed labels."""
    return [with_smoothed(group) for group in sample.candidate_lists(collection, candidates) if group.negatives]


@dataclass(frozen=True)
class Variant:
    """The defaults with one thing changed: recipe keys, or, where no key does it, names in the code.

    Without `labelled` the train queries are left out.
    """

    name: str
    overrides: tuple[str, ...] = ()
    patches: dict[str, Callable[..., Any]] = field(default_factory=dict)
    labelled: bool = True


WITHOUT_WORDS = ("reranker.lexical_signals=false",)
EXTRACTED = ("generate.model=extract", "generate.documents=130")  # about as many queries as the labelled ones
BY_FIRST_STAGE: dict[str, Callable[..., Any]] = {
    "trainer.mining.mine": mine_by_first_stage,
    "trainer.context.models.candidate_lists": taught_by_first_stage,
    "trainer.training.head_init.first_stage_weight": no_weight,
}
SMOOTHED_LABELS: dict[str, Callable[..., Any]] = {
    "trainer.mining.mine": mine_with_smoothed,
    "trainer.context.models.candidate_lists": smoothed_lists,
}


VARIANTS = (
    Variant("defaults"),
    Variant("loss-without-first-stage", patches={"trainer.training.head_init.first_stage_weight": no_weight}),
    Variant("no-lexical-signals", WITHOUT_WORDS),
    Variant("draws", ("mine.groups=draws",)),
    Variant("rate-3e-5", ("train.learning_rate=3.0e-5",)),
    Variant("fp32", ("train.precision=fp32",)),
    Variant("depth-10", ("reranker.depth=10",)),
    Variant("untuned-first-stage", ("retriever.tune=off",)),
    Variant("classifier", ("reranker.head=classifier",)),
    Variant("classifier-no-lexical-signals", ("reranker.head=classifier", *WITHOUT_WORDS)),
    Variant("two-epochs", ("train.epochs=2",)),
    Variant("frozen-layers", ("train.frozen_layers=2",)),
    Variant("likely-false-negatives-left-out", ("mine.max_share_of_positive=0.95",)),
    Variant("depth-30", ("reranker.depth=30",)),
    Variant("missed-positives-added", patches={"trainer.mining.mine": mine_with_missed}),
    Variant("lists-of-8", ("mine.list_size=8",)),
    Variant("smoothed-negatives", patches=SMOOTHED_LABELS),
    Variant("extracted", EXTRACTED, labelled=False),
    Variant("extracted-first-stage-labels", EXTRACTED, BY_FIRST_STAGE, labelled=False),
)


@dataclass(frozen=True)
class Ablation:
    """What all runs share: recipe, sizes, the folder that they run in and the file of results."""

    recipe: Path
    queries: int
    test_queries: int
    layers: int
    runs: Path
    file: Path

    @property
    def setting(self) -> str:
        """Fingerprint of what the defaults are here; only rows of the same setting are compared."""
        return json_sha256(_settings(self._load(["data.path=."])), *self._sizes)[:12]

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.queries, self.test_queries, self.layers

    def _load(self, overrides: Iterable[str]) -> Recipe:
        return load_recipe(self.recipe, list(overrides))

    def run(self, variant: Variant, name: str, folder: Path, seed: int) -> Row:
        """Return the row of a run, from the file or after carrying it out."""
        data = self._write_judgements(name, folder, seed, tested=variant.name in TESTED)
        data = [key for key in data if variant.labelled or not key.startswith("data.qrels=")]
        overrides = [f"name={name}-{variant.name}-{seed}", f"seed={seed}", *data, *variant.overrides]
        recipe = self._load(overrides)
        key = {"collection": name, "variant": variant.name, "seed": seed, "setting": self.setting}
        key["recipe"] = json_sha256(_settings(recipe), fingerprint_data(recipe.data), *self._sizes)[:12]
        for row in read_rows(self.file):
            if key.items() <= row.items():
                return row
        base = cut(recipe.reranker.model, self.layers, self.runs / "bases")
        with ExitStack() as changed:
            for target, replacement in variant.patches.items():
                changed.enter_context(patch(target, replacement))
            run(self._load([*overrides, f"reranker.model={base}"]), self.runs, until="evaluate")
        row = key | made_by() | measured(self.runs / recipe.name, tested=variant.name in TESTED)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        remove(self.runs / recipe.name)
        return row

    def _write_judgements(self, name: str, folder: Path, seed: int, tested: bool) -> list[str]:
        """Write the judgements of the drawn train and test queries; return the keys that name a run's data."""
        files = {}
        for split, most in (("train", self.queries), ("test", self.test_queries if tested else UNTESTED_QUERIES)):
            files[split] = self.runs / "judgements" / f"{name}-{split}-{most}-{seed}.tsv"
            files[split].parent.mkdir(parents=True, exist_ok=True)
            # The seed draws train queries; test queries are the same for all seeds.
            lines = draw_queries(folder / "qrels" / f"{split}.tsv", most, seed if split == "train" else 0)
            files[split].write_text("".join(lines), encoding="utf-8")
        parts = {"corpus": folder / "corpus.jsonl", "queries": folder / "queries.jsonl", "qrels": files["train"]}
        parts |= {"dev": folder / "qrels" / "dev.tsv", "test": files["test"]}
        return [f"data.{part}={path.absolute()}" for part, path in parts.items()]


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return all that a recipe says but for names and files."""
    files = {"path", "corpus", "queries", "qrels", "dev", "test"}
    return recipe.model_dump(mode="json", exclude={"name": True, "data": files})


def draw_queries(path: Path, most: int, seed: int) -> list[str]:
    """Return the lines, head included, of a BEIR file of judgements that belong to `most` drawn queries.

    Drawn are queries with a positive; the draws of a seed nest, whatever their size.
    """
    head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [line.rstrip("\n").split("\t") for line in lines]
    positive = sorted({query for query, _, grade in rows if int(grade) > 0})
    drawn = {positive[place] for place in np.random.default_rng(seed).permutation(len(positive))[:most]}
    return [head, *(line for line, row in zip(lines, rows, strict=True) if row[0] in drawn)]


def cut(reference: str, layers: int, folder: Path) -> Path:
    """Return the folder of a base without its layers above the lowest so many, made if it is not there."""
    source = references.locate(reference)
    target = folder / f"{source.parent.name}-{source.name}-{layers}"
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.partial")
        AutoModel.from_pretrained(source, num_hidden_layers=layers).save_pretrained(partial)
        AutoTokenizer.from_pretrained(source).save_pretrained(partial)
        partial.rename(target)
    return target.absolute()


def made_by() -> Row:
    """Return the commit and the processor."""
    commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(commit, capture_output=True, text=True)
    return {"commit": found.stdout.strip(), "machine": machine()}


def measured(folder: Path, tested: bool) -> Row:
    """Return what a run left: means of dev and test, the curve of interpolation, and each dev query's values."""
    dev, training = (read_json(folder / name) for name in ("evaluate/dev.json", "train/done.json"))
    alone, fused = dev["ways"]["alone"], dev["ways"]["fused"]
    values = {
        "first_stage": dev["opponents"]["first_stage"],
        "untrained": alone["values"][0],
        "shipped": alone["values"][alone["chosen"]],
        "fused": fused["values"][fused["chosen"]],
    }
    row: Row = {
        "seconds": round(sum(read_json(path)["seconds"] for path in folder.glob("*/done.json"))),
        "precision": training["precision"],
        "interpolation": [[share, round(score, 5)] for share, score in training["interpolation"]],
        "dev": {name: round(float(np.mean(one)), 5) for name, one in values.items()},
    }
    if tested:
        results = read_json(folder / "evaluate" / "results.json")
        means = {name: round(metrics["nDCG@10"]["mean"], 5) for name, metrics in results["systems"].items()}
        row["test"] = means | {"shipped": means[results["shipped"]]}
    return row | {"values": {name: [round(value, 4) for value in one] for name, one in values.items()}}


def read_rows(file: Path) -> list[Row]:
    """Return the rows of the file of results."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def differences(rows: Sequence[Row], collection: str, variant: str, way: str) -> np.ndarray:
    """Return each dev query's difference (queries,) to the defaults, the mean over the seeds that both have.

    `first_stage` and `untrained` are no variants, but what the defaults' own runs had before training.
    """
    within = [row for row in rows if row["collection"] == collection]
    base = {row["seed"]: row["values"] for row in within if row["variant"] == "defaults"}
    if variant in ("first_stage", "untrained"):
        return np.mean([np.subtract(one[variant], one[way]) for one in base.values()], axis=0)
    found = [
        np.subtract(row["values"][way], base[row["seed"]][way])
        for row in within
        if row["variant"] == variant and row["seed"] in base
    ]
    return np.mean(found, axis=0) if found else np.array([])


def described(parts: Sequence[np.ndarray]) -> str:
    """Return the mean over collections of (queries,) differences, with a 95 % bootstrap interval over queries."""
    if not parts or not all(map(len, parts)):
        return ""
    rng = np.random.default_rng(13)
    draws = [part[rng.integers(len(part), size=(RESAMPLES, len(part)))].mean(axis=1) for part in parts]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return f"{np.mean([part.mean() for part in parts]):+.3f} [{low:+.3f}, {high:+.3f}]"


def dev_table(rows: Sequence[Row], way: str) -> list[list[str]]:
    """Return the table of one way of use: the defaults' means, then the differences of every variant to them."""
    collections = list(dict.fromkeys(row["collection"] for row in rows))
    defaults = [[row["dev"][way] for row in rows if _is(row, name, "defaults")] for name in collections]
    paired = {(row["collection"], row["seed"]) for row in rows if row["variant"] == "defaults"}
    means = [float(np.mean(one)) for one in defaults]
    table = [["", "runs", *collections, "mean"]]
    table.append(["defaults", str(sum(map(len, defaults))), *(f"{mean:.3f}" for mean in (*means, np.mean(means)))])
    known = [variant.name for variant in VARIANTS if variant.name != "defaults"]
    for variant in ("first_stage", *(["untrained"] if way == "shipped" else []), *known):
        parts = [differences(rows, collection, variant, way) for collection in collections]
        if any(map(len, parts)):
            runs = sum(row["variant"] == variant and (row["collection"], row["seed"]) in paired for row in rows)
            table.append([variant, str(runs or ""), *(described([part]) for part in parts), described(parts)])
    return table if way == "fused" else [*table, ["not_interpolated", "", *interpolation_gains(rows, collections)]]


def interpolation_gains(rows: Sequence[Row], collections: Sequence[str]) -> list[str]:
    """Return by how much the trained weights of the defaults are below the best share of them, and the mean.

    Below by construction, since dev chose the share; there is no interval, since a run keeps no values of these.
    """
    lost = []
    for name in collections:
        curves = [dict(row["interpolation"]) for row in rows if _is(row, name, "defaults")]
        lost.append(float(np.mean([curve.get(1.0, curve[0.0]) - max(curve.values()) for curve in curves])))
    return [f"{value:+.3f}" for value in (*lost, np.mean(lost))]


def test_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the rows that have test figures: means over seeds on dev and test."""
    table = [["collection", "variant", "precision", *(f"{split} {way}" for split in ("dev", "test") for way in WAYS)]]
    for collection in dict.fromkeys(row["collection"] for row in rows):
        for variant in TESTED:
            found = [row for row in rows if _is(row, collection, variant)]
            if found:
                means = (np.mean([row[split][way] for row in found]) for split in ("dev", "test") for way in WAYS)
                table.append([collection, variant, found[0]["precision"], *(f"{mean:.4f}" for mean in means)])
    return table


def _is(row: Row, collection: str, variant: str) -> bool:
    return row["collection"] == collection and row["variant"] == variant


def show(file: Path) -> None:
    """Print the tables of each setting in the file, as Markdown."""
    rows = read_rows(file)
    for setting in dict.fromkeys(row["setting"] for row in rows):
        same = [row for row in rows if row["setting"] == setting]
        with_defaults = {row["collection"] for row in same if row["variant"] == "defaults"}
        same = [row for row in same if row["collection"] in with_defaults]
        for way in WAYS:
            _print(f"nDCG@10 on dev, {way}; setting {setting}", dev_table(same, way) if same else [])
        _print("nDCG@10", test_table(same) if same else [])


def _print(title: str, table: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    for number, cells in enumerate(table):
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"|{' --- |' * len(cells)}")


def command_line() -> argparse.ArgumentParser:
    """Return what the script takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", metavar="NAME=FOLDER", help="folders in BEIR layout")
    parser.add_argument("--recipe", type=Path, default=ROOT / "scripts" / "ablation.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS], metavar="VARIANT")
    parser.add_argument("--queries", type=int, default=200, help="train queries")
    parser.add_argument("--test-queries", type=int, default=200, help=f"of the variants {', '.join(TESTED)}")
    parser.add_argument("--layers", type=int, default=3, help="lowest layers of the base that are kept")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "ablation.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the tables of the file")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Carry out what is missing, then print the tables; what the user can mend ends with exit code 2."""
    parser = command_line()
    arguments = parser.parse_intermixed_args(words)
    sizes = arguments.queries, arguments.test_queries, arguments.layers
    ablation = Ablation(arguments.recipe, *sizes, arguments.runs, arguments.file)
    chosen = [variant for variant in VARIANTS if variant.name in (arguments.only or variant.name)]
    collections = [] if arguments.table else [collection.split("=", 1) for collection in arguments.collections]
    if any(len(collection) != 2 for collection in collections):
        parser.error("name each collection: NAME=FOLDER")
    try:
        for seed, variant, (name, folder) in product(arguments.seeds, chosen, collections):
            row = ablation.run(variant, name, Path(folder), seed)
            print(f"{name}, {variant.name}, seed {seed}, {row['seconds']} s: {row['dev']}", flush=True)
    except TrainerError as error:
        parser.error(str(error))
    show(arguments.file)


if __name__ == "__main__":
    main()
