"""Let schemathesis draw requests from the server's own schema, and check that none makes the server fail.

    python scripts/check_schema.py ENVIRONMENTS            # a folder of virtual environments, created where missing
    python scripts/check_schema.py ENVIRONMENTS --seeds 1 2 3 --examples 200
    python scripts/check_schema.py ENVIRONMENTS --run runs/quickstart

The server runs in this process on loopback, with an API key and a run, so that `/search` has a corpus; without `--run`
a tiny one with BM25 and a bi-encoder is trained first. schemathesis runs in an environment of its own, once for each
seed. It draws requests that the schema allows and requests that it does not, and checks that no answer is a 5xx and
that status, content type, headers and body of each are those of the schema.

Two of its checks are left out: the server takes more than its schema, such as "3" for 3, and refuses some of what
JSON Schema cannot express, such as a list of scores of another length than the list of documents.

The exit code is 1 if schemathesis finds anything.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from check_clients import KEY, listening, python_of
from fuzz import build_inputs

import trainer
from trainer.model import Calibration, Fusion, Reranker
from trainer.model.calibration import Platt
from trainer.serving.app import create_app
from trainer.serving.corpus import Corpus
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings

LEFT_OUT = ("positive_data_acceptance", "negative_data_rejection")


def trained(folder: Path) -> Path:
    """Train a tiny model in a folder, and return the folder of its run."""
    inputs = folder / "inputs"
    build_inputs(inputs)
    places = {"data.path": "set", "retriever.model": "models/finder", "mine.teacher": "models/teacher"}
    places["reranker.model"] = "models/base"
    recipe = trainer.load_recipe(inputs / "recipe.yaml", [f"{key}={inputs / path}" for key, path in places.items()])
    trainer.run(recipe, folder / "runs", force=True)
    return folder / "runs" / recipe.name


def check(python: Path, address: str, seed: int, examples: int, folder: Path) -> bool:
    """Run schemathesis with a seed and its files in a folder, and return whether it found nothing."""
    options = {"header": f"Authorization: Bearer {KEY}", "exclude-checks": ",".join(LEFT_OUT)}
    options |= {"seed": str(seed), "max-examples": str(examples)}
    words = [f"--{name}={value}" for name, value in options.items()]
    print(f"\nseed {seed}", flush=True)
    command = [python.absolute().with_name("st"), "run", *words, f"{address}/openapi.json"]
    return subprocess.run(command, cwd=folder).returncode == 0


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", type=Path, help="a folder for the virtual environment of schemathesis")
    parser.add_argument("--run", type=Path, help="the folder of a finished run instead of a tiny one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--examples", type=int, default=100, help="requests for each route and kind of test")
    arguments = parser.parse_args()
    python = python_of(arguments.environments, "schemathesis")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        run = arguments.run or trained(Path(name))
        reranker = Reranker.load(run / "export" / "model", head="trained", device="cpu")
        reranker.fusion = reranker.fusion or Fusion(scores=0.8, order=0.4)
        reranker.calibration = reranker.calibration or Calibration({1: Platt(3.0, -2.0)})
        # The page is not in the schema, which therefore would not have the GET that `/` allows.
        app = create_app(Engine(reranker, "checked"), Settings(key=KEY, page=False), Corpus.open(run))
        with listening(app) as address:
            passed = [check(python, address, seed, arguments.examples, Path(name)) for seed in arguments.seeds]
    if not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    main()
