"""Pairs put together from pieces equal the tokenizer's own, and buckets waste little."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from trainer.model.batching import Grid, PairEncoder, buckets, prefetch, rounded

TEMPLATES = ["bert", "roberta", "modernbert"]


@pytest.fixture
def tokenizer(request, tiny):
    return AutoTokenizer.from_pretrained(tiny[request.param])


def texts(rng, words, lengths):
    return [" ".join(rng.choice(words, size=length)) for length in lengths]


def assert_equals_the_tokenizer(tokenizer, queries, documents, max_length):
    pairs = PairEncoder(tokenizer, max_length)
    tokens = list(zip(pairs.tokenize(queries), pairs.tokenize(documents), strict=True))
    ours = pairs.pad(tokens)
    theirs = tokenizer(queries, documents, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), (name, max_length)
        assert ours[name].dtype == torch.int64
    assert [pairs.size(pair) for pair in tokens] == theirs["attention_mask"].sum(dim=1).tolist()


@pytest.mark.parametrize("tokenizer", TEMPLATES, indirect=True)
def test_padded_pairs_equal_the_tokenizers_own(tokenizer, words):
    rng = np.random.default_rng(13)
    for _ in range(40):
        max_length = int(rng.integers(8, 65))
        # From nothing to twice what fits, the longer text on either side.
        short, long = rng.integers(0, max_length, size=6), rng.integers(0, 2 * max_length, size=6)
        first, second = texts(rng, words, short), texts(rng, words, long)
        assert_equals_the_tokenizer(tokenizer, first, second, max_length)
        assert_equals_the_tokenizer(tokenizer, second, first, max_length)


@pytest.mark.parametrize("tokenizer", TEMPLATES, indirect=True)
@pytest.mark.parametrize("max_length", [8, 15, 16, 17, 18])
def test_pairs_that_just_fit_or_just_do_not_equal_the_tokenizers_own(tokenizer, words, max_length):
    rng = np.random.default_rng(13)
    lengths = [(query, document) for query in range(max_length + 2) for document in range(max_length + 2)]
    lengths = [(query, document) for query, document in lengths if min(query, document) < max_length]
    queries = texts(rng, words, [query for query, _ in lengths])
    documents = texts(rng, words, [document for _, document in lengths])
    assert_equals_the_tokenizer(tokenizer, queries, documents, max_length)


@pytest.mark.parametrize("tokenizer", TEMPLATES, indirect=True)
def test_two_texts_each_longer_than_the_pair_equal_the_tokenizers_own(tokenizer, words):
    rng = np.random.default_rng(13)
    for max_length in range(8, 20):
        lengths = [(max_length + query, max_length + document) for query in range(3) for document in range(3)]
        queries = texts(rng, words, [query for query, _ in lengths])
        documents = texts(rng, words, [document for _, document in lengths])
        assert_equals_the_tokenizer(tokenizer, queries, documents, max_length)


def test_only_models_with_segments_get_them(tiny, words):
    for name in TEMPLATES:
        pairs = PairEncoder(AutoTokenizer.from_pretrained(tiny[name]), 16)
        batch = pairs.pad([tuple(pairs.tokenize(["disk full", "queue"]))])
        assert ("token_type_ids" in batch) == (name == "bert")


def test_no_texts_give_no_tokens(tiny):
    assert PairEncoder(AutoTokenizer.from_pretrained(tiny["bert"]), 16).tokenize([]) == []


@pytest.mark.parametrize("tokens", [1, 64, 500, 4096])
@pytest.mark.parametrize("start", [0, 64, 1 << 40])
@pytest.mark.parametrize("seed", range(3))
def test_buckets_are_within_the_budget_complete_and_go_from_long_to_short(tokens, start, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, 129, size=rng.integers(1, 300)).tolist()

    cut = buckets(sizes, tokens, start)

    in_order = [position for bucket in cut for position in bucket]
    assert sorted(in_order) == list(range(len(sizes)))
    assert [sizes[position] for position in in_order] == sorted(sizes, reverse=True)
    for bucket in cut:
        assert len(bucket) == 1 or len(bucket) * max(sizes[position] for position in bucket) <= tokens


def test_buckets_are_as_full_as_the_budget_allows_where_each_costs_much():
    # 25 stands alone; 10 and 10 fill 20; of 6, 5, 5 and 3 only three fit together.
    assert len(buckets([5, 10, 6, 25, 10, 5, 3], 20, 1 << 40)) == 4
    assert buckets([], 20, 64) == []


@pytest.mark.parametrize("start", [0, 7, 100])
def test_no_other_buckets_cost_less(start):
    sizes, tokens = [30, 29, 21, 20, 12, 11, 11, 4, 3, 3], 66

    def cost(cut):
        return sum(start + len(bucket) * max(sizes[position] for position in bucket) for bucket in cut)

    every = []
    for borders in itertools.product([False, True], repeat=len(sizes) - 1):
        edges = [0, *(place + 1 for place, border in enumerate(borders) if border), len(sizes)]
        cut = [list(range(*pair)) for pair in itertools.pairwise(edges)]
        if all(len(bucket) * sizes[bucket[0]] <= tokens for bucket in cut):
            every.append(cost(cut))
    assert cost(buckets(sizes, tokens, start)) == min(every)


def test_little_of_a_bucket_is_padding():
    sizes = np.clip(np.random.default_rng(3).lognormal(4, 0.6, size=2000), 8, 256).astype(int).tolist()

    def padding(batches):
        padded = sum(len(batch) * max(sizes[position] for position in batch) for batch in batches)
        return 1 - sum(sizes) / padded

    as_they_come = [list(range(start, min(start + 64, 2000))) for start in range(0, 2000, 64)]
    assert padding(as_they_come) > 0.4
    assert padding(buckets(sizes, 4096, 64)) < 0.02


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("tokens", "longest"), [(4096, 128), (4096, 100), (300, 128), (64, 128)])
def test_rounded_buckets_have_few_shapes(seed, tokens, longest):
    sizes = np.random.default_rng(seed).integers(4, longest + 1, size=23 + seed).tolist()

    cut = buckets(sizes, tokens, 64, Grid(4, 16), longest)

    assert sorted(sum(cut, [])) == list(range(len(sizes)))
    for bucket in cut:
        length = rounded(max(sizes[position] for position in bucket), 16, longest)
        assert len(bucket) * length <= tokens or len(bucket) == 1
        assert len(bucket) % 4 == 0 or bucket is cut[-1] or 4 * length > tokens


def test_a_length_is_rounded_up_and_never_beyond_what_the_model_reads():
    assert [rounded(length, 16, 100) for length in (1, 16, 17, 96, 97, 100)] == [16, 16, 32, 96, 100, 100]
    assert rounded(97, 1, 0) == 97


def test_prefetch_yields_the_items_in_order_and_computes_one_more_than_was_consumed():
    made = []

    def slowly():
        for number in range(5):
            made.append(number)
            yield number

    taken = []
    for number in prefetch(slowly()):
        taken.append(number)
        assert len(made) <= number + 2
    assert taken == made == [0, 1, 2, 3, 4]
    assert list(prefetch([])) == []


def test_an_error_in_the_other_thread_is_raised_with_its_item():
    def breaks():
        yield 1
        raise ValueError("no more")

    items = prefetch(breaks())
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
