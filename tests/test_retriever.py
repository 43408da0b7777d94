"""The first stage: each engine against an oracle, their fusion by hand, and the user's own run file."""

import resource
from dataclasses import fields
from math import log
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from sentence_transformers import SentenceTransformer

from trainer.data import SPLITS, build_collection
from trainer.data.languages import detect_language
from trainer.errors import DataError
from trainer.recipe import Data, Retriever
from trainer.retriever import (
    NOTHING,
    BiEncoder,
    Candidates,
    Embeddings,
    RankedLists,
    Shards,
    bf16_search,
    dense,
    embeddings,
    retrieve_splits,
    shards,
)
from trainer.retriever.bf16_search import search_in_bf16
from trainer.retriever.bm25 import Analyzer, Bm25
from trainer.retriever.candidates import as_candidates
from trainer.retriever.dense import choose_index, search_dense, search_on_device
from trainer.retriever.fusion import reciprocal_rank_fusion
from trainer.retriever.trec_run import read_run


@pytest.fixture
def collection(beir, tmp_path):
    return build_collection(Data(path=beir), tmp_path / "data")


@pytest.fixture
def bi_encoder(tiny, tmp_path):
    """A tiny bi-encoder with mean pooling, as sentence-transformers keeps one."""
    folder = tmp_path / "bi-encoder"
    SentenceTransformer(str(tiny["bert"]), device="cpu").save(str(folder))
    return folder


def ranking(*lists):
    """A ranking of (documents, scores) for each query."""
    documents, scores = zip(*lists, strict=True)
    return RankedLists(np.array(documents, dtype=np.int32), np.array(scores, dtype=np.float32))


@pytest.fixture
def kept(tmp_path):
    """`kept(vectors, size)` keeps vectors as shards of `size` texts and opens them."""

    def keep(vectors, size=64):
        paths = []
        for number, start in enumerate(range(0, len(vectors), size)):
            paths.append(tmp_path / f"{len(list(tmp_path.glob('*.npy')))}-{number}.npy")
            np.save(paths[-1], vectors[start : start + size].astype(np.float16))
        return Embeddings(paths)

    return keep


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def small(rng, *shape):
    """Numbers that float16 holds exactly, so that what comes back is what went in."""
    return rng.integers(-64, 65, size=shape).astype(np.float32) / 64


# Dense


@pytest.mark.parametrize("block", [70, 128, 4096])
@pytest.mark.parametrize("depth", [1, 10, 100, 150, 400])
def test_exact_search_equals_brute_force(depth, block, kept, monkeypatch):
    monkeypatch.setattr(Embeddings.blocks, "__defaults__", (block,))
    rng = np.random.default_rng(depth)
    queries, documents = small(rng, 25, 16), small(rng, 300, 16)
    scores = queries @ documents.T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :depth]

    for found in (
        search_dense(kept(queries), kept(documents), depth),
        search_on_device(queries, kept(documents), depth, "cpu"),
    ):
        np.testing.assert_allclose(found.scores, np.take_along_axis(scores, expected, axis=1), rtol=1e-6)
        np.testing.assert_array_equal(found.documents, expected)


@pytest.mark.parametrize("depth", [1, 3, 10, 120, 200])
@pytest.mark.parametrize("block", [40, 4096])
def test_exact_search_puts_and_cuts_equal_scores_in_order_of_rows(depth, block, kept, monkeypatch):
    monkeypatch.setattr(Embeddings.blocks, "__defaults__", (block,))
    rng = np.random.default_rng(depth)
    queries, documents = (rng.integers(-1, 2, size=(count, 3)).astype(np.float32) for count in (30, 200))
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :depth]
    np.testing.assert_array_equal(search_dense(kept(queries), kept(documents), depth).documents, expected)
    found = search_on_device(queries, kept(documents), depth, "cpu", queries_at_once=7)
    np.testing.assert_array_equal(found.documents, expected)


def in_bf16(queries, documents, depth):
    return search_in_bf16(queries, documents, documents.blocks(), min(depth, len(documents)))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0])
@pytest.mark.parametrize(("spread", "shift"), [(1.0, 0.0), (0.01, 0.3), (0.001, 0.3), (0.01, -0.3)])
def test_search_in_bf16_finds_the_documents_of_float32(spread, shift, scale, kept, monkeypatch):
    # With a small spread, most scores are nearer to each other than bf16 can tell.
    monkeypatch.setattr(Embeddings.blocks, "__defaults__", (128,))
    monkeypatch.setattr(bf16_search, "QUERIES_AT_ONCE", 8)
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(20, 24)).astype(np.float32)
    vectors = (scale * (shift + spread * rng.normal(size=(900, 24)))).astype(np.float16).astype(np.float32)
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    for depth in (1, 10, 60):
        found = in_bf16(queries, kept(vectors), depth)
        best = -np.sort(-scores, axis=1)[:, :depth]
        near = 1e-6 * np.abs(scores).max()
        np.testing.assert_allclose(np.take_along_axis(scores, found.documents, axis=1), best, atol=near)
        np.testing.assert_allclose(found.scores, best, atol=near)
        assert all(len(set(row)) == depth for row in found.documents.tolist())


