"""The tuned first stage: its parts by hand and against oracles, what it chooses, and what keeps it from noise."""

import json
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer

from trainer.data import SPLITS, build_collection
from trainer.evaluation.metrics import per_query
from trainer.pipeline import open_run, run
from trainer.recipe import Data, load_recipe
from trainer.recipe import Retriever as RetrieverSection
from trainer.retriever import NOTHING, BiEncoder, Candidates, RankedLists, Settings, Tuning, retrieve_splits, shards
from trainer.retriever.bm25 import Analyzer, Bm25
from trainer.retriever.engines import Engines, Pool
from trainer.retriever.fusion import ordered, reciprocal_rank_fusion, union, z_scores
from trainer.retriever.retrieve import judged_queries, retrieve_unjudged
from trainer.retriever.tuning import choose, cross_validate, ideal_gains, ndcg, nearest_to_default

STOP_WORDS = ["the", "of", "and", "to", "in", "is", "not", "for"]

Retriever = partial(RetrieverSection, tune="auto")


def ranking(*lists):
    documents, scores = zip(*lists, strict=True)
    return RankedLists(np.array(documents, dtype=np.int32), np.array(scores, dtype=np.float32))


def write(folder, documents, queries):
    """A BEIR folder of texts; `queries` are (split, text, {document row: grade})."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{row}", "text": text}) for row, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"_id": f"q{row}", "text": text}) for row, (_, text, _) in enumerate(queries)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    for split in SPLITS:
        lines = ["query-id\tcorpus-id\tscore"]
        for row, (part, _, grades) in enumerate(queries):
            lines += [f"q{row}\td{document}\t{grade}" for document, grade in grades.items() if part == split]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def titles(queries):
    """Documents that only stop words tell apart, as titles of songs are, and queries for them."""
    documents = [f"{' '.join(words)} song" for words in combinations(STOP_WORDS, 3)]
    chosen = np.random.default_rng(0).choice(len(documents), queries + 10, replace=True).tolist()
    splits = ["train"] * queries + ["dev"] * 5 + ["test"] * 5
    return documents, [
        (split, f"song {documents[row].removesuffix(' song')}", {row: 1})
        for split, row in zip(splits, chosen, strict=True)
    ]


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    root = tmp_path_factory.mktemp("songs")
    return build_collection(Data(path=write(root / "set", *titles(60))), root / "data")


@pytest.fixture(scope="module")
def vectors(songs, tiny, tmp_path_factory):
    """Embeddings of the judged queries and of all documents by a tiny bi-encoder that knows nothing."""
    root = tmp_path_factory.mktemp("vectors")
    SentenceTransformer(str(tiny["bert"]), device="cpu").save(str(root / "bi-encoder"))
    parts = shards(BiEncoder(root / "bi-encoder"), songs, root / "embeddings")
    for part in parts:
        part.encode(Accelerator(cpu=True))
    return parts[0].open(), parts[1].open()


# What it is made of


def test_ndcg_equals_ir_measures():
    rng = np.random.default_rng(1)
    judged = [{int(d): int(rng.integers(-1, 4)) for d in rng.choice(40, 14, replace=False)} for _ in range(30)]
    for grades in judged:
        grades[int(rng.integers(40))] = 2
    documents = [rng.choice(40, 12, replace=False).tolist() for _ in judged]
    gains = np.array(
        [[max(0, grades.get(d, 0)) for d in found[:10]] for found, grades in zip(documents, judged, strict=True)]
    )
    qrels = {str(row): {str(d): grade for d, grade in grades.items()} for row, grades in enumerate(judged)}
    named = {str(row): list(map(str, found)) for row, found in enumerate(documents)}
    np.testing.assert_allclose(
        ndcg(gains, ideal_gains(judged)), list(per_query(["nDCG@10"], qrels, named)["nDCG@10"].values())
    )


def test_union_by_hand():
    first, second = ranking(([5, 2, NOTHING], [3, 2, 0])), ranking(([2, 7], [9, 8]))
    assert union([first, second]).tolist() == [[2, 5, 7]]
    first, second = ranking(([5, 2], [3, 2]), ([1, NOTHING], [3, 0])), ranking(([2], [9]), ([NOTHING], [0]))
    assert union([first, second]).tolist() == [[2, 5], [NOTHING, 1]]


def test_scores_are_standardised_over_the_best_hundred():
    scores = np.concatenate([np.arange(150.0), [1e6]])[None]
    documents = np.array([[*range(150), NOTHING]])
    found = z_scores(scores, documents)[0, :150]
    assert found[50:].mean() == pytest.approx(0, abs=1e-6)
    assert found[50:].std() == pytest.approx(1)
    assert found[149] - found[148] == pytest.approx(1 / np.arange(100).std(), rel=1e-4)


def test_equal_scores_and_no_documents_at_all_standardise_to_zero():
    assert z_scores(np.full((1, 3), 7.0), np.array([[1, 2, 3]])).tolist() == [[0, 0, 0]]
    assert z_scores(np.zeros((1, 2)), np.full((1, 2), NOTHING)).tolist() == [[0, 0]]


def test_documents_are_ordered_by_score_ties_by_row_and_padding_last():
    documents = np.array([[NOTHING, 9, 4, 2]])
    found = ordered(documents, np.array([[99.0, -1.0, 3.0, -1.0]]), 5)
    assert found.documents.tolist() == [[4, 2, 9, NOTHING, NOTHING]]
    assert found.scores.tolist() == [[3, -1, -1, 0, 0]]


@pytest.mark.parametrize("analyzer", Analyzer("english").variants())
def test_bm25_scores_any_document_as_its_search_does(analyzer):
    rng = np.random.default_rng(2)
    words = ["disk", "disks", "queue", "queues", "lag", "the", "of", "probe", "probing"]
    documents = [" ".join(rng.choice(words, size=rng.integers(1, 12))) for _ in range(50)]
    queries = ["disk the disk", "probing of queues", "zebra", ""]
    bm25 = Bm25(documents, analyzer)
    everything = np.broadcast_to(np.append(np.arange(50), NOTHING), (4, 51)).astype(np.int32)
    score = bm25.scorer(queries, everything)
    for k1, b in [(1.2, 0.75), (0.4, 0.1), (2.0, 0.95)]:
        found = bm25.search(queries, 50, k1, b)
        expected = np.zeros((4, 51), dtype=np.float32)
        for row, (listed, scores) in enumerate(zip(found.documents, found.scores, strict=True)):
            expected[row, listed[listed != NOTHING]] = scores[listed != NOTHING]
        np.testing.assert_allclose(score(k1, b), expected, rtol=1e-5)


@pytest.mark.parametrize(("language", "number"), [("english", 4), ("finnish", 2), ("none", 1), ("japanese", 1)])
def test_the_variants_of_an_analyzer_are_distinct(language, number):
    variants = Analyzer(language).variants()
    assert len(set(variants)) == len(variants) == number
    assert variants[0] == Analyzer(language)


def test_weighted_fusion_is_the_sum_over_the_whole_corpus(songs, vectors, monkeypatch):
    # 56 documents: every one is among each engine's best hundred.
    from trainer.retriever import engines as module

    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)
    settings = Settings(k1=0.9, b=0.3, drop_stop_words=False, weights={"dense": 0.3, "bm25": 0.7})
    queries = judged_queries(songs)
    engines = Engines(Retriever(), songs, queries, vectors)
    found = engines.fused(engines.lists(settings), settings)

    bm25 = Bm25(songs.documents["passage"][:], Analyzer("english", drop_stop_words=False))
    everything = np.broadcast_to(np.arange(56, dtype=np.int32), (len(queries), 56))
    words = bm25.scorer(songs.query_texts(queries), everything)(0.9, 0.3)
    cosines = vectors[0].rows(np.arange(len(queries))) @ vectors[1].rows(np.arange(56)).T
    parts = [(scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True) for scores in (cosines, words)]
    expected = 0.3 * parts[0] + 0.7 * parts[1]
    np.testing.assert_allclose(found.scores[:, :56], -np.sort(-expected, axis=1), atol=1e-3)
    np.testing.assert_allclose(
        np.take_along_axis(expected, found.documents[:, :56], axis=1), found.scores[:, :56], atol=1e-3
    )


def test_reciprocal_rank_fusion_of_a_pool_equals_that_of_its_lists(songs, vectors):
    engines = Engines(Retriever(), songs, judged_queries(songs), vectors)
    lists = engines.lists(Settings())
    pool = engines.pool(lists, Settings(), np.arange(len(engines.queries)))
    found = ordered(pool.documents, pool.fused(Settings()), 56)
    expected = reciprocal_rank_fusion(list(lists.values()), 56)
    np.testing.assert_array_equal(found.documents, expected.documents)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_documents_missing_from_a_run_get_its_lowest_score():
    pool = Pool(np.array([[1, 2, 3]]), {"run": np.array([[1.0, 0.0, -1.0]])}, None)
    assert pool.fused(Settings(weights={"run": 1.0})).tolist() == [[1, 0, -1]]


@pytest.mark.parametrize("keys", [{}, {"fusion": "rrf"}, {"tune": "off"}, {"kind": "bm25"}, {"kind": "run"}])
def test_no_engine_lists_the_query_itself_and_each_lists_as_many_as_before(songs, vectors, tmp_path, monkeypatch, keys):
    monkeypatch.setattr("trainer.retriever.engines.MINING_DEPTH", 5)
    if keys == {"kind": "run"}:
        keys = {"kind": "run", "fuse_run": True, "run": own_run(tmp_path / "own.trec", songs, 0)}
    section = Retriever(**{"tune": "on", "depth": 5} | keys)
    given = None if section.kind == "bm25" else vectors
    before = Engines(section, songs, judged_queries(songs), given).lists(Settings(drop_stop_words=False))
    queries = judged_queries(songs)
    best = next(iter(before.values())).documents[:, :2]
    own = {query: rows.tolist() for query, rows in zip(queries[::2], best[::2], strict=True)}
    collection = replace(songs, self_documents=own)
    places = np.arange(0, len(queries), 3)
    engines = Engines(section, collection, queries, given)
    for some, asked in ((slice(None), range(len(queries))), (places, places)):
        for name, after in engines.lists(Settings(drop_stop_words=False), some).items():
            for row, place in zip(after.documents.tolist(), asked, strict=True):
                hidden = own.get(queries[place], [])
                expected = [one for one in before[name].documents[place].tolist() if one not in hidden]
                assert (len(row), row[: len(expected)]) == (5, expected)
                assert not set(hidden) & set(row)
                assert NOTHING not in row
    found = retrieve_splits(section, collection, given, tmp_path)
    kept = [*found.values(), *(Candidates.load(path) for path in tmp_path.glob("default-*.npz"))]
    for candidates in kept:
        for place, query in enumerate(candidates.queries.tolist()):
            assert not set(own.get(query, [])) & set(candidates.found(place))


def test_only_positive_grades_count_for_tuning(songs, tmp_path):
    # Grade 1 of another document in every qrel: where 2 is asked for, it must not count.
    noisy = {
        query: {row: 2 for row in grades} | {(next(iter(grades)) + 1) % 56: 1}
        for query, grades in songs.qrels["train"].items()
    }
    plain = {query: {row: 2 for row in grades} for query, grades in songs.qrels["train"].items()}
    found = []
    for number, judged in enumerate((plain, noisy)):
        collection = replace(songs, qrels=dict.fromkeys(SPLITS, judged), relevant_from=number + 1)
        (tmp_path / str(number)).mkdir()
        section = Retriever(kind="bm25", depth=20)
        retrieve_splits(section, collection, None, tmp_path / str(number))
        found.append(Tuning.load(tmp_path / str(number)))
    assert found[0] == found[1]
    assert found[0].queries == 60


# What it chooses


def test_the_nearest_choice_is_within_the_standard_error():
    noise = np.array([0.1, -0.1] * 10)
    values = np.array([[0.5] * 20, 0.52 + noise, 0.9 + noise])
    # Row 2 is clearly ahead, row 1 is not ahead of row 0 by more than its noise: .1 * sqrt(20 / 19) / sqrt(20) = .023.
    assert nearest_to_default(values, np.array([0, 1, 2])) == 2
    assert nearest_to_default(values[:2], np.array([0, 1])) == 0
    assert nearest_to_default(values[:2], np.array([1, 0])) == 1
    assert nearest_to_default(np.array([[0.5] * 20, 0.53 + noise]), np.array([0, 1])) == 1  # .03 is more than the noise
    assert nearest_to_default(np.array([[0.5] * 20, [0.5] * 20, [0.6] * 20]), np.array([0, 1, 1])) == 2


def test_choices_on_resamples_are_averaged():
    # Half of the queries like a step down and half a step up, equally: each resample leans to one side.
    down, up = np.array([1.0, 0.0] * 200), np.array([0.0, 1.0] * 200)
    places = np.array([[0.0], [-3.0], [3.0]])
    assert choose(np.array([0.5 - 0 * down, down, up]), places) == 0
    # A setting that is better for every query is chosen in every resample; with equal values the default is.
    assert choose(np.array([down, down, down + 0.1]), places) == 2
    assert choose(np.array([down, down, down]), places) == 0


def test_a_rounding_of_one_query_moves_the_choice_by_a_step_at_most():
    generator = np.random.default_rng(5)
    places = np.arange(11.0)[:, None]
    for _ in range(20):
        difficulty = generator.uniform(0, 1, 100)
        values = np.clip(difficulty - 0.0005 * (places - 6) ** 2 + generator.normal(0, 0.08, (11, 100)), 0, 1)
        moved = values.copy()
        moved[generator.integers(11), generator.integers(100)] += 0.01
        assert abs(choose(values, places) - choose(moved, places)) <= 1


def test_cross_validation_holds_each_query_out_of_its_choice():
    # Each setting is good for one query alone, so what the other queries choose is good for nobody.
    values = np.eye(10)
    assert cross_validate(values, np.zeros((10, 1))).sum() < values.max(axis=0).sum() / 2
    same = np.array([[0.2] * 10, [0.7] * 10])
    np.testing.assert_allclose(cross_validate(same, np.array([[0], [1]])), 0.7)


@pytest.mark.parametrize("kind", ["bm25", "hybrid"])
def test_stop_words_are_indexed_where_train_queries_need_them(kind, songs, vectors, tmp_path):
    given = vectors if kind == "hybrid" else None
    found = retrieve_splits(Retriever(kind=kind, depth=20), songs, given, tmp_path)
    tuning = Tuning.load(tmp_path)
    assert tuning.queries == 60
    assert not tuning.settings.drop_stop_words
    assert tuning.cross_validated > 0.9 > 0.5 > tuning.default
    assert tuning.curves["drop_stop_words"]["False"] > tuning.curves["drop_stop_words"]["True"]
    said = tuning.describe("dev .9")
    assert said.startswith("first stage tuned on 60 train queries: BM25 k1 1.2, b ")
    assert "stop words kept" in said
    assert f"train nDCG@10 (cross-validated) {tuning.cross_validated:.4f}, default {tuning.default:.4f}; dev .9" in said
    # In every split the document that was asked for is first, and what the defaults return is kept beside it.
    for split in SPLITS:
        assert [found[split].found(row, 1) for row in range(len(found[split].queries))] == [
            list(songs.qrels[split][query]) for query in found[split].queries.tolist()
        ]
    default = Candidates.load(tmp_path / "default-test.npz")
    assert default.queries.tolist() == found["test"].queries.tolist()
    assert default.documents.shape == found["test"].documents.shape
    assert (default.documents != found["test"].documents).any()
    assert not (tmp_path / "default-train.npz").exists()


def test_new_queries_are_searched_with_the_chosen_settings(songs, tmp_path):
    found = retrieve_splits(Retriever(kind="bm25", depth=20), songs, None, tmp_path)
    rows = songs.answerable("test")
    again = retrieve_unjudged(Retriever(kind="bm25"), songs, rows, None, Tuning.load(tmp_path).settings)
    np.testing.assert_array_equal(again.top(20).documents, found["test"].documents)


def test_nothing_changes_with_tuning_off_or_too_few_train_queries(songs, vectors, tmp_path):
    few = build_collection(Data(path=write(tmp_path / "few", *titles(49))), tmp_path / "data")
    for collection, section, note in (
        (songs, Retriever(tune="off", depth=20), ""),
        (few, Retriever(kind="bm25", depth=20), "first stage not tuned: 49 train queries, and 50 are needed"),
        (songs, Retriever(kind="dense", depth=20), ""),
    ):
        given = None if section.kind == "bm25" else vectors
        found = retrieve_splits(section, collection, given, tmp_path)
        engines = Engines(section, collection, judged_queries(collection), given)
        expected = engines.fused(engines.lists(Settings()), Settings()).documents[:, :20]
        np.testing.assert_array_equal(np.concatenate([one.documents[:, :20] for one in found.values()]), expected)
        assert Tuning.load(tmp_path).describe("dev") == note
        assert not list(tmp_path.glob("default-*"))
    retrieve_splits(Retriever(kind="bm25", depth=20, tune="on"), few, None, tmp_path)
    assert Tuning.load(tmp_path).queries == 49
    nine = build_collection(Data(path=write(tmp_path / "nine", *titles(9))), tmp_path / "data-of-nine")
    retrieve_splits(Retriever(kind="bm25", tune="on"), nine, None, tmp_path)
    assert Tuning.load(tmp_path).describe("") == "first stage not tuned: 9 train queries, and 10 are needed"


def test_dev_queries_that_people_asked_tune_where_train_queries_are_made(songs, tmp_path):
    documents, queries = titles(110)
    swapped = [("dev", *query[1:]) if row < 60 else query for row, query in enumerate(queries)]
    as_dev = build_collection(Data(path=write(tmp_path / "dev", documents, swapped)), tmp_path / "data")
    section = Retriever(kind="bm25")

    def tuned(collection, made=()):
        retrieve_splits(section, replace(collection, made=frozenset(made)), None, tmp_path)
        return Tuning.load(tmp_path)

    train, dev = as_dev.answerable("train"), as_dev.answerable("dev")
    assert (len(train), len(dev)) == (50, 65)
    found = tuned(as_dev, train)
    assert (found.split, found.queries) == ("dev", 65)
    assert found.settings != Settings()
    assert "first stage tuned on 65 dev queries: BM25" in found.describe("")
    assert ": dev nDCG@10 (cross-validated)" in found.describe("")
    assert tuned(as_dev).split == "train"
    assert tuned(as_dev, train[1:]) == found  # one real train query is too few
    few = tuned(songs, songs.answerable("train"))
    assert few.settings == Settings()
    assert few.note == "0 train queries and 5 dev queries that are not made from documents, and 50 are needed"


def test_tuning_without_a_gain_keeps_the_defaults(tmp_path):
    # Every document answers equally well under every setting: there is nothing to choose.
    documents = [f"word{row}" for row in range(60)]
    queries = [(["train", "dev", "test"][row // 50 if row < 55 else 2], f"word{row}", {row: 1}) for row in range(60)]
    collection = build_collection(Data(path=write(tmp_path / "set", documents, queries)), tmp_path / "data")
    retrieve_splits(Retriever(kind="bm25"), collection, None, tmp_path)
    tuning = Tuning.load(tmp_path)
    assert tuning.settings == Settings()
    assert tuning.describe("dev 1") == (
        "first stage not tuned: cross-validation shows no gain over the default: "
        "train nDCG@10 (cross-validated) 1.0000, default 1.0000; dev 1"
    )
    assert not list(tmp_path.glob("default-*"))


@pytest.mark.parametrize("documents", [["zebra"], ["the", "?"], ["disk", *["zebra"] * 300]])
def test_train_queries_that_share_no_word_with_any_document_tune_nothing(documents, tmp_path):
    queries = [("train", "queue", {0: 1})] * 12 + [("dev", "queue", {0: 1}), ("test", "disk", {0: 1})]
    collection = build_collection(Data(path=write(tmp_path / "set", documents, queries)), tmp_path / "data")
    found = retrieve_splits(Retriever(kind="bm25", tune="on", language="english"), collection, None, tmp_path)
    assert Tuning.load(tmp_path).settings == Settings()
    assert found["dev"].found(0) == []
    assert found["test"].found(0) == ([0] if documents[0] == "disk" else [])


# The user's own run


def own_run(path, songs, offset):
    """A run of ten documents a query whose second one, plus `offset`, is relevant."""
    lines = []
    for split in SPLITS:
        for query in songs.answerable(split):
            right = next(iter(songs.qrels[split][query]))
            rows = dict.fromkeys([(right + 1) % 56, (right + offset) % 56, *range(20)])
            lines += [
                f"{songs.query_ids[query]} Q0 {songs.document_ids[row]} {rank} {1 / rank} own\n"
                for rank, row in enumerate(list(rows)[:10], start=1)
            ]
    path.write_text("".join(lines))
    return path


def test_a_run_is_fused_with_our_engines_if_asked(songs, vectors, tmp_path):
    run = own_run(tmp_path / "own.trec", songs, 0)
    alone = retrieve_splits(Retriever(kind="run", run=run, depth=20), songs, None, tmp_path)
    assert not list(tmp_path.glob("default-*"))
    section = Retriever(kind="run", run=run, fuse_run=True, depth=20)
    fused = retrieve_splits(section, songs, vectors, tmp_path)
    tuning = Tuning.load(tmp_path)
    assert set(tuning.settings.weights or {}) == {"run", "dense", "bm25"}
    assert tuning.cross_validated > tuning.default
    assert "weights the run" in tuning.describe("")
    assert fused["test"].engines.tolist() == ["run", "dense", "bm25"]
    default = Candidates.load(tmp_path / "default-test.npz")
    np.testing.assert_array_equal(default.documents, alone["test"].documents)  # the run as it is


def test_a_run_is_fused_by_rank_without_tuning_and_stays_alone_where_fusion_does_not_help(songs, vectors, tmp_path):
    run = own_run(tmp_path / "own.trec", songs, 0)
    section = Retriever(kind="run", run=run, fuse_run=True, depth=20, tune="off")
    found = retrieve_splits(section, songs, vectors, tmp_path)
    assert found["test"].documents[0].tolist() != Candidates.load(tmp_path / "default-test.npz").documents[0].tolist()
    perfect = own_run(tmp_path / "perfect.trec", songs, 0)
    lines = [line.split() for line in perfect.read_text().splitlines()]
    perfect.write_text(
        "".join(" ".join([*words[:4], "9" if words[3] == "2" else words[4], "own"]) + "\n" for words in lines)
    )
    found = retrieve_splits(
        Retriever(kind="run", run=perfect, fuse_run=True, depth=20), songs, vectors, tmp_path / "alone"
    )
    assert Tuning.load(tmp_path / "alone").settings.weights == {"run": 1.0}
    assert found["test"].found(0)[0] == next(iter(songs.qrels["test"][songs.answerable("test")[0]]))
    assert len(found["test"].found(0)) == 10


@pytest.mark.parametrize(("written", "tune"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'off'", "off")])
def test_on_and_off_are_read_as_words_not_as_booleans(written, tune, tmp_path):
    (tmp_path / "r.yaml").write_text(f"{{name: r, data: {{path: {tmp_path}}}, retriever: {{tune: {written}}}}}\n")
    assert load_recipe(tmp_path / "r.yaml").retriever.tune == tune
    assert load_recipe(tmp_path / "r.yaml", [f"retriever.tune={written}"]).retriever.tune == tune


def test_fuse_run_needs_a_run():
    with pytest.raises(ValueError, match="there is no run to fuse with kind: hybrid"):
        Retriever(fuse_run=True)


# In a run of the recipe


def test_the_chosen_settings_are_reported_and_saved(tiny, tmp_path, capsys):
    folder = write(tmp_path / "songs", *titles(60))
    recipe = tmp_path / "songs.yaml"
    recipe.write_text(
        f"{{name: songs, data: {{path: {folder}}}, retriever: {{kind: bm25, depth: 20, tune: auto}}, "
        f"reranker: {{model: {tiny['bert']}}}}}\n"
    )
    run(recipe, tmp_path / "runs", until="retrieve")
    opened = open_run(load_recipe(recipe), tmp_path / "runs")
    out = " ".join(capsys.readouterr().out.split())
    assert "first stage tuned on 60 train queries: BM25 k1 1.2, b 0.75, stop words kept: train nDCG@10" in out
    assert "dev nDCG@10 1.0000, default 0." in out
    before, after = opened.default_candidates("test"), opened.candidates("test")
    assert before is not None
    assert (before.documents != after.documents).any()
    off = open_run(load_recipe(recipe, ["retriever.tune=off"]), tmp_path / "runs")
    assert off.records["data"].done is not None
    assert off.records["retrieve"].done is None
