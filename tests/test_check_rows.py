"""The exported files give the row of the table that they were exported with, in a process without this package."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow


def test_every_exported_format_gives_its_own_row(exported, scripts):
    from check_rows import check_rows

    rows = check_rows(exported[1] / "exported")
    assert [row.reader for row in rows] == ["score_transformers", "score_sentence_transformers", "score_onnx"]
    for row in rows:
        assert row.difference < 1e-3
        assert row.swapped == 0
        assert set(row.metrics) == {
            f"{metric} {way}" for metric in ("nDCG@10", "RR@10", "R@50") for way in ("fitted", "fused")
        }
        assert row.ties or all(read == pytest.approx(table, abs=1e-6) for read, table in row.metrics.values())


def test_other_weights_in_the_folder_show(exported, tmp_path, scripts):
    from check_rows import check_rows

    runs = tmp_path / "runs"
    shutil.copytree(exported[1], runs)
    weights = runs / "exported" / "export" / "model" / "model.safetensors"
    changed = {
        name: tensor * torch.tensor(-1.0) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(changed, weights, metadata={"format": "pt"})
    shutil.rmtree(weights.parent / "onnx")
    rows = check_rows(runs / "exported")
    assert [row.reader for row in rows] == ["score_transformers", "score_sentence_transformers"]
    assert all(row.swapped > 0 and row.difference > 0.1 for row in rows)
