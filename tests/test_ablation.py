"""The ablation on the tiny set: every changed part is really changed, rows are kept and not made twice."""

import json
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.torch import load_file

from trainer.data.groups import Group


@pytest.fixture
def ablate(scripts, recipe_file, beir, tmp_path, monkeypatch):
    """`ablate(variant, ...)` runs them on the tiny set and returns the rows; run folders stay."""
    import ablation

    monkeypatch.setattr(ablation, "remove", lambda _: None)
    recipe = (
        recipe_file.read_text()
        .replace("epochs: 2", "epochs: 1")
        .replace("max_length: 32", "max_length: 32\n  depth: 4")
    )
    recipe_file.write_text(recipe.replace(f"  path: {beir}\n", "").replace("data:\n", ""))
    file, runs = tmp_path / "rows.jsonl", tmp_path / "runs"
    options = ["--recipe", recipe_file, "--file", file, "--runs", runs, "--queries", "12", "--layers", "2"]

    def ablate(*variants: str) -> list[dict]:
        ablation.main([str(word) for word in (f"tiny={beir}", *options, "--only", *variants)])
        return ablation.read_rows(file)

    return ablate


def test_rows_hold_what_was_measured_and_are_not_made_twice(ablate, tmp_path, capsys):
    (row,) = ablate("defaults")
    dev = json.loads((tmp_path / "runs" / "tiny-defaults-13" / "evaluate" / "dev.json").read_text())
    assert row["collection"] == "tiny"
    assert row["values"]["first_stage"] == [round(value, 4) for value in dev["opponents"]["first_stage"]]
    assert row["dev"]["shipped"] == pytest.approx(np.mean(row["values"]["shipped"]), abs=1e-4)
    assert row["dev"]["shipped"] == pytest.approx(max(score for _, score in row["interpolation"]), abs=1e-4)
    assert row["test"].keys() >= {"first_stage", "shipped", "fused"}

    with patch("ablation.run", side_effect=AssertionError("run again")):
        assert ablate("defaults") == [row]
    assert "| defaults | 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_each_variant_changes_what_its_name_says(ablate, tmp_path):
    names = ["defaults", "loss-without-first-stage", "no-lexical-signals", "missed-positives-added", "depth-10"]
    rows = {row["variant"]: row for row in ablate(*names)}

    def left(variant: str, name: str):
        return json.loads((tmp_path / "runs" / f"tiny-{variant}-13" / name).read_text())

    assert left("defaults", "train/fitted.json")["first_stage_weight"] > 0
    assert left("loss-without-first-stage", "train/fitted.json")["first_stage_weight"] == 0
    lexical = {
        name: load_file(tmp_path / "runs" / f"tiny-{name}-13" / "train" / "start" / "model.safetensors")["lexical"]
        for name in names
    }
    assert lexical["defaults"].abs().min() > 0
    assert lexical["no-lexical-signals"].abs().max() == 0
    groups = {name: left(name, "mine/groups.json") for name in names}
    positives = {name: sum(len(group["positives"]) for group in some) for name, some in groups.items()}
    negatives = {name: sum(len(group["negatives"]) for group in some) for name, some in groups.items()}
    assert positives["missed-positives-added"] > positives["defaults"]
    assert negatives["missed-positives-added"] == negatives["defaults"] < negatives["depth-10"]
    assert "test" not in rows["depth-10"]
    assert len({row["recipe"] for row in rows.values()}) == 3
    assert len({row["setting"] for row in rows.values()}) == 1


def test_a_missed_positive_joins_the_list_with_the_lowest_score(scripts):
    from ablation import with_missed

    class Collection:
        qrels = {"train": {7: {1: 2, 2: 0, 5: 1, 6: 3}}}

        def positives(self, split: str, query: int) -> list[int]:
            return [row for row, grade in self.qrels[split][query].items() if grade > 0]

    group = Group(7, positives=[1], grades=[2], negatives=[2, 3], first=[0.5, 0.7, -1.2])
    found = with_missed(group, Collection())  # type: ignore[arg-type]
    assert found.documents == [1, 5, 6, 2, 3]
    assert found.grades == [2, 1, 3]
    assert found.first == [0.5, -1.2, -1.2, 0.7, -1.2]


def test_the_draws_of_a_seed_nest_and_hold_whole_queries_with_a_positive(scripts, tmp_path):
    from ablation import draw_queries

    path = tmp_path / "train.tsv"
    rows = [f"q{query}\td{document}\t{int(query != 3)}\n" for query in range(9) for document in range(2)]
    path.write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    four, six = draw_queries(path, 4, seed=1), draw_queries(path, 6, seed=1)
    assert len(four) == 1 + 4 * 2
    assert set(four) < set(six)
    assert four[0] == "query-id\tcorpus-id\tscore\n"
    assert len(draw_queries(path, 99, seed=1)) == 1 + 8 * 2  # q3 has no positive
    assert draw_queries(path, 4, seed=2) != four


def _row(collection: str, variant: str, seed: int, shipped: list[float]) -> dict:
    values = {"first_stage": [0.75] * len(shipped), "untrained": [0.25] * len(shipped)}
    values |= {"shipped": shipped, "fused": shipped}
    dev = {name: float(np.mean(one)) for name, one in values.items()}
    row = {"collection": collection, "variant": variant, "seed": seed, "values": values, "dev": dev}
    return row | {"interpolation": [[0.5, 0.4], [1.0, 0.375], [0.0, 0.1]]}


def test_differences_are_paired_by_query_and_seed(scripts):
    from ablation import dev_table, differences

    rows = [
        _row("one", "defaults", 13, [0.2, 0.4]),
        _row("one", "defaults", 14, [0.6, 0.8]),
        _row("one", "draws", 13, [0.1, 0.4]),
        _row("one", "draws", 14, [0.3, 0.8]),
        _row("one", "draws", 15, [9.0, 9.0]),  # without defaults beside it
        _row("two", "defaults", 13, [0.5, 0.5, 0.5]),
    ]
    assert differences(rows, "one", "draws", "shipped") == pytest.approx([-0.2, 0.0])
    assert differences(rows, "one", "untrained", "shipped") == pytest.approx([-0.15, -0.35])
    assert len(differences(rows, "two", "draws", "shipped")) == 0
    head, defaults, first_stage, untrained, draws, not_interpolated = dev_table(rows, "shipped")
    assert head == ["", "runs", "one", "two", "mean"]
    assert defaults == ["defaults", "3", "0.500", "0.500", "0.500"]
    assert first_stage[2:] == ["+0.250 [+0.150, +0.350]", "+0.250 [+0.250, +0.250]", "+0.250 [+0.200, +0.300]"]
    assert untrained[3] == "-0.250 [-0.250, -0.250]"
    assert draws == ["draws", "2", "-0.100 [-0.200, +0.000]", "", ""]
    assert not_interpolated == ["not_interpolated", "", "-0.025", "-0.025", "-0.025"]
    assert [cells[0] for cells in dev_table(rows, "fused")] == ["", "defaults", "first_stage", "draws"]
