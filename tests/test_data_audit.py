"""Notes and warnings of the check: duplicates, likely false negatives, leaks between splits, lengths and power."""

import json
import random
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from trainer.data import MAX_AUTO_LENGTH, Summary, check_collection, covering_length, describe_lengths
from trainer.data.audit import detectable
from trainer.data.lengths import LEAST_SAMPLE, LENGTH_SAMPLE, LengthCounter, Lengths
from trainer.data.near_duplicates import NEAR_DOCUMENTS, NEAR_WORDS, NearDuplicates, jaccard
from trainer.recipe import Data

TEXT = "the kernel kills the process when the memory of the node runs out and nobody looked at the graph before"


def checked(folder: Path, documents: list[str], queries: dict[str, list[str]], qrels: dict[str, str]) -> Summary:
    """Documents d0, d1, ...; queries by split, named by their text; qrels lines as `query document grade`."""
    (folder / "qrels").mkdir(exist_ok=True)
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": text.replace(" ", "-"), "text": text} for texts in queries.values() for text in texts]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, lines in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text(lines.replace(" ", "\t") + "\n")
    return check_collection(Data(path=folder))


def warning(summary: Summary, words: str) -> str:
    (found,) = [line for line in summary.warnings if words in line]
    return found


SMALL = {"train": ["a"], "dev": ["b"], "test": ["c"]}
QRELS = {"train": "a d0 1", "dev": "b d1 1", "test": "c d1 1"}


# Duplicates


def test_documents_that_differ_in_case_and_punctuation_alone_are_duplicates(tmp_path):
    summary = checked(tmp_path, ["One, two.", "three", "one  TWO", "(three)", "four", "one two"], SMALL, QRELS)
    said = warning(summary, "documents repeat another one except for case, punctuation and white space")
    assert said.startswith("3 documents repeat")
    assert f"d2 = d0 ({tmp_path}/corpus.jsonl:3); d3 = d1 ({tmp_path}/corpus.jsonl:4); d5 = d0 (" in said


def test_near_duplicates_are_counted_separately(tmp_path):
    summary = checked(tmp_path, [TEXT, "another", f"{TEXT} today"], SMALL, QRELS)
    assert warning(summary, "nearly repeat").startswith("1 documents nearly repeat another one (8 of 10 word triples")
    assert "d2 = d0 (" in warning(summary, "nearly repeat")


def test_near_duplicates_share_four_fifths_of_the_word_triples():
    words = TEXT.split()  # 20 words, 18 triples, all different; each word behind them makes one triple more
    for added, near in ((4, 1), (5, 0)):  # 18 of 22 and 18 of 23
        longer = [*words, *[f"new{number}" for number in range(added)]]
        one, other = (frozenset(" ".join(w[i : i + 3]) for i in range(len(w) - 2)) for w in (words, longer))
        assert jaccard(one, other) == 18 / (18 + added)
        twins = NearDuplicates(NEAR_DOCUMENTS, NEAR_WORDS)
        twins.add(TEXT)
        twins.add(" ".join(longer))
        assert twins.near == near


def test_every_near_pair_that_a_full_comparison_finds_is_found():
    rng = random.Random(5)
    vocabulary = [f"w{number}" for number in range(300)]
    texts = [" ".join(rng.choices(vocabulary, k=60)) for _ in range(120)]
    for number in range(60):  # one word changed of 60: 55 of 61 triples are shared
        words = texts[number].split()
        words[rng.randrange(60)] = "changed"
        texts.append(" ".join(words))
    twins = NearDuplicates(NEAR_DOCUMENTS, NEAR_WORDS)
    for text in texts:
        twins.add(text)
    assert twins.near == 60
    assert twins.leader == {120 + number: number for number in range(60)}


def test_scripts_without_spaces_are_compared_by_their_characters():
    text = "機械学習の手法を用いて検索結果を並べ替える"
    twins = NearDuplicates(NEAR_DOCUMENTS, NEAR_WORDS)
    twins.add(text)
    twins.add(f"{text}と")
    twins.add("天気予報によると明日は雨が降るでしょうと言われた")
    assert twins.leader == {1: 0}


