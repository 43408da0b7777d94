"""Download a model from the Hub to a folder, and show what came with it."""

from __future__ import annotations

from pathlib import Path

from trainer.model.calibration import Calibration
from trainer.model.fusion import Fusion
from trainer.model.windows import FILE as WINDOWS_FILE
from trainer.model_files.pull import pull
from trainer.runtime import console


def pull_model(repository: str, folder: Path | None, revision: str | None) -> None:
    """Download a model, by default to a folder of its name, and print what `reranker serve` will apply."""
    target = folder or Path(repository.rpartition("/")[2])
    pulled = pull(repository, revision, target)
    found = {
        "fusion": Fusion.load(target) is not None,
        "calibration": Calibration.load(target) is not None,
        "windows": (target / WINDOWS_FILE).is_file(),
        "ONNX": any(target.glob("onnx/*.onnx")),
    }
    came = ", ".join(name for name, is_there in found.items() if is_there)
    line = f"{pulled.size / 1e6:.1f} MB of {repository} at {pulled.commit[:12]} in {target}"
    console.stage("pull", f"{line}, with {came}" if came else line)