@pytest.mark.parametrize("waiting", [1, 64])
def test_search_in_bf16_puts_equal_scores_in_order_of_rows(waiting, kept, monkeypatch):
    monkeypatch.setattr(Embeddings.blocks, "__defaults__", (50,))
    monkeypatch.setattr(bf16_search, "WAITING", waiting)
    rng = np.random.default_rng(1)
    for levels in (1, 2, 9):  # with one level all documents are equal
        queries = rng.integers(1, 2 + levels, size=(30, 3)).astype(np.float32)
        documents = rng.integers(1, 1 + levels, size=(400, 3)).astype(np.float32)
        for depth in (1, 7, 120):
            expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :depth]
            np.testing.assert_array_equal(in_bf16(queries, kept(documents), depth).documents, expected)


def test_search_in_bf16_computes_few_products_exactly(kept, monkeypatch):
    monkeypatch.setattr(Embeddings.blocks, "__defaults__", (500,))
    rng = np.random.default_rng(2)
    queries, documents = (rng.normal(size=(count, 64)) for count in (40, 5000))
    vectors = kept(documents / np.linalg.norm(documents, axis=1, keepdims=True))
    read = []
    monkeypatch.setattr(vectors, "rows", lambda rows, read_rows=vectors.rows: read.append(len(rows)) or read_rows(rows))
    in_bf16(queries.astype(np.float32), vectors, 10)
    assert sum(read) - 5000 < 40 * 60  # beside the blocks: of 5,000 products of a query, fewer than 60


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_used_where_the_cpu_has_it_and_the_work_is_worth_it(native, kept, monkeypatch):
    monkeypatch.setattr(dense, "has_native_bf16", lambda: native)
    monkeypatch.setattr(dense, "BF16_WORK", 1000)
    used = []
    monkeypatch.setattr(dense, "search_in_bf16", lambda *given: used.append(given) or search_in_bf16(*given))
    rng = np.random.default_rng(2)
    queries, documents = kept(small(rng, 10, 8)), kept(small(rng, 50, 8))
    assert search_dense(queries, documents, 5).documents.shape == (10, 5)
    assert search_dense(kept(small(rng, 1, 8)), documents, 5).documents.shape == (1, 5)
    assert len(used) == native


def test_exact_search_on_a_device_holds_the_scores_of_few_queries_at_once(kept, monkeypatch):
    # What a GPU would have to hold at once is the largest product; it must not grow with the number of queries.
    import torch

    products = []
    matmul = torch.Tensor.matmul

    def watched(*pair):
        products.append(matmul(*pair))
        return products[-1]

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    rng = np.random.default_rng(0)
    found = search_on_device(small(rng, 50, 8), kept(small(rng, 300, 8)), 5, "cpu", queries_at_once=16)
    assert found.documents.shape == (50, 5)
    assert [tuple(product.shape) for product in products] == [(16, 300), (16, 300), (16, 300), (2, 300)]


def test_scores_of_zero_and_minus_zero_are_equal(kept):
    queries, documents = np.array([[-1.0]], dtype=np.float32), np.zeros((3, 1), dtype=np.float32)
    documents[1] = -0.0  # its product with the query is 0, that of the others -0
    for found in (
        search_dense(kept(queries), kept(documents), 2),
        search_on_device(queries, kept(documents), 2, "cpu"),
    ):
        assert found.documents.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("documents", "device", "index"),
    [(10**6, "cpu", "flat"), (10**8, "cpu", "ivf"), (10**8, "cuda", "flat"), (10**11, "cuda", "ivf")],
)
def test_auto_searches_exactly_while_the_device_needs_no_more_than_an_hour(documents, device, index):
    assert choose_index(10_000, documents, 384, device) == index
    assert choose_index(1, 1, 384, device) == "flat"


def test_approximate_search_finds_nearly_all_that_exact_search_finds(kept):
    rng = np.random.default_rng(5)
    queries, documents = rng.normal(size=(20, 16)), rng.normal(size=(2000, 16))
    exact = search_dense(kept(queries), kept(documents), 10)
    found = search_dense(kept(queries), kept(documents), 10, "ivf")
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(exact.documents, found.documents, strict=True)]
    assert np.mean(shared) > 0.9
    assert np.all(np.diff(found.scores, axis=1) <= 0)


# Embeddings