def test_the_search_for_near_duplicates_has_a_limit_and_reports_it(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.audit.NEAR_DOCUMENTS", 2)
    summary = checked(tmp_path, [TEXT, "b", f"{TEXT} today", TEXT], SMALL, QRELS)
    assert any(
        note.startswith("only the first 2 documents were searched for near-duplicates (") for note in summary.notes
    )
    assert warning(summary, "repeat").startswith("1 documents repeat")  # exact ones are found everywhere
    assert NEAR_DOCUMENTS == 20_000


def test_an_unjudged_duplicate_of_a_positive_has_a_warning_of_its_own(tmp_path):
    documents = ["One.", "two", "one", "ONE", "one!"]
    qrels = {"train": "a d0 1\na d2 0\na d3 1", "dev": "b d1 1", "test": "c d1 1"}
    said = warning(checked(tmp_path, documents, SMALL, qrels), "its duplicate is not")
    # a: d0 and d3 are positive; d2 was judged not relevant and d4 not judged, and each is a twin of both
    assert said.startswith("4 times a document is judged relevant and its duplicate is not, so it could become a")
    assert f"query a: d0 is relevant, d2 ({tmp_path}/corpus.jsonl:3) is not" in said


def test_duplicates_without_any_judgement_are_no_likely_false_negatives(tmp_path):
    summary = checked(tmp_path, ["one", "two", "three", "Three"], SMALL, QRELS)
    assert not [line for line in summary.warnings if "its duplicate is not" in line]


# Splits


def test_a_query_in_two_splits_is_reported_with_both_lines(tmp_path):
    queries = {"train": ["how so", "why"], "dev": ["b"], "test": ["How So", "c"]}
    qrels = {"train": "how-so d0 1\nwhy d0 1", "dev": "b d1 1", "test": "How-So d1 1\nc d1 1"}
    said = warning(checked(tmp_path, ["x", "y"], queries, qrels), "are in both train and test")
    places = f"'how so' ({tmp_path}/queries.jsonl:1 and {tmp_path}/queries.jsonl:4)"
    assert (
        said == f"1 query texts are in both train and test, so test measures queries that train has seen; e.g. {places}"
    )


def test_shared_positives_of_train_and_test_are_noted(tmp_path):
    qrels = {"train": "a d0 1\na d1 0", "dev": "b d1 1", "test": "c d0 1\nc d1 1\nc d2 0"}
    summary = checked(tmp_path, ["x", "y", "z"], SMALL, qrels)
    assert any(note.startswith("1 of 2 documents that are positives in test (50%) are") for note in summary.notes)
    summary = checked(tmp_path, ["x", "y", "z"], SMALL, QRELS)
    assert (
        "no document is a positive in both test and train: test measures new queries on new documents" in summary.notes
    )


def test_unused_queries_are_noted_or_warned_of(tmp_path):
    queries = {"train": ["a", "never", "unjudged"], "dev": ["b"], "test": ["c"]}
    summary = checked(tmp_path, ["x", "y"], queries, QRELS | {"train": "a d0 1\nnever d0 0"})
    assert "1 queries are in no split and are not used" in summary.notes
    said = f"1 train queries have no positive and are left out; e.g. never ({tmp_path}/queries.jsonl:2)"
    assert said in summary.warnings


# Power


def test_the_detectable_difference_follows_the_power_formula():
    assert detectable(100) == pytest.approx(0.084)
    assert detectable(25) == pytest.approx(0.168)
    from scipy.stats import norm

    assert norm.ppf(0.975) + norm.ppf(0.8) == pytest.approx(2.8, abs=0.002)


def test_the_detectable_differences_of_dev_and_test_are_noted(tmp_path):
    summary = checked(tmp_path, ["x", "y"], SMALL, QRELS)
    for split in ("dev", "test"):
        said = f"with 1 {split} queries only differences of 0.840 nDCG@10 or more can be detected (power 80 %)"
        assert said in summary.notes
    assert "1 dev queries are too few to compare models reliably; use 100 or more" in summary.warnings


# Lengths


def test_the_share_of_truncated_texts_is_counted_in_the_models_tokens(tiny, words):
    tokenizer = tiny["bert"] / "tokenizer.json"
    one = words[0]
    documents = counted([" ".join([one] * length) for length in (5, 10, 20, 40)])
    queries = counted([" ".join([one] * length) for length in (3, 3, 3, 20)])
    cut = describe_lengths(documents, queries, tokenizer, 32)
    # 32 tokens, 3 of them special and 3 the median query's: 26 are left; half of 29 is 14
    characters = 40 * len(one) + 39
    assert cut.message == (
        "25% of 4 documents are longer than the 26 tokens that the median query leaves of 32 (reranker.max_length) "
        f"and are truncated; 25% of the queries are; median document 20 tokens, longest 40 ({characters} characters)"
    )
    assert (cut.documents, cut.queries) == (0.25, 0.25)


def counted(texts: list[str]) -> Lengths:
    counter = LengthCounter()
    for text in texts:
        counter.add(text)
    return counter.lengths()


def test_the_lengths_of_all_documents_count_and_not_those_of_a_sample_alone(tiny, words):
    word = min(words, key=len)
    texts = [" ".join([word] * 10)] * 2991 + [" ".join([word] * 500)] * 9  # nine that a sample of 100 mostly misses
    documents, queries = counted(texts), counted([word] * 50)
    cut = describe_lengths(documents, queries, tiny["bert"] / "tokenizer.json", 32)
    assert documents.characters[-1] == 500 * (len(word) + 1) - 1
    assert cut.documents == pytest.approx(0.003, abs=0.001)
    assert cut.message.startswith("about 0% of 3000 documents are longer")
    assert f"longest at least 500 ({documents.characters[-1]:,} characters)" in cut.message


def test_a_huge_document_is_counted_by_its_beginning(tiny, words):
    word = min(words, key=len)
    said = describe_lengths(
        counted([f"{word} " * 400_000]), counted([word]), tiny["bert"] / "tokenizer.json", 32
    ).message
    (longest,) = re.findall(r"longest (\d+) \(", said)
    assert int(longest) == pytest.approx(400_000, rel=0.01)


def test_a_huge_document_among_many_is_counted_by_its_beginning(tiny, words):
    word = min(words, key=len)
    documents = counted([word] * 200 + [f"{word} " * 400_000] + [f"{word} " * 300_000])
    assert len(documents.longest_texts) == 1
    said = describe_lengths(documents, counted([word]), tiny["bert"] / "tokenizer.json", 32).message
    (longest,) = re.findall(r"longest at least (\d+) \(", said)
    assert int(longest) == pytest.approx(400_000, rel=0.01)


def test_documents_with_equal_characters_and_different_tokens_are_distinguished(tiny, words):
    """Three of ten have several times the tokens of the others in as many characters."""
    word = max(words, key=len)
    prose = " ".join([word] * (100 // len(word) + 1))
    marks = "? " * (len(prose) // 2) + "?" * (len(prose) % 2)
    texts = [marks if number % 10 < 3 else prose for number in range(3000)]
    tokenizer = tiny["bert"] / "tokenizer.json"
    tokens = [
        len(Tokenizer.from_file(str(tokenizer)).encode(text, add_special_tokens=False)) for text in (prose, marks)
    ]
    max_length = sum(tokens) // 2 + 4  # between the two, beside three special tokens and a query of one
    documents, queries = counted(texts), counted([words[0]] * 50)
    cut = describe_lengths(documents, queries, tokenizer, max_length)
    assert cut.documents == pytest.approx(0.3, abs=0.1)
    assert f"longest at least {tokens[1]} ({len(marks)} characters)" in cut.message
    assert not describe_lengths(documents, queries, tokenizer, 2 * max(tokens)).documents


def test_the_longest_text_in_tokens_may_not_be_the_longest_in_characters(tiny, words):
    word = max(words, key=len)
    documents = counted([word] * 3000 + [f"{word} " * 20] + ["? " * 30])
    assert len("? " * 30) < len(f"{word} " * 20)
    said = describe_lengths(documents, counted([word]), tiny["bert"] / "tokenizer.json", 64).message
    assert "longest at least 30 (60 characters)" in said


def test_the_share_of_truncated_runbooks_is_that_of_all_documents(tiny):
    """Many have about as many tokens as fit, so a sample of 100 of the 368 was off by seven points."""
    lines = (Path(__file__).parents[1] / "data" / "runbooks" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = tiny["bert"] / "tokenizer.json"
    backend = Tokenizer.from_file(str(tokenizer))
    lengths = sorted(len(backend.encode(text, add_special_tokens=False).ids) for text in texts)
    room = lengths[len(lengths) * 4 // 5]
    cut = describe_lengths(counted(texts), counted(["disk"]), tokenizer, room + 4)  # special tokens and the query
    assert cut.documents == sum(length > room for length in lengths) / len(lengths)
    assert cut.message.startswith(f"{cut.documents:.0%} of 368 documents")


def test_the_share_of_many_documents_is_within_a_few_points(tiny):
    texts = ["disk " * (50 + number % 100) for number in range(20_000)]
    cut = describe_lengths(counted(texts), counted(["disk"]), tiny["bert"] / "tokenizer.json", 4 + 129)
    assert cut.documents == pytest.approx(0.2, abs=0.03)
    assert cut.message.startswith("about ")


def test_a_sample_of_very_long_texts_is_smaller():
    texts = counted([f"{number} " * 20_000 for number in range(200)]).texts
    assert LEAST_SAMPLE == len(texts) < 200


def test_a_summary_of_another_version_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    splits = {"train": "why", "dev": "who", "test": "when"}
    queries = {split: [query] for split, query in splits.items()}
    qrels = {split: f"{query} d0 1" for split, query in splits.items()}
    summary = checked(tmp_path / "data", [TEXT, "another text"], queries, qrels)
    known = asdict(summary)
    assert Summary.from_json(json.loads(json.dumps(known))) == summary
    known["document_lengths"]["longest"] = known["document_lengths"].pop("longest_texts")[0]
    with pytest.raises(TypeError):
        Summary.from_json(known)


def test_the_sample_is_bounded_and_the_same_each_time():
    texts = [f"text {number}" for number in range(5000)]
    samples = [counted(texts).texts for _ in range(2)]
    assert samples[0] == samples[1]
    assert len(set(samples[0])) == LENGTH_SAMPLE
    numbers = [int(re.sub(r"\D", "", text)) for text in samples[0]]
    assert 2000 < sum(numbers) / LENGTH_SAMPLE < 3000  # from everywhere, not from the start


@pytest.mark.parametrize(
    ("lengths", "longest", "expected"),
    [
        ([100] * 9 + [400], 512, 104),  # nine of ten, a multiple of 8
        ([100] * 8 + [400, 401], 512, 400),
        ([1000], 4096, MAX_AUTO_LENGTH),
        ([1000], 300, 300),
        ([3, 4], 512, 32),
        ([64] * 10, 512, 64),
    ],
)
def test_the_automatic_length_fits_nine_of_ten_pairs(lengths, longest, expected):
    assert covering_length(lengths, longest) == expected


def test_the_check_reports_the_automatic_length(tiny):
    words = [f"{'disk ' * size}" for size in range(1, 101)]
    cut = describe_lengths(counted(words), counted(["disk"]), tiny["bert"] / "tokenizer.json", None)
    assert "of 96 (reranker.max_length: auto) and are truncated" in cut.message  # 90 tokens and a query with its frame
    assert cut.documents == pytest.approx(0.08)
