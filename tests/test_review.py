"""Judging suspected labels in the terminal: every answer is kept at once, and the review goes on where it was left."""

import json

import pytest

from trainer.errors import RunError
from trainer.lock import hold
from trainer.review import review


@pytest.fixture
def suspects(tmp_path):
    path = tmp_path / "suspected_false_negatives.jsonl"
    lines = [
        {"query_id": "q1", "document_id": f"d{number}", "relevant": None, "why": "above 95% of the positive"}
        | {"query": "why [red]", "document": f"passage {number}", "positive": "the answer"}
        for number in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path):
    return [(line["document_id"], line["relevant"]) for line in map(json.loads, path.read_text().splitlines())]


def keys(*pressed):
    """Presses these keys, and fails when asked for more."""
    left = iter(pressed)
    return lambda: next(left)


def test_answers_are_kept_as_judgements_and_the_review_goes_on_where_it_was_left(suspects, tmp_path, capsys):
    kept = tmp_path / "judgements.jsonl"
    assert review(suspects, kept, keys("y", "s", "q")) == 2
    assert answers(kept) == [("d0", True), ("d1", None)]
    assert "2 of 4 pairs are open" in capsys.readouterr().out

    assert review(suspects, kept, keys("n", "y")) == 2
    assert answers(kept) == [("d0", True), ("d1", None), ("d2", False), ("d3", True)]
    shown = capsys.readouterr().out
    assert "3 of 4: above 95% of the positive" in shown
    assert "passage 0" not in shown
    assert "why [red]" in shown
    assert review(suspects, kept, keys()) == 0


def test_an_answer_is_on_disk_before_the_next_question(suspects, tmp_path):
    kept = tmp_path / "judgements.jsonl"
    seen = []

    def ask():
        seen.append(len(answers(kept)))
        return "y"

    review(suspects, kept, ask)
    assert seen == [0, 1, 2, 3]


def test_a_line_cut_off_by_a_kill_is_asked_again(suspects, tmp_path):
    kept = tmp_path / "judgements.jsonl"
    review(suspects, kept, keys("y", "n", "q"))
    kept.write_text(kept.read_text()[:-9])
    review(suspects, kept, keys("y", "q"))
    assert answers(kept) == [("d0", True), ("d1", True)]


def test_without_mining_there_is_nothing_to_review(tmp_path):
    with pytest.raises(RunError, match=r"is not there; run `reranker mine` with this recipe first"):
        review(tmp_path / "suspected_false_negatives.jsonl", tmp_path / "judgements.jsonl", keys())


def test_two_reviews_at_once_are_refused(suspects, tmp_path):
    with hold(tmp_path / ".review.lock", "review"), pytest.raises(RunError, match="another review is using it"):
        review(suspects, tmp_path / "judgements.jsonl", keys())
