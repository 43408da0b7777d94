"""Long documents: cut into windows of tokens, scored by their best window, trained on that window."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trainer.check import check
from trainer.data import build_collection
from trainer.data.groups import Group
from trainer.errors import ModelError, RecipeError
from trainer.export.folder import _scores
from trainer.model import ChosenWindows, Reranker, TokenizedCollection, best_window_of, fit_length, rerank
from trainer.model.batching import PairEncoder
from trainer.model.teacher import Teacher
from trainer.model.windows import FILE, Windowed, cut
from trainer.pipeline import STAGES, run
from trainer.recipe import Data, Passages, load_recipe
from trainer.retriever import Candidates
from trainer.training import head_init
from trainer.training.windows import FILE as CHOSEN
from trainer.training.windows import choose_windows

QUERY = "liveness probe restarts"
FOUR = Passages.model_construct(length=4, overlap=1)  # shorter than a recipe may ask for, to count by hand


@pytest.fixture
def reranker(tiny) -> Reranker:
    """A classifier whose weights are large enough for scores that differ, with windows of ten tokens."""
    reranker = Reranker.load(tiny["reranker"], max_length=24)
    torch.manual_seed(2)
    for weight in reranker.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    reranker.passages = Passages(length=10, overlap=3)
    return reranker


@pytest.fixture
def texts(words):
    """Documents of 0, 1, 9, 10, 11, 17, 18, 40 and 55 words."""
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(words, size=size)) for size in (0, 1, 9, 10, 11, 17, 18, 40, 55)]


@pytest.mark.parametrize(
    ("tokens", "room", "expected"),
    [
        (0, 9, [(0, 0)]),
        (3, 9, [(0, 3)]),
        (4, 9, [(0, 4)]),
        (5, 9, [(0, 4), (1, 5)]),
        (7, 9, [(0, 4), (3, 7)]),
        (8, 9, [(0, 4), (2, 6), (4, 8)]),
        (10, 9, [(0, 4), (3, 7), (6, 10)]),
        (10, 4, [(0, 4), (3, 7), (6, 10)]),
        (5, 2, [(0, 2), (1, 3), (3, 5)]),  # the query leaves two tokens, so the overlap is 2 / 4 of 1, rounded down
        (2, 1, [(0, 1), (1, 2)]),
    ],
)
def test_windows_by_hand(tokens, room, expected):
    assert [(span.start, span.stop) for span in FOUR.windows(tokens, room)] == expected


def test_windows_of_any_size_hold_every_token_and_overlap_enough():
    rng = np.random.default_rng(1)
    for _ in range(500):
        length = int(rng.integers(8, 100))
        passages = Passages(length=length, overlap=int(rng.integers(0, length)))
        tokens, room = rng.integers(1, 400, size=2).tolist()
        spans = passages.windows(tokens, room)
        size = min(length, room)
        assert (spans[0].start, spans[-1].stop) == (0, tokens)
        assert {span.stop - span.start for span in spans} == {min(size, tokens)}
        least = passages.overlap * size // length
        assert all(one.stop - least >= after.start > one.start for one, after in zip(spans, spans[1:], strict=False))
        assert len(spans) == 1 + math.ceil(max(0, tokens - size) / (size - least))


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_window_is_never_truncated_whatever_the_query(kind, tiny):
    for max_length in (8, 15, 24):
        pairs = PairEncoder(AutoTokenizer.from_pretrained(tiny[kind]), max_length)
        for query in range(30):
            for document in range(45):
                pair = np.arange(query, dtype=np.int32), np.arange(document, dtype=np.int32)
                windowed = cut(Passages(length=10, overlap=3), [pair], pairs.room)
                kept = [window[: pairs.lengths(asked, window)[1]] for asked, window in windowed.pairs]
                assert set(np.concatenate(kept).tolist()) == set(range(document)), (max_length, query, document)


def by_hand(reranker, query, document, folder) -> float:
    """The largest score of the windows' texts, by transformers alone; a word is a token here."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    room = reranker.max_length - 3 - len(query.split())
    words = document.split()
    spans = reranker.passages.windows(len(words), room)
    parts = [" ".join(words[span]) for span in spans]
    with torch.inference_mode():
        inputs = [tokenizer([query], [part], return_tensors="pt") for part in parts]
        assert max(one["input_ids"].shape[1] for one in inputs) <= reranker.max_length
        return max(model(**one).logits.item() for one in inputs)