@pytest.fixture
def encode(bi_encoder, tmp_path, accelerator, monkeypatch):
    """`encode(texts)` embeds texts in shards of ten: (vectors, number of shards that had to be encoded)."""
    monkeypatch.setattr(embeddings, "SHARD", 10)

    def encode(texts, model=bi_encoder, role="document", **reading):
        made = Shards(
            BiEncoder(model, **reading), role, lambda start, end: texts[start:end], len(texts), tmp_path / "e"
        )
        made.encode(accelerator)
        return made.open().rows(np.arange(len(texts))), len(made.missing)

    return encode


def test_embeddings_are_those_of_the_bi_encoder_of_unit_length(bi_encoder, collection, encode):
    texts = collection.documents["passage"][:]
    model = SentenceTransformer(str(bi_encoder), device="cpu")

    vectors, encoded = encode(texts)

    assert encoded == 4
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.encode(texts, normalize_embeddings=True), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)


def test_a_shard_that_is_there_is_not_encoded_again(collection, encode, tmp_path):
    texts = collection.documents["passage"][:]
    vectors, _ = encode(texts)
    again, encoded = encode(texts)
    assert encoded == 0
    np.testing.assert_array_equal(again, vectors)

    next(tmp_path.glob("e/*/*.npy")).unlink()
    again, encoded = encode(texts)
    assert encoded == 1
    np.testing.assert_array_equal(again, vectors)


def test_a_changed_document_embeds_one_shard_anew(collection, encode):
    texts = collection.documents["passage"][:]
    vectors, _ = encode(texts)
    changed, encoded = encode([*texts[:13], "another disk", *texts[14:]])
    assert encoded == 1
    different = np.flatnonzero((changed != vectors).any(axis=1)).tolist()
    assert different == [13]
    assert encode([*texts, "one more"])[1] == 1
    assert encode(texts)[1] == 0  # and the old ones are still there


def test_shards_that_hold_the_vectors_of_other_texts_are_encoded_again(encode, tmp_path, capsys):
    texts = [f"why does {letter} happen" for letter in "abcdefgh"] * 3
    texts = [f"{text} {place}" for place, text in enumerate(texts)]
    before, _ = encode(texts)
    one, other, *_ = sorted(tmp_path.glob("e/*/*.npy"))
    held = one.read_bytes(), other.read_bytes()
    one.write_bytes(held[1])
    other.write_bytes(held[0])
    after, encoded = encode(texts)
    assert encoded == 2
    assert "damaged embeddings; they are computed again" in capsys.readouterr().out
    np.testing.assert_array_equal(after, before)


def test_another_model_in_a_folder_length_prompt_or_role_embeds_everything_anew(collection, encode, tiny, tmp_path):
    texts = collection.documents["passage"][:]
    vectors, _ = encode(texts)
    other = tmp_path / "other"
    SentenceTransformer(str(tiny["roberta"]), device="cpu").save(str(other))
    swapped, encoded = encode(texts, model=other)
    assert encoded == 4
    assert np.abs(swapped - vectors).max() > 0.01
    assert encode(texts, max_length=8)[1] == 4
    assert encode(texts, role="query")[1] == 4
    prompted, encoded = encode(texts, document_prompt="queue queue ")
    assert encoded == 4
    assert np.abs(prompted - vectors).max() > 0.01
    assert encode(texts, query_prompt="queue ")[1] == 0  # which documents are not read with


def test_rows_and_blocks_are_read_across_shard_boundaries(kept):
    vectors = small(np.random.default_rng(1), 50, 8)
    found = kept(vectors, size=7)
    assert (len(found), found.dimensions) == (50, 8)
    rows = np.array([49, 0, 7, 6, 7])
    np.testing.assert_array_equal(found.rows(rows), vectors[rows])
    starts, blocks = zip(*found.blocks(12), strict=True)
    assert starts == (0, 12, 24, 36, 48)
    np.testing.assert_array_equal(np.concatenate(blocks), vectors)


