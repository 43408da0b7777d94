"""Check that exported folders give the same scores under other versions of transformers and sentence-transformers.

    python scripts/check_readers.py --build FOLDER         # exports a tiny random model of each family to a new folder
    python scripts/check_readers.py --write FOLDER ...     # in the exporting environment: writes FOLDER.scores.json
    other/bin/python scripts/check_readers.py FOLDER ...   # in another one: compares; exit code 1 where a score differs

The other environment needs torch, transformers, sentence-transformers and onnxruntime, and nothing of this package.
`--build` needs this repository's tests and writes the scores too. Folders of the interaction head contain Python code,
which is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import numpy as np

EXPORT = Path(__file__).parents[1] / "trainer" / "export"  # its files import nothing of this package
readers = SimpleNamespace(**run_path(str(EXPORT / "readers.py")))
odd_pairs = run_path(str(EXPORT / "odd_pairs.py"))["odd_pairs"]
TOLERANCE = 1e-3  # largest difference of float32 logits that rounding explains
PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "onnxruntime")
QUERIES = ["why does the probe restart the container", "disk full", "lag of one consumer grows over night"]
DOCUMENTS = [
    "liveness probe restarts the container when its endpoint fails",
    "inodes run out although the disk shows free space",
    "consumer lag grows while one partition holds all messages",
]


def main() -> None:
    """Write or compare the scores of every folder."""
    parser = argparse.ArgumentParser(description="Compare the scores of exported folders under other versions.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="write the scores of this environment")
    parser.add_argument("--build", action="store_true", help="export tiny models of all families, and write the scores")
    arguments = parser.parse_args()
    print("; ".join(f"{name} {version(name)}" for name in PACKAGES))
    if arguments.build:
        for root in arguments.folders:
            build(root)
    elif arguments.write:
        for folder in arguments.folders:
            write(folder)
    elif not all([compare(folder) for folder in arguments.folders]):  # a list, so that all are compared
        sys.exit(1)


def build(root: Path) -> None:
    """Export a tiny random model of each family, with each head that it has, and write its scores."""
    sys.path.append(str(EXPORT.parents[1] / "tests"))
    from test_families import CASES, exported, write_family

    for name, head in CASES:
        folder = root / f"{name}-{head}"
        exported(write_family(name, head, folder / "base"), folder)
        write(folder / "model")


def write(folder: Path) -> None:
    """Write pairs and their scores to a file next to the folder."""
    plain = [(query, document) for query in QUERIES for document in DOCUMENTS]
    tokens = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = sorted({value for name, value in tokens.items() if name.endswith("_token") and isinstance(value, str)})
    pairs = [*plain, *odd_pairs(plain, special, tokens["model_max_length"])]
    scores = readers.score_transformers(folder, pairs).tolist()
    scores_file(folder).write_text(json.dumps({"pairs": pairs, "scores": scores}), encoding="utf-8")


def compare(folder: Path) -> bool:
    """Print each reader's largest difference to the written scores; return whether all are small."""
    content = json.loads(scores_file(folder).read_text(encoding="utf-8"))
    pairs, expected = [tuple(pair) for pair in content["pairs"]], np.array(content["scores"])
    scorers = {"transformers": readers.score_transformers, "sentence-transformers": readers.score_sentence_transformers}
    if (folder / readers.GRAPH).is_file():
        scorers["onnx"] = readers.score_onnx
    differences = {}
    for name, score in scorers.items():
        try:
            differences[name] = float(np.abs(score(folder, pairs) - expected).max())
        except Exception as error:  # other versions may raise anything, which is the result
            print(f"{folder}: {name}: {type(error).__name__}: {error}")
            differences[name] = float("inf")
    print(f"{folder}: {', '.join(f'{name} {difference:.1e}' for name, difference in differences.items())}")
    return all(difference <= TOLERANCE for difference in differences.values())


def scores_file(folder: Path) -> Path:
    """Return the path of the file with the folder's scores."""
    return folder.with_name(f"{folder.name}.scores.json")


if __name__ == "__main__":
    main()