def test_a_documents_score_is_the_largest_that_transformers_gives_for_its_windows(reranker, texts, tmp_path):
    reranker.save(tmp_path / "model")
    scores = reranker.score([(QUERY, text) for text in texts])
    expected = [by_hand(reranker, QUERY, text, tmp_path / "model") for text in texts]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    reranker.passages = None
    truncated = reranker.score([(QUERY, text) for text in texts])
    np.testing.assert_allclose(truncated[:4], scores[:4], atol=1e-5)  # documents of up to ten words have one window
    assert (np.abs(truncated[4:] - scores[4:]) > 1e-3).any()
    np.testing.assert_array_equal(reranker.logits([(np.array([5]), np.array([6]))]).shape, (1,))


@pytest.mark.parametrize("kind", ["bert", "reranker"])
def test_packed_and_padded_windows_score_alike_in_both_heads(kind, tiny, texts):
    reranker = Reranker.load(tiny[kind], max_length=24)
    torch.manual_seed(2)
    for weight in reranker.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    reranker.passages = Passages(length=10, overlap=3)
    pairs = [(QUERY, text) for text in texts]
    padded = reranker.score(pairs)
    reranker.packed = True
    np.testing.assert_allclose(reranker.score(pairs), padded, atol=1e-4)
    one_by_one = np.concatenate([reranker.score([pair]) for pair in pairs])
    np.testing.assert_allclose(one_by_one, padded, atol=1e-4)


def test_an_answer_in_the_last_window_moves_its_document_to_the_top(tiny, words):
    reranker = Reranker.load(tiny["bert"], max_length=24)  # with a fresh interaction head, which compares tokens
    other = [word for word in words if word not in QUERY.split()]
    filler = " ".join(np.random.default_rng(3).choice(other, size=37))
    documents = [f"{' '.join(other[:8])} probe", f"{filler} {QUERY}", f"{' '.join(other[8:16])}"]
    assert reranker.rank(QUERY, documents)[0].index != 1
    reranker.passages = Passages(length=10, overlap=3)
    assert reranker.rank(QUERY, documents)[0].index == 1


def test_windows_of_all_documents_share_batches(reranker, texts, monkeypatch):
    sizes = []
    plain = reranker.buckets
    monkeypatch.setattr(reranker, "buckets", lambda of, *rest, **named: sizes.append(len(of)) or plain(of, *rest))
    reranker.score([(QUERY, text) for text in texts])
    windows = [len(reranker.passages.windows(len(text.split()), 18)) for text in texts]
    assert sizes == [sum(windows)]
    assert windows == [1, 1, 1, 1, 2, 2, 3, 6, 8]


def test_a_score_that_is_not_a_number_is_not_hidden_by_another_window():
    windowed = Windowed([], np.array([1, 3, 2]))
    scores = np.array([0.5, 1.0, np.nan, 3.0, 2.0, 4.0], dtype=np.float32)
    np.testing.assert_array_equal(windowed.best(scores), [0.5, np.nan, 4.0])
    assert windowed.best_index(np.array([0.5, 1.0, 3.0, 3.0, 2.0, 4.0])).tolist() == [0, 2, 5]  # the first of equals


def test_the_setting_is_saved_with_the_model(reranker, texts, tmp_path):
    reranker.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / FILE).read_text()) == {"version": 1, "length": 10, "overlap": 3}
    again = Reranker.load(tmp_path / "model")
    assert again.passages == reranker.passages
    pairs = [(QUERY, text) for text in texts]
    np.testing.assert_allclose(again.score(pairs), reranker.score(pairs), atol=1e-6)
    reranker.passages = None
    reranker.save(tmp_path / "model")
    assert not (tmp_path / "model" / FILE).exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"length": 10, "overlap": 3}',
        '{"version": 2, "length": 10, "overlap": 3}',
        '{"version": 1, "length": 10}',
        '{"version": 1, "length": 10, "overlap": 10}',
        '{"version": 1, "length": "x", "overlap": 3}',
        '{"version": 1, "length": 10, "overlap": true}',
        '{"version": 1, "length": 10, "overlap": 3, "more": 1}',
    ],
)
def test_a_damaged_setting_is_an_error(reranker, tmp_path, content):
    reranker.save(tmp_path / "model")
    (tmp_path / "model" / FILE).write_text(content)
    with pytest.raises(ModelError, match="not windows of version 1"):
        Reranker.load(tmp_path / "model")


# In a run.