def test_a_corpus_may_have_more_shards_than_a_process_may_open_files(tmp_path):
    vectors = small(np.random.default_rng(2), 300, 4)
    paths = []
    for row, vector in enumerate(vectors):
        paths.append(tmp_path / f"{row}.npy")
        np.save(paths[-1], vector[None].astype(np.float16))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 100, limits[1]))
    try:
        found = Embeddings(paths)
        np.testing.assert_array_equal(found.rows(np.arange(300)), vectors)
        np.testing.assert_array_equal(found.rows(np.arange(300)[::-7]), vectors[::-7])
        assert search_dense(found, found, 1).documents.shape == (300, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_bi_encoder_reads_max_length_tokens_and_no_more(encode):
    # Eight tokens: [CLS], six words, [SEP].
    texts = ["disk memory queue lock route cert" + rest for rest in ("", " probe", " deploy log look")]
    short, _ = encode(texts, max_length=8)
    long, _ = encode(texts, max_length=512)
    np.testing.assert_allclose(short, np.tile(short[:1], (3, 1)), atol=1e-3)
    assert np.abs(long[1] - long[0]).max() > 1e-3


# BM25


def search_bm25(queries, documents, depth, language):
    return Bm25(documents, Analyzer(language)).search(queries, depth)


def test_bm25_finds_the_exact_match_first(collection):
    passages = collection.documents["passage"][:]
    found = search_bm25(passages, passages, 10, "english")
    assert found.documents[:, 0].tolist() == list(range(len(passages)))
    assert np.all(np.diff(found.scores, axis=1) <= 0)


def test_bm25_score_by_hand():
    # Lucene's: ln(1 + (3 - 1 + 0.5) / (1 + 0.5)) * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * length / mean length));
    # `queue` stands once, in one of three documents; its document has 2 of 7/3 words on average.
    found = search_bm25(["queue"], ["disk full", "disk slow node", "queue lag"], 3, "english")
    assert found.documents.tolist() == [[2, NOTHING, NOTHING]]
    assert found.scores[0, 0] == pytest.approx(log(1 + 2.5 / 1.5) / (1 + 1.2 * (0.25 + 0.75 * 2 / (7 / 3))))


@pytest.mark.parametrize("query", ["zebra", "the of and", "", "??"])
def test_bm25_returns_nothing_where_no_word_is_shared(query):
    found = search_bm25([query, "disk"], ["disk full", "the of and", "queue lag"], 3, "english")
    assert found.documents.tolist() == [[NOTHING] * 3, [0, NOTHING, NOTHING]]
    assert found.scores[0].tolist() == [0, 0, 0]


def test_bm25_puts_and_cuts_equal_scores_in_order_of_rows():
    documents = ["queue lag", *["disk full"] * 30, "disk disk"]
    found = search_bm25(["disk"], documents, 6, "english")
    assert found.documents.tolist() == [[31, 1, 2, 3, 4, 5]]


def test_bm25_is_no_deeper_than_the_collection():
    assert search_bm25(["disk"], ["disk full", "disk slow"], 50, "english").documents.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("language", "query", "found"),
    [
        ("english", "killing pods", [0]),  # kill, pod
        ("german", "haus", [1]),  # häuser and haus share their stem
        ("german", "killing", [NOTHING]),  # English endings stay
        ("german", "die", [NOTHING]),  # a stop word
        ("none", "pods", [NOTHING]),  # not stemmed: pod is another word
        ("none", "the", [0]),  # no stop words
        ("english", "the", [NOTHING]),
    ],
)
def test_bm25_stems_and_drops_stop_words_by_language(language, query, found):
    documents = ["the kernel kills the pod", "die häuser", "queue lag"]
    assert search_bm25([query], documents, 1, language).documents.tolist() == [found]


def test_a_language_with_a_stemmer_but_no_stop_words_is_analyzed():
    assert search_bm25(["talot"], ["talo", "koira"], 1, "finnish").documents.tolist() == [[0]]


@pytest.mark.parametrize(("language", "near"), [("germna", "german"), ("English", "english"), ("nonne", "none")])
def test_an_unknown_language_is_a_fault_of_the_recipe(language, near):
    with pytest.raises(ValueError, match=rf"no stemmer for '{language}'; did you mean {near}\?"):
        Retriever(language=language)


@pytest.mark.parametrize(
    ("query", "found"),
    [("再起動", 0), ("ポッドが落ちる", 0), ("証明書", 1), ("tls", 1), ("盤", 2), ("海", NOTHING)],
)
def test_languages_without_spaces_are_searched_by_character_bigrams(query, found):
    documents = ["ポッドが落ちて再起動される", "TLS証明書の期限が切れた", "基盤 盤"]
    assert search_bm25([query], documents, 1, "japanese").documents.tolist() == [[found]]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("why is the pod killed when it is not over the limit", "english"),
        ("warum wird der Pod beendet, wenn das Limit nicht erreicht ist", "german"),
        ("pourquoi le pod est tué quand il est sous la limite", "french"),
        ("なぜポッドが再起動されるのか", "japanese"),
        ("为什么容器会被重启", "chinese"),
        ("kubectl describe pod logs previous container", "none"),
        ("", "none"),
    ],
)
def test_the_language_is_detected_from_the_texts(text, language):
    assert detect_language([text]) == language


