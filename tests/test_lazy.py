"""Packages import their names on first use: every name resolves, and light commands load nothing heavy."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trainer"
FACES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if "face(__name__)" in path.read_text())


def names(folder: Path) -> list[str]:
    lines = (folder / "__init__.py").read_text().splitlines()
    return [line.rpartition(" as ")[2] for line in lines if line.startswith("    from ")]


@pytest.mark.parametrize("folder", FACES, ids=[folder.name for folder in FACES])
def test_every_name_of_a_package_is_there(folder):
    package = import_module(".".join(folder.relative_to(PACKAGE.parent).parts))
    assert names(folder)
    for name in names(folder):
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_the_pipeline_is_imported_without_what_only_work_needs():
    code = (
        "import sys, trainer.pipeline; print(sorted({'torch', 'datasets', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