@pytest.fixture
def collection(tmp_path, words):
    """Four documents of 45 words; the first answers the query in its last words."""
    rng = np.random.default_rng(8)
    other = [word for word in words if word not in QUERY.split()]
    rows = [" ".join(rng.choice(other, size=45)) for _ in range(4)]
    documents = {f"d{row}": text for row, text in enumerate([f"{rows[0]} {QUERY}", *rows[1:], "queue"])}
    qrels = {split: {f"{split}-q": {"d0": 1}} for split in ("train", "dev", "test")}
    texts = {"train-q": QUERY, "dev-q": f"why {QUERY}", "test-q": f"how {QUERY}"}
    lines = [{"_id": name, "text": text} for name, text in documents.items()]
    folder = tmp_path / "long"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [{"_id": name, "text": text} for name, text in texts.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    for split in qrels:
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{split}-q\td0\t1\n")
    return build_collection(Data(path=folder), tmp_path / "data")


def found(documents: list[list[int]], queries: list[int]) -> Candidates:
    """Candidates of queries, all with the same score of the first stage."""
    rows = np.array(documents, dtype=np.int32)
    ones, ranks = np.ones(rows.shape, dtype=np.float32), np.ones((*rows.shape, 1), dtype=np.int16)
    return Candidates(np.array(queries, dtype=np.int32), rows, ones, ones, ones[:, 0], ranks, np.array(["bm25"]))


def test_rerank_of_rows_and_score_of_texts_agree(reranker, collection):
    documents = [[2, 0, 1, 4], [4, 3, 0, 1]]
    candidates = found(documents, [0, 1])
    scores = rerank(reranker, TokenizedCollection(collection, reranker.pairs), candidates, None)
    for index, query in enumerate(collection.query_texts([0, 1])):
        expected = reranker.score([(query, text) for text in collection.passages(documents[index])])
        np.testing.assert_allclose(scores[index], expected, atol=1e-5)


def test_the_length_is_chosen_for_windows_and_not_for_whole_documents(tiny, collection):
    reranker = Reranker.load(tiny["reranker"])
    candidates = found([[0, 1, 2, 3]], [0])
    reranker.passages = Passages(length=20, overlap=5)
    fit_length(reranker, collection, candidates)
    assert reranker.max_length == 32  # 20, the query's 3 and 3 special tokens, up to the least length
    reranker.passages = None
    reranker.read_at_most(64)
    fit_length(reranker, collection, candidates)
    assert reranker.max_length == 56


def test_word_statistics_of_a_fitted_head_are_those_of_windows(tiny, collection):
    reranker = Reranker.load(tiny["bert"], max_length=24)
    lists = [Group(0, [0], [1], [1, 2, 3], first=[0.0, 1.0, 0.5, -1.0])]
    tokenized = TokenizedCollection(collection, reranker.pairs)
    head_init.start_head(reranker, tokenized, lists, most=1)
    whole = float(reranker.model.average_length)
    reranker.passages = Passages(length=10, overlap=3)
    fit = head_init.start_head(reranker, tokenized, lists, most=1)
    assert fit is not None
    assert whole == pytest.approx((4 * 24 + 1) / 5)  # documents of 45 to 48 words are truncated
    assert float(reranker.model.average_length) == pytest.approx((25 * 10 + 1) / 26)  # 7 + 6 + 6 + 6 windows, and 1
    assert float(reranker.model.idf.max()) == pytest.approx(np.log((26 + 1) / 0.5))  # of a token in no window
    assert set(fit.windows) == {(0, 0), (0, 1), (0, 2), (0, 3)}
    windowed = reranker.cut(tokenized.pairs([(0, row) for row in range(4)]))
    best = windowed.best_index(reranker.logits(windowed.pairs)) - windowed.starts
    assert list(fit.windows.values()) == best.tolist()


def test_a_mixture_is_fitted_to_the_windows_that_it_would_choose():
    rng = np.random.default_rng(0)
    counts = np.array([3, 1, 2, 4] * 30)
    windowed = Windowed([], counts)
    lists = [Group(query, [0], [1], [1, 2, 3]) for query in range(30)]
    signals = rng.normal(size=(counts.sum(), 2)).astype(np.float32)
    planted = windowed.starts[::4] + 2  # the last window of each relevant document
    signals[planted, 0] += 6.0
    weights = head_init.fit_windows(signals, windowed, lists, np.array([0.2, 1.0], dtype=np.float32))
    assert weights[0] > 3 * abs(weights[1])
    assert (windowed.best_index(signals @ weights)[::4] == planted).mean() > 0.9
    logits = head_init.held_out_logits(signals, windowed, lists, np.array([0.2, 1.0])).reshape(30, 4)
    assert (logits.argmax(axis=1) == 0).mean() > 0.9


def test_without_windows_the_mixture_is_fitted_once(monkeypatch):
    fits = []
    monkeypatch.setattr(head_init, "probe", lambda features, lists, **_: fits.append(len(features)) or np.ones(2))
    single = Windowed([], np.ones(4, dtype=int))
    head_init.fit_windows(np.eye(4, 2), single, [Group(0, [0], [1], [1, 2, 3])], np.ones(2))
    assert fits == [4]


def test_training_reads_the_best_window_of_each_document_and_records_it(reranker, collection, tmp_path, monkeypatch):
    tokenized = TokenizedCollection(collection, reranker.pairs)
    groups = [Group(0, [0], [1], [1, 4]), Group(1, [0], [1], [2])]
    accelerator = Accelerator(cpu=True)
    known = {(0, 1): 3}
    chosen = choose_windows(reranker, tokenized, groups, known, accelerator, tmp_path)
    assert list(chosen) == [(0, 1), (0, 0), (1, 0), (1, 2)]  # document 4 is a single word
    assert chosen[0, 1] == 3
    content = json.loads((tmp_path / CHOSEN).read_text())
    assert content == {"0": {"0": chosen[0, 0], "1": 3}, "1": {"0": chosen[1, 0], "2": chosen[1, 2]}}

    query, document = tokenized.pairs([(1, 2)])[0]
    spans = reranker.passages.windows(len(document), reranker.pairs.room(query))
    scores = reranker.logits([(query, document[span]) for span in spans])
    assert chosen[1, 2] == int(scores.argmax())
    assert len(set(scores.tolist())) > 1
    (read,) = ChosenWindows(reranker, tokenized, chosen).pairs([(1, 2)])
    np.testing.assert_array_equal(read[1], document[spans[int(scores.argmax())]])
    (short,) = ChosenWindows(reranker, tokenized, chosen).pairs([(0, 4)])
    assert len(short[1]) == 1

    monkeypatch.setattr(reranker, "logits", None)  # a resumed training scores nothing
    assert choose_windows(reranker, tokenized, groups, {}, accelerator, tmp_path) == chosen


def test_several_processes_choose_the_windows_of_one(reranker, collection, monkeypatch):
    tokenized = TokenizedCollection(collection, reranker.pairs)
    rows = [(query, document) for query in range(3) for document in range(5)]
    alone = best_window_of(reranker, tokenized, rows, None)
    parts = []
    monkeypatch.setattr("trainer.model.scoring.gather_object", lambda part: parts.append(part[0]) or [part[0]] * 3)
    for process in range(3):
        best_window_of(reranker, tokenized, rows, SimpleNamespace(process_index=process, num_processes=3))
    several = [row for row in rows if row[1] < 4]
    together = {row: int(parts[place % 3][place // 3]) for place, row in enumerate(several)}
    assert together == alone


def test_a_teacher_reads_windows_too_and_keeps_both_kinds_of_scores_apart(tiny, collection, tmp_path):
    rows = [(0, 0), (0, 4)]
    answers = {}
    for passages in (None, Passages(length=10, overlap=3), Passages(length=12, overlap=3)):
        options = {"max_length": 24, "passages": passages}
        teacher = Teacher(str(tiny["reranker"]), collection, tmp_path / "kept", Accelerator(cpu=True), **options)
        answers[passages] = teacher(rows)
        assert teacher.num_scored == 2
        reranker = Reranker.load(tiny["reranker"], max_length=24)
        reranker.passages = passages
        expected = reranker.score([(QUERY, text) for text in collection.passages([0, 4])])
        np.testing.assert_allclose(answers[passages], expected, atol=1e-6)


# The recipe and its check.


def test_windows_are_off_by_default_and_then_no_stage_depends_on_them(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.passages is None
    inputs = {stage.name: stage.inputs(recipe) for stage in STAGES}
    windowed = load_recipe(recipe_file, ["passages.length=10", "passages.overlap=2"])
    changed = {stage.name: stage.inputs(windowed) for stage in STAGES}
    assert changed.pop("train") == inputs.pop("train") | {"passages.length": 10, "passages.overlap": 2}
    assert changed == inputs
    taught = load_recipe(recipe_file, ["passages.length=10", "passages.overlap=2", "mine.teacher=a-teacher"])
    mine = next(stage for stage in STAGES if stage.name == "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.stages.mine.content", lambda *_: {})
        assert mine.inputs(taught)["passages.length"] == 10


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (["passages.length=10", "passages.overlap=10"], "10 is not less than passages.length 10"),
        (["passages.length=17", "passages.overlap=2"], "a window of 17 tokens leaves no room for a query in the 32"),
        (["passages.length=7"], "8"),
        (["passages.overlap=-1"], "0"),
        (["reranker.max_length=auto", "passages.length=500"], "no room for a query in the 512 tokens"),
        (["passages.length=true"], "is a number"),
        (["passages.stride=3"], "stride"),
    ],
)
def test_impossible_windows_are_refused(recipe_file, settings, fault):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file, settings)
    assert fault in str(error.value)
    assert "passages" in str(error.value)


def test_check_refuses_windows_that_the_model_cannot_read_or_choose(recipe_file, tiny, tmp_path):
    longer = ["reranker.max_length=auto", "passages.length=51", "passages.overlap=2"]
    with pytest.raises(RecipeError, match=r"passages.length: a window of 51 tokens leaves no room .* the 66 tokens"):
        check(load_recipe(recipe_file, longer), tmp_path / "runs")
    small = ["passages.length=10", "passages.overlap=2"]
    with pytest.raises(RecipeError, match="gives random scores before training"):
        check(load_recipe(recipe_file, [*small, "reranker.head=classifier"]), tmp_path / "runs")
    with pytest.raises(RecipeError, match=r"or leave out distil\.model"):
        check(load_recipe(recipe_file, [*small, f"distil.model={tiny['roberta']}"]), tmp_path / "runs")


def test_check_counts_the_windows(recipe_file, tmp_path, capsys):
    check(load_recipe(recipe_file, ["passages.length=10", "passages.overlap=2"]), tmp_path / "runs")
    told = " ".join(capsys.readouterr().out.split())
    assert "100% of 40 documents are read in several windows of up to 10 tokens (passages.length)" in told
    assert "0% of the queries are truncated" in told


def test_a_run_with_windows(recipe_file, tmp_path, capsys):
    """Training, evaluation and export agree; transformers reads the folder, which truncates."""
    words = ["reranker.max_length=24", "passages.length=8", "passages.overlap=2", "train.epochs=1"]
    run(load_recipe(recipe_file, words), tmp_path / "runs", force=True)
    folder = tmp_path / "runs" / "tiny"
    chosen = json.loads((folder / "train" / CHOSEN).read_text())
    assert any(index for documents in chosen.values() for index in documents.values())
    assert "documents have several windows" in capsys.readouterr().out
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    assert list(results["systems"])[-3:] == ["other_libraries", "fused", "ceiling"]
    assert results["systems"]["other_libraries"] != results["systems"][results["shipped"]]
    model = Reranker.load(folder)
    assert model.passages == Passages(length=8, overlap=2)
    card = (folder / "export" / "model" / "README.md").read_text()
    assert "| other libraries |" in card
    assert "documents of more than 8 tokens in windows" in card
    differences = json.loads((folder / "export" / "done.json").read_text())["differences"]
    assert {"transformers", "sentence-transformers"} <= differences.keys()
    assert "in other libraries" in (folder / "report.md").read_text().lower()


@pytest.mark.slow
def test_a_student_learns_from_the_windows_that_its_teacher_chose(recipe_file, tmp_path, scripts):
    """And other libraries give the row of theirs."""
    from check_rows import check_rows

    words = ["reranker.max_length=24", "passages.length=8", "passages.overlap=2", "train.epochs=1"]
    run(load_recipe(recipe_file, [*words, "distil.queries=30"]), tmp_path / "runs", force=True)
    folder = tmp_path / "runs" / "tiny"
    assert json.loads((folder / "distil" / CHOSEN).read_text())
    assert Reranker.load(folder).passages == Passages(length=8, overlap=2)
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    assert results["shipped"] == "distilled"
    for row in check_rows(folder):
        assert row.difference < 1e-3
        assert row.metrics.keys() == {"nDCG@10 other_libraries", "RR@10 other_libraries"}
        assert row.ties or all(read == pytest.approx(table, abs=1e-6) for read, table in row.metrics.values())


def test_exported_formats_are_compared_on_truncated_documents(reranker, texts):
    expected = _scores(reranker, [(QUERY, text) for text in texts])
    reranker.passages = None
    np.testing.assert_allclose(reranker.score([(QUERY, text) for text in texts]), expected, atol=1e-5)