def test_bm25_equals_bm25s_for_any_block_size(monkeypatch):
    import bm25s

    from trainer.retriever import bm25

    rng = np.random.default_rng(4)
    words = [f"{letter}{number}" for letter in "abcdefgh" for number in range(10)]
    documents = [" ".join(rng.choice(words, size=rng.integers(1, 30))) for _ in range(300)]
    queries = [" ".join(rng.choice(words, size=rng.integers(1, 6))) for _ in range(40)]
    index = bm25s.BM25(method="lucene", k1=bm25.K1, b=bm25.B)
    index.index([document.split() for document in documents], show_progress=False)
    expected = np.stack([index.get_scores(query.split()) for query in queries])
    for postings in (1, 500, 10**6):
        monkeypatch.setattr(bm25, "POSTINGS_AT_ONCE", postings)
        found = search_bm25(queries, documents, 25, "none")
        scores = np.take_along_axis(expected, np.maximum(found.documents, 0), axis=1)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
        np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1)[:, :25], rtol=1e-5)


@pytest.mark.parametrize("documents", [[""], ["", "?", "the"], ["disk"]])
def test_bm25_searches_empty_and_single_document_collections(documents):
    found = search_bm25(["disk", ""], documents, 5, "english")
    here = 0 if documents == ["disk"] else NOTHING
    assert found.documents.tolist() == [[here, *[NOTHING] * (len(documents) - 1)], [NOTHING] * len(documents)]


# Fusion


def test_fusion_by_hand():
    # 1 / (60 + rank), summed:  document 1: 1/61 + 1/62;  3: 1/63 + 1/61;  2: 1/62
    first, second = ranking(([1, 2, 3], [9, 8, 7])), ranking(([3, 1, NOTHING], [0.3, 0.2, 0]))
    fused = reciprocal_rank_fusion([first, second], 5)
    assert fused.documents.tolist() == [[1, 3, 2, NOTHING, NOTHING]]
    assert fused.scores[0].tolist() == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, 0, 0])
    assert reciprocal_rank_fusion([first, second], 2).documents.tolist() == [[1, 3]]


def test_fusion_keeps_queries_apart_and_ties_in_order_of_rows():
    first = ranking(([7, 5], [1, 0.5]), ([0, NOTHING], [1, 0]))
    second = ranking(([5, 7], [1, 0.5]), ([NOTHING, NOTHING], [0, 0]))
    assert reciprocal_rank_fusion([first, second], 2).documents.tolist() == [[5, 7], [0, NOTHING]]


def test_fusion_of_empty_lists():
    nothing = ranking(([NOTHING, NOTHING], [0, 0]), ([NOTHING, NOTHING], [0, 0]))
    assert reciprocal_rank_fusion([nothing, nothing], 3).documents.tolist() == [[NOTHING] * 3] * 2
    one = ranking(([0], [0.5]), ([NOTHING], [0]))
    assert reciprocal_rank_fusion([nothing, one], 2).documents.tolist() == [[0, NOTHING], [NOTHING, NOTHING]]


# The user's own run


@pytest.fixture
def read(tmp_path):
    """Reads a run of the given lines for two queries and four documents."""

    def read_lines(*lines, depth=3, wanted=(0, 1)):
        path = tmp_path / "own.trec"
        path.write_text("".join(f"{line}\n" for line in lines))
        return read_run(path, {"q0": 0, "q1": 1}, {"d0": 0, "d1": 1, "d2": 2, "d3": 3}, wanted, depth)

    return read_lines


def test_a_run_is_sorted_by_score_whatever_the_order_of_its_lines(read):
    found = read("q1 Q0 d3 1 0.5 own", "q0 Q0 d1 2 1.5 own", "q0 Q0 d2 1 2.5 own", "q0\tQ0\td0\t3\t-1e1\town")
    assert found.documents.tolist() == [[2, 1, 0], [3, NOTHING, NOTHING]]
    assert found.scores.tolist() == [[2.5, 1.5, -10], [0.5, 0, 0]]


def test_a_run_keeps_equal_scores_in_order_of_lines_and_is_cut_at_depth(read):
    lines = ["q1 Q0 d3 1 1 own", "q0 Q0 d3 1 1 own", "q0 Q0 d0 2 1 own", "q0 Q0 d1 3 2 own"]
    assert read(*lines, depth=2).documents.tolist() == [[1, 3], [3, NOTHING]]


