"""What is installed: one import name, the commands, the public names."""

import subprocess
import sys
import zipfile
from pathlib import Path

import trainer

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_only_the_package(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"trainer"}
    assert "trainer/model/interaction.py" in names
    assert "trainer/py.typed" in names
    assert "trainer/serving/page.html" in names


def test_public_names():
    names = ["Collection", "Recipe", "Reranker", "RunResult", "TrainerError", "load_recipe", "run"]
    assert sorted(trainer.__all__) == names
    assert all(hasattr(trainer, name) for name in trainer.__all__)


def test_import_is_light():
    code = "import sys, trainer; print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
