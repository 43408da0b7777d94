"""Parts of scripts/gpu_check and their results: the machine, the tests that need a GPU, a full recipe.

Each part runs in its own process and imports its libraries there, so that a missing or outdated library only fails that
part.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_chip import device_of, measured_tflops, published_tflops

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
# On a CPU compilation would take most of the time; without dynamo the same code runs uncompiled.
DRY_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "TORCHDYNAMO_DISABLE": "1"}
DRY_ENVIRONMENT |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class Results:
    """A part's results, which are printed at once and written to a file that outlives the part's process."""

    def __init__(self, part: str, folder: Path) -> None:
        self.part = part
        self.path = folder / "results.jsonl"

    def add(self, what: str, **values: Any) -> None:
        """Print one result and append it to the file."""
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in values.items() if value is not None)
        print(f"{self.part}  {what}: {shown}", flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what} | values, default=str) + "\n")

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """Run one step of a part; where it fails, record the error as its result and continue."""
        try:
            do()
        except Exception as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            self.add(what, error=f"{type(error).__name__}: {lines[0][:300]}")

    def read(self) -> list[dict[str, Any]]:
        """Return all results so far."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Part:
    """A part with its name, time limit in seconds, description and function."""

    name: str
    limit: int
    about: str
    run: Callable[[Results, Path, bool], None]


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


# The machine.


def machine(results: Results, folder: Path, dry: bool) -> None:
    """Report installed packages, the GPU, and its speed on one large matrix product."""
    import torch

    device = device_of(dry)
    results.add("packages", **packages())
    if device == "cuda":
        chip: Any = torch.cuda.get_device_properties(0)
        results.add(
            "chip",
            name=chip.name,
            memory_gib=chip.total_memory / 2**30,
            capability=f"{chip.major}.{chip.minor}",
            cuda=torch.version.cuda,
            flash_attn="installed" if _version("flash_attn") else "not installed: theirs has to use SDPA",
        )
    results.add("matrix product", tflops=measured_tflops(device), published_tflops=published_tflops(device))


def packages() -> dict[str, list[str]]:
    """Return package versions: those below the minimum in pyproject.toml, missing packages, and the others."""
    from packaging.version import Version

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions: dict[str, list[str]] = {"below_floor": [], "missing": [], "versions": []}
    for name, floor in re.findall(r'^    "([\w-]+)>=([\d.]+)",$', project, flags=re.MULTILINE):
        version = _version(name)
        if version is None:
            versions["missing"].append(name)
        elif Version(version) < Version(floor):
            versions["below_floor"].append(f"{name} {version} < {floor}")
        else:
            versions["versions"].append(f"{name} {version}")
    return versions


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


# The tests and a recipe.


def tests(results: Results, folder: Path, dry: bool) -> None:
    """Run the tests that need a GPU; in a dry run, only collect them."""
    device_of(dry)
    marked = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    # A test module may import a missing package, and older libraries may warn: neither stops the other tests.
    words = ["-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--continue-on-collection-errors"]
    words += ["--collect-only", "-q"] if dry else ["-v", "--tb=short"]
    command = [sys.executable, "-m", "pytest", *words, *marked]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", done.stdout)}
    collected = re.search(r"(\d+)(?:/\d+)? tests? collected", done.stdout)
    results.add("pytest -m gpu", **(counts if not dry else {"collected": int(collected[1]) if collected else 0}))
    if done.returncode:
        raise RuntimeError(f"pytest ended with exit code {done.returncode}")


def recipe(results: Results, folder: Path, dry: bool) -> None:
    """Run a full recipe in bf16 with a tiny model, up to the export in the default formats."""
    from accelerate.state import AcceleratorState
    from bench_sides import be_quiet
    from gpu_models import save_collection, save_encoder
    from sentence_transformers import SentenceTransformer

    from trainer.pipeline import run
    from trainer.recipe import Recipe
    from trainer.runtime.run_folder import read_json
    from trainer.training.checkpoints import last_checkpoint, precision_of

    device_of(dry)
    be_quiet()
    save_collection(folder / "set", {"train": 48, "dev": 16, "test": 16}, documents=200, length=20)
    save_encoder(folder / "encoder")
    SentenceTransformer(str(folder / "encoder"), device="cpu").save(str(folder / "bi-encoder"))
    started = time.perf_counter()
    tiny = Recipe.model_validate(
        {
            "name": "tiny",
            "data": {"path": folder / "set"},
            "retriever": {"model": str(folder / "bi-encoder"), "depth": 20},
            "mine": {"negatives_per_positive": 3},
            "reranker": {"model": str(folder / "encoder"), "max_length": 64},
            "train": {"precision": "bf16", "queries_per_step": 8},
        }
    )
    run(tiny, folder / "runs", force=True)
    notes = {name: read_json(folder / "runs" / "tiny" / name / "done.json") for name in ("train", "export")}
    checkpoint = last_checkpoint(folder / "runs" / "tiny" / "train")
    results.add(
        "recipe",
        seconds=time.perf_counter() - started,
        dev=notes["train"]["best_dev"],
        exported=notes["export"]["differences"],
        device=str(AcceleratorState().device),
        precision=precision_of(checkpoint) if checkpoint else None,
    )