def test_a_run_is_read_for_the_wanted_queries_in_their_order(read):
    lines = ["q0 Q0 d0 1 1 own", "q1 Q0 d1 1 1 own"]
    assert read(*lines, wanted=[1], depth=1).documents.tolist() == [[1]]
    assert read(*lines, wanted=[1, 0], depth=1).documents.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0 d1 1 2.0", "expected `query Q0 document rank score tag`, got 'q0 d1 1 2.0'"),
        ("q0 Q0 d9 1 2.0 own", "document 'd9' is not in the corpus"),
        ("q9 Q0 d1 1 2.0 own", "query 'q9' is not among the queries"),
        ("q0 Q0 d1 1 high own", "the score is a number, got 'high'"),
        ("q0 Q0 d1 1 nan own", "the score is a number, got 'nan'"),
        ("q0 Q0 d1 1 inf own", "the score is a number of at most 1e\\+30 in size, got 'inf'"),
        ("q0 Q0 d1 1 1e308 own", "the score is a number of at most 1e\\+30 in size, got '1e308'"),
        ("q0 Q0 d1 1 -1e39 own", "the score is a number of at most 1e\\+30 in size, got '-1e39'"),
        ("q0 Q0 d0 2 2.0 own", "document 'd0' .*line 1"),
    ],
)
def test_a_fault_of_a_run_is_reported_with_its_line(read, line, message):
    with pytest.raises(DataError, match=rf"own\.trec:2: {message}"):
        read("q0 Q0 d0 1 3.0 own", line, "q1 Q0 d0 1 3.0 own")


def test_all_faults_of_a_run_are_reported_at_once(read):
    with pytest.raises(DataError) as caught:
        read("q0 Q0 d9 1 2.0 own", "q0 d1", *["q1 Q0 dx 1 1 own"] * 12)
    text = str(caught.value)
    assert ":1: document 'd9'" in text
    assert ":2: expected" in text
    assert "... and 3 more: missing documents" in text


def test_a_judged_query_without_lines_is_reported(read):
    with pytest.raises(DataError, match=r"own\.trec: 1 judged queries have no line, e\.g\. 'q1'"):
        read("q0 Q0 d0 1 3.0 own")
    with pytest.raises(DataError, match=r"own\.trec: 2 judged queries have no line"):
        read()


def test_an_unreadable_run_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"none\.trec:1: cannot be read to its end: "):
        read_run(tmp_path / "none.trec", {}, {}, [], 1)
    (tmp_path / "latin.trec").write_bytes(b"q0 Q0 caf\xe9 1 1.0 own\n")
    with pytest.raises(DataError, match=r"latin\.trec:1: not UTF-8 \(.*iconv -f CP1252"):
        read_run(tmp_path / "latin.trec", {}, {}, [], 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text.replace(b"\n", b"\n\n \n"),
        lambda text: text.rstrip(b"\n"),
        lambda text: text.replace(b" ", b"\t"),
    ],
    ids=["mark", "CRLF", "CR", "blank lines", "no last end", "tabs"],
)
def test_a_run_is_read_like_every_other_text_file(tmp_path, change):
    path = tmp_path / "own.trec"
    path.write_bytes(change(b"q0 Q0 d1 1 2.0 own\nq0 Q0 d0 2 1.0 own\nq1 Q0 d0 1 1.0 own\n"))
    found = read_run(path, {"q0": 0, "q1": 1}, {"d0": 0, "d1": 1}, [0, 1], 2)
    assert found.documents.tolist() == [[1, 0], [0, NOTHING]]


def test_ids_with_blanks_are_percent_encoded_or_separated_by_tabs_in_a_run(tmp_path):
    path = tmp_path / "own.trec"
    path.write_text("kb%2012 Q0 100%25%20d 1 2 own\nkb 12\tQ0\t50%\t2\t1\town\n")
    found = read_run(path, {"kb 12": 0}, {"100% d": 0, "50%": 1}, [0], 2)
    assert found.documents.tolist() == [[0, 1]]


def test_the_largest_scores_of_a_run_stay_numbers(read):
    found = read("q0 Q0 d0 1 1e30 own", "q0 Q0 d1 2 -1e30 own", "q1 Q0 d0 1 1e-300 own", "q1 Q0 d1 1 0 own")
    assert np.isfinite(found.scores).all()
    assert found.documents.tolist() == [[0, 1, NOTHING], [0, 1, NOTHING]]


# Candidates


def test_candidates_are_read_as_they_were_saved(tmp_path):
    found = ranking(([4, 2, NOTHING], [2, 1, 0]), ([1, 0, 5], [9, 8, 7]))
    candidates = as_candidates(found, {"own": found}, [3, 8], {3: {2: 1}, 8: {7: 2}}, None)
    candidates.save(tmp_path / "dev.npz")
    again = Candidates.load(tmp_path / "dev.npz")
    for field in fields(Candidates):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(candidates, field.name))
        assert getattr(again, field.name).dtype == getattr(candidates, field.name).dtype
    assert [path.name for path in tmp_path.iterdir() if "npz" in path.name] == ["dev.npz"]


