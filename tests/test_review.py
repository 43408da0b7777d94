"""Judging suspected labels in the terminal: every answer is kept at once, and the review goes on where it was left."""

import json

import pytest

from trainer.commands.review import LONGEST, review, shortened
from trainer.errors import DataError, RunError
from trainer.runtime.lock import hold


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
    with pytest.raises(RunError, match="is not there; mine first: reranker run RECIPE --until mine"):
        review(tmp_path / "suspected_false_negatives.jsonl", tmp_path / "judgements.jsonl", keys())


def test_two_reviews_at_once_are_refused(suspects, tmp_path):
    with hold(tmp_path / ".review.lock", "review"), pytest.raises(RunError, match="another review is using it"):
        review(suspects, tmp_path / "judgements.jsonl", keys())


# Labels written by hand are never lost


def label(document_id, **more):
    return json.dumps({"query_id": "q1", "document_id": document_id, **more}, ensure_ascii=False)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"], ids=repr)
def test_a_last_line_without_a_line_end_is_a_line(suspects, tmp_path, end):
    kept = tmp_path / "judgements.jsonl"
    kept.write_bytes((label("d0", relevant=2) + "\n" + label("by hand", relevant=True) + end).encode())
    review(suspects, kept, keys("y", "q"))
    assert [json.loads(line)["document_id"] for line in kept.read_text().split("\n") if line] == ["d0", "by hand", "d1"]


def test_a_half_written_last_line_is_dropped_with_a_word(suspects, tmp_path, capsys):
    kept = tmp_path / "judgements.jsonl"
    kept.write_text(label("d0", relevant=True) + '\n{"query_id": "q1", "docu')
    review(suspects, kept, keys("n", "q"))
    assert answers(kept) == [("d0", True), ("d1", False)]
    assert (
        'judgements.jsonl: the last line was cut off and is removed: {"query_id": "q1", "docu'
        in capsys.readouterr().out
    )


def test_a_broken_line_among_others_is_told_and_nothing_is_changed(suspects, tmp_path):
    kept = tmp_path / "judgements.jsonl"
    text = label("d0", relevant=True) + "\nnonsense\n[1]\n" + label("d1", relevant=True)
    kept.write_text(text)
    with pytest.raises(DataError) as caught:
        review(suspects, kept, keys())
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [f"{kept}:2", f"{kept}:3"]
    assert caught.value.faults[0].endswith("got 'nonsense'; correct or remove the line")
    assert kept.read_text() == text + "\n"


def test_line_separators_and_marks_inside_of_texts_are_text(tmp_path):
    suspects, kept = tmp_path / "suspects.jsonl", tmp_path / "judgements.jsonl"
    odd = "a\u2028b\u2029c\x85d"
    suspects.write_bytes(
        b"\xef\xbb\xbf" + (label(odd, query=odd, document=odd, positive=odd, why="?") + "\r\n").encode()
    )
    assert review(suspects, kept, keys("y")) == 1
    assert review(suspects, kept, keys()) == 0
    assert kept.read_text().count("\n") == 1


def test_a_list_that_is_broken_says_what_to_do(suspects, tmp_path):
    suspects.write_bytes(suspects.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"suspected_false_negatives.jsonl:4: .*; delete it and mine again"):
        review(suspects, tmp_path / "judgements.jsonl", keys())


# Undo


def test_u_takes_back_the_last_answer_also_of_an_earlier_sitting(suspects, tmp_path, capsys):
    kept = tmp_path / "judgements.jsonl"
    assert review(suspects, kept, keys("y", "n", "u", "u", "n", "q")) == 1
    assert answers(kept) == [("d0", False)]
    assert review(suspects, kept, keys("u", "s", "y", "q")) == 1  # one taken back, two given
    assert answers(kept) == [("d0", None), ("d1", True)]
    assert "is for another list" not in capsys.readouterr().out


def test_nothing_but_answers_to_the_list_is_taken_back(suspects, tmp_path, capsys):
    kept = tmp_path / "judgements.jsonl"
    kept.write_text(label("another list's", relevant=True))
    review(suspects, kept, keys("u", "y", "u", "u", "q"))
    assert answers(kept) == [("another list's", True)]
    assert capsys.readouterr().out.count("is for another list") == 2


# The screen


def test_long_documents_are_shortened_with_the_count_of_what_is_left_out():
    words = " ".join(f"word{number}" for number in range(5000))
    head, _, rest = shortened(words).partition(" ... (")
    assert len(head) <= LONGEST
    assert words.startswith(f"{head} ")
    assert rest == f"{5000 - len(head.split()):,} more words)"
    assert shortened("\u65e5" * (LONGEST + 50)) == "\u65e5" * LONGEST + " ... (50 more characters)"
    assert shortened("short  and\nwhole") == "short and whole"


def test_escape_sequences_of_texts_do_not_reach_the_terminal(suspects, tmp_path, capsys):
    suspects.write_text(label("d0", query="\x1b]0;title\x07", document="\x1b[2J", positive="ok", why="\x9b") + "\n")
    review(suspects, tmp_path / "judgements.jsonl", keys("q"))
    out = capsys.readouterr().out
    assert r"\x1b]0;title\x07" in out
    assert not set("\x1b\x07\x9b") & set(out)