def test_candidates_are_cut_at_a_depth():
    found = ranking(([4, 2, NOTHING], [2, 1, 0]), ([1, 0, 5], [9, 8, 7]))
    candidates = as_candidates(found, {"own": found}, [3, 8], {3: {2: 1}, 8: {7: 2}}, None)
    assert candidates.found(0) == [4, 2]
    assert candidates.found(1) == [1, 0, 5]
    assert candidates.found(1, depth=2) == [1, 0]
    top = candidates.top(1)
    assert top.documents.tolist() == [[4], [1]]
    assert top.scores.tolist() == top.similarities.tolist() == [[2], [9]]
    assert top.positive_similarity[0] == 1  # that of a positive does not depend on the cut
    assert top.queries.tolist() == [3, 8]
    assert candidates.top(50).documents.tolist() == candidates.documents.tolist()


def test_without_embeddings_the_engines_scores_are_compared_and_a_missed_positive_is_unknown():
    found = ranking(([4, 2, 7, NOTHING], [5, 4, 3, 0]), ([1, 0, 5, 6], [9, 8, 7, 6]), ([1, 0, 5, 6], [9, 8, 7, 6]))
    qrels = {3: {7: 1, 2: 2, 4: 0}, 8: {7: 2}, 9: {5: 1, 7: 1}}
    candidates = as_candidates(found, {"own": found}, [3, 8, 9], qrels, None)
    np.testing.assert_array_equal(candidates.similarities[0], [5, 4, 3, np.nan])
    np.testing.assert_array_equal(candidates.positive_similarity, [4, np.nan, 7])


def test_with_embeddings_cosines_are_compared_and_a_missed_positive_is_known(kept):
    # The query along the first axis: a document's similarity is its first coordinate.
    documents = np.array([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]], dtype=np.float32)
    vectors = np.array([[1.0, 0.0]], dtype=np.float32)
    found = ranking(([2, 0, NOTHING], [31, 30, 0]))
    dense = ranking(([2, 1], [0.0, 1.0]))  # 0 was found by another engine alone
    candidates = as_candidates(found, {"dense": dense}, [5], {5: {1: 1, 3: 2, 0: 0}}, (vectors, kept(documents)))
    np.testing.assert_allclose(candidates.similarities[0], [0.0, 0.6, np.nan], atol=1e-3)
    np.testing.assert_allclose(candidates.positive_similarity, [1.0])
    assert candidates.scores.tolist() == [[31, 30, 0]]


@pytest.mark.parametrize("engine", ["bm25", "dense"])
def test_queries_without_any_candidate_are_kept_with_empty_lists(engine, kept):
    nothing = ranking(([NOTHING, NOTHING], [0, 0]), ([NOTHING, NOTHING], [0, 0]))
    vectors = np.eye(2, dtype=np.float32)
    embeddings = (vectors, kept(vectors)) if engine == "dense" else None
    candidates = as_candidates(nothing, {engine: nothing}, [0, 1], {0: {1: 1}, 1: {0: 0}}, embeddings)
    assert [candidates.found(place) for place in (0, 1)] == [[], []]
    assert np.isnan(candidates.similarities).all()
    assert np.isnan(candidates.positive_similarity).tolist() == [engine == "bm25", True]
    assert (candidates.ranks == 0).all()
    scores = candidates.scored(lambda rows: np.zeros(len(rows), dtype=np.float32))
    assert np.isneginf(scores).all()


def test_candidates_of_no_query_at_all(kept):
    nothing = RankedLists(np.empty((0, 2), dtype=np.int32), np.empty((0, 2), dtype=np.float32))
    vectors = np.eye(2, dtype=np.float32)
    for given in (None, (vectors[:0], kept(vectors))):
        candidates = as_candidates(nothing, {"dense": nothing}, [], {}, given)
        assert candidates.documents.shape == candidates.similarities.shape == (0, 2)


def test_candidates_have_their_ranks_in_every_engines_own_list():
    dense, bm25 = (
        ranking(([4, 2, 7], [3, 2, 1]), ([1, 0, 5], [3, 2, 1])),
        ranking(([7, 9], [2, 1]), ([NOTHING] * 2, [0, 0])),
    )
    fused = reciprocal_rank_fusion([dense, bm25], 5)
    assert fused.documents.tolist() == [[7, 4, 2, 9, NOTHING], [1, 0, 5, NOTHING, NOTHING]]
    candidates = as_candidates(fused, {"dense": dense, "bm25": bm25}, [0, 1], {0: {4: 1}, 1: {0: 1}}, None)
    assert candidates.engines.tolist() == ["dense", "bm25"]
    assert candidates.ranks[:, :, 0].tolist() == [[3, 1, 2, 0, 0], [1, 2, 3, 0, 0]]
    assert candidates.ranks[:, :, 1].tolist() == [[1, 0, 0, 2, 0], [0, 0, 0, 0, 0]]


@pytest.fixture
def vectors(collection, bi_encoder, tmp_path, accelerator):
    """Embeddings of the judged queries and of all documents."""
    parts = shards(BiEncoder(bi_encoder), collection, tmp_path / "embeddings")
    for part in parts:
        part.encode(accelerator)
    return tuple(part.open() for part in parts)


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_every_split_gets_candidates_and_they_are_saved(kind, collection, vectors, tmp_path):
    section = Retriever(kind=kind, depth=12)
    found = retrieve_splits(section, collection, None if kind == "bm25" else vectors, tmp_path)

    everyone = [query for split in SPLITS for query in collection.answerable(split)]
    texts, passages = collection.queries["text"][:], collection.documents["passage"][:]
    lists = []
    if kind != "bm25":
        lists.append(search_dense(*vectors, 200))
    if kind != "dense":
        lists.append(search_bm25([texts[query] for query in everyone], passages, 200, "english"))
    expected = reciprocal_rank_fusion(lists, 200) if kind == "hybrid" else lists[0]

    assert tuple(found) == SPLITS
    assert [query for candidates in found.values() for query in candidates.queries] == everyone
    assert [found[split].documents.shape[1] for split in ("dev", "test")] == [12, 12]
    assert found["train"].documents.shape[1] == expected.documents.shape[1]  # mining looks deeper
    together = np.concatenate([candidates.documents[:, :12] for candidates in found.values()])
    np.testing.assert_array_equal(together, expected.documents[:, :12])
    for split, candidates in found.items():
        np.testing.assert_array_equal(Candidates.load(tmp_path / f"{split}.npz").documents, candidates.documents)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_with_a_bi_encoder_similarities_are_cosines_of_candidates_and_of_the_best_positive(
    kind, collection, bi_encoder, vectors, tmp_path
):
    candidates = retrieve_splits(Retriever(kind=kind, depth=5), collection, vectors, tmp_path)["dev"]
    model = SentenceTransformer(str(bi_encoder), device="cpu")
    queries = model.encode(collection.queries.select(candidates.queries)["text"][:], normalize_embeddings=True)
    cosines = queries @ model.encode(collection.documents["passage"][:], normalize_embeddings=True).T
    best = [
        max(row[document] for document, grade in collection.qrels["dev"][query].items() if grade > 0)
        for row, query in zip(cosines, candidates.queries.tolist(), strict=True)
    ]

    np.testing.assert_allclose(
        candidates.similarities, np.take_along_axis(cosines, candidates.documents, axis=1), atol=1e-3
    )
    np.testing.assert_allclose(candidates.positive_similarity, best, atol=1e-3)


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_a_collection_of_one_document_and_a_query_a_split(kind, bi_encoder, tmp_path, accelerator):
    (tmp_path / "one" / "qrels").mkdir(parents=True)
    (tmp_path / "one" / "corpus.jsonl").write_text('{"_id": "d", "text": "disk full"}\n')
    queries = [("train", "disk"), ("dev", "queue"), ("test", "full disk")]
    lines = [f'{{"_id": "{split}", "text": "{text}"}}\n' for split, text in queries]
    (tmp_path / "one" / "queries.jsonl").write_text("".join(lines))
    for split, _ in queries:
        (tmp_path / "one" / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{split}\td\t1\n")
    collection = build_collection(Data(path=tmp_path / "one"), tmp_path / "data")
    parts = shards(BiEncoder(bi_encoder), collection, tmp_path / "embeddings")
    for part in parts:
        part.encode(accelerator)
    vectors = None if kind == "bm25" else (parts[0].open(), parts[1].open())
    found = retrieve_splits(Retriever(kind=kind, language="english"), collection, vectors, tmp_path)
    expected = {"train": [0], "dev": [] if kind == "bm25" else [0], "test": [0]}  # BM25 shares no word with dev's
    assert {split: candidates.found(0) for split, candidates in found.items()} == expected


def test_a_trec_run_replaces_the_search(collection, tmp_path):
    queries = [query for split in SPLITS for query in collection.answerable(split)]
    lines = [
        f"{collection.query_ids[query]} Q0 {collection.document_ids[(query + rank) % 40]} {rank} {10 - rank} own\n"
        for query in queries
        for rank in range(1, 6)
    ]
    (tmp_path / "own.trec").write_text("".join(reversed(lines)))
    found = retrieve_splits(Retriever(kind="run", run=tmp_path / "own.trec", depth=4), collection, None, tmp_path)
    for split, candidates in found.items():
        assert candidates.queries.tolist() == collection.answerable(split)
        expected = [[(query + rank) % 40 for rank in range(1, 5)] for query in candidates.queries]
        assert candidates.top(4).documents.tolist() == expected
        assert np.all(candidates.top(4).scores == [9, 8, 7, 6])
    assert found["train"].found(0) == [1, 2, 3, 4, 5]  # mining looks deeper
