"""Tiny random models of every family: exported, read by other libraries, with special tokens that stay text."""

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import takewhile
from pathlib import Path
from string import ascii_lowercase, punctuation
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from decoders import PLAIN, build_decoder
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    CamembertTokenizer,
    DebertaConfig,
    DebertaTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    ElectraConfig,
    GteConfig,
    JinaEmbeddingsV3Config,
    ModernBertConfig,
    MPNetConfig,
    MPNetTokenizer,
    NomicBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

from trainer import inference
from trainer.evaluation.results import Results
from trainer.evaluation.statistics import Interval
from trainer.export import export, folder, loads
from trainer.export.parity import Loading
from trainer.model import Reranker
from trainer.model_files.architectures import NOT_IN_TRANSFORMERS_4
from trainer.recipe import Recipe

TEXT = [
    "liveness probe restarts the container when its endpoint fails",
    "kernel kills the process when memory of the node runs out",
    "inodes run out although the disk shows free space",
    "consumer lag grows while one partition holds all messages",
]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
XLM = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@cache
def pieces() -> tuple[str, ...]:
    """Words, and the characters and continuations that make up any other ASCII word."""
    words = sorted({word for line in TEXT for word in line.split()})
    return (*words, *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase), *punctuation)


def word_piece(cls: Callable[..., PreTrainedTokenizerBase], special: list[str]) -> PreTrainedTokenizerBase:
    vocabulary = {token: row for row, token in enumerate(dict.fromkeys([*special, *pieces()]))}
    return cls(vocab=vocabulary, model_max_length=64)


def unigram(cls: Callable[..., PreTrainedTokenizerBase], special: list[str]) -> PreTrainedTokenizerBase:
    """A vocabulary that holds the special tokens with the best of all scores, as every published one does."""
    words = [(f"▁{word}", -4.0 - row / 100) for row, word in enumerate(pieces()) if not word.startswith("##")]
    letters = [(letter, -9.0) for letter in ("▁", *ascii_lowercase, *ascii_lowercase.upper(), *punctuation)]
    return cls(vocab=[*((token, 0.0) for token in special), *words, *letters], model_max_length=64)


def byte_pairs(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    content: dict[str, Any] = json.loads(backend.to_str())["model"]
    return content["vocab"], [tuple(pair) for pair in content["merges"]]


def roberta_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = byte_pairs(XLM)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=64)


def deberta_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = byte_pairs(BERT)
    return DebertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=64)


def modernbert_tokenizer() -> PreTrainedTokenizerBase:
    """As published: the generic class, special tokens outside of the model's own vocabulary."""
    vocabulary, merges = byte_pairs([])
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(BERT)
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    names = {f"{token.strip('[]').lower()}_token": token for token in BERT}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, model_input_names=["input_ids", "attention_mask"], **names
    )


ALBERT = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
MPNET = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
CAMEMBERT = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"]
FAMILIES: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "bert": (lambda: word_piece(BertTokenizer, BERT), BertConfig, SIZE | STILL),
    "roberta": (roberta_tokenizer, RobertaConfig, SIZE | STILL),
    "xlm-roberta": (lambda: unigram(XLMRobertaTokenizer, XLM), XLMRobertaConfig, SIZE | STILL),
    "deberta-v2": (
        lambda: unigram(DebertaV2Tokenizer, BERT),
        DebertaV2Config,
        SIZE | STILL | {"type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "deberta": (
        deberta_tokenizer,
        DebertaConfig,
        SIZE | STILL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "electra": (lambda: word_piece(BertTokenizer, BERT), ElectraConfig, SIZE | STILL | {"embedding_size": 16}),
    "mpnet": (lambda: word_piece(MPNetTokenizer, MPNET), MPNetConfig, SIZE | STILL),
    "modernbert": (modernbert_tokenizer, ModernBertConfig, SIZE | {"local_attention": 8}),
    "distilbert": (
        lambda: word_piece(DistilBertTokenizer, BERT),
        DistilBertConfig,
        {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "dropout": 0.0, "attention_dropout": 0.0}
        | {"seq_classif_dropout": 0.0},
    ),
    "albert": (lambda: unigram(AlbertTokenizer, ALBERT), AlbertConfig, SIZE | STILL | {"embedding_size": 16}),
    "camembert": (lambda: unigram(CamembertTokenizer, CAMEMBERT), CamembertConfig, SIZE | STILL),
    "gte": (lambda: unigram(XLMRobertaTokenizer, XLM), GteConfig, SIZE | STILL),
    "jina_embeddings_v3": (lambda: unigram(XLMRobertaTokenizer, XLM), JinaEmbeddingsV3Config, SIZE | STILL),
    "nomic_bert": (lambda: word_piece(BertTokenizer, BERT), NomicBertConfig, SIZE | STILL | {"type_vocab_size": 2}),
}
# DeBERTa's attention does not compute in half precision; the other two round random weights more than tolerated.
NOT_IN_HALF = {"deberta", "gte", "nomic_bert"}
OWN_ATTENTION = {"deberta", "deberta-v2", "mpnet"}  # is not fused
WITH_INTERACTION = [name for name in FAMILIES if name not in ("deberta", "deberta-v2", "mpnet")]


def write_family(name: str, head: str, folder: Path) -> Path:
    """Write a base of the family: an encoder for the interaction head, a one-label reranker for the classifier."""
    make_tokenizer, make_config, settings = FAMILIES[name]
    tokenizer = make_tokenizer()
    config = make_config(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1 if head == "classifier" else 2,
        **settings,
    )
    torch.manual_seed(3)
    factory = AutoModelForSequenceClassification if head == "classifier" else AutoModel
    factory.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`bases(family, head)` is the folder of a base, written once."""
    root = tmp_path_factory.mktemp("bases")
    return cache(lambda name, head: write_family(name, head, root / f"{name}-{head}"))


# Special tokens in texts.

ORDINARY = [
    "liveness probe's restarts!",
    "",
    "  Disk  full\n why? (99%)\t",
    "🚒 e\u0301 日志 \x07\u200b",
    "a<b> c/s [x] <p>one</p> [[links]] <unknown> s> SEP] /s>",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_texts_are_tokenised_as_by_the_base(bases, name):
    base = AutoTokenizer.from_pretrained(bases(name, "classifier"))
    ours = Reranker.load(bases(name, "classifier"), max_length=32).tokenizer
    for text in ORDINARY:
        assert ours(text, add_special_tokens=False)["input_ids"] == base(text, add_special_tokens=False)["input_ids"]
        assert dict(ours(text, text[::-1])) == dict(base(text, text[::-1]))


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_in_texts_are_text_here_and_in_the_saved_folder(bases, name, tmp_path):
    reranker = Reranker.load(bases(name, "classifier"), max_length=48)
    reranker.save(tmp_path / "model")
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    special = reranker.tokenizer.all_special_tokens
    found = set(reranker.tokenizer.all_special_ids) - {reranker.tokenizer.unk_token_id}
    assert len(found) >= 4
    texts = [*special, " ".join(special), *(f"a{token}{token} a" for token in special)]
    for text, tokens in zip(texts, reranker.pairs.tokenize(texts), strict=True):
        assert not found & set(tokens.tolist()), text
        assert len(tokens) > 1
    for text in texts:
        pair = [tuple(reranker.pairs.tokenize([text, f"{text} a"]))]
        inputs = saved(text, f"{text} a", truncation=True, return_tensors="pt")
        assert {key: ids.tolist() for key, ids in reranker.pairs.pad(pair).items()} == {
            key: ids.tolist() for key, ids in inputs.items()
        }


def test_a_base_that_cuts_and_pads_on_the_left_is_read_and_saved_from_the_right(bases, tmp_path):
    left = {"truncation_side": "left", "padding_side": "left"}
    tokenizer = AutoTokenizer.from_pretrained(bases("bert", "classifier"), **left)
    model = AutoModelForSequenceClassification.from_pretrained(bases("bert", "classifier"))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").truncation_side == "left"
    reranker = Reranker.load(tmp_path / "base", max_length=16)
    reranker.save(tmp_path / "model")
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = ["disk space", " ".join(TEXT)]
    inputs = saved(*texts, truncation=True, return_tensors="pt")
    assert reranker.pairs.pad([tuple(reranker.pairs.tokenize(texts))])["input_ids"].tolist() == (
        inputs["input_ids"].tolist()
    )
    assert saved.padding_side == "right"


SPELT = {"bert": "[SEP]", "roberta": "</s>", "xlm-roberta": "</s>", "modernbert": "[SEP]", "albert": "[SEP]"}


@pytest.mark.parametrize(("name", "token"), SPELT.items())
def test_a_separator_in_the_query_does_not_hide_the_documents(bases, name, token):
    reranker = Reranker.load(bases(name, "encoder"), max_length=48)
    scores = {
        query: reranker.score([(query, text) for text in TEXT])
        for query in ("probe restarts", f"{token} probe restarts")
    }
    assert all(found.std() > 0.1 for found in scores.values())


@pytest.mark.parametrize(("name", "token"), SPELT.items())
def test_a_reader_that_takes_it_for_a_separator_still_finds_the_document(bases, name, token, tmp_path):
    """Servers that read tokenizer.json alone do not know the setting in tokenizer_config.json."""
    reranker = Reranker.load(bases(name, "encoder"), max_length=48)
    reranker.save(tmp_path)
    encoded = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(f"disk {token} full {token}", TEXT[0])
    ids = torch.tensor([encoded.ids])
    query, document, _ = reranker.model.texts(ids, torch.ones_like(ids, dtype=torch.bool))
    special = torch.isin(ids, torch.tensor(reranker.model.config.special_ids))
    sequence = [[None, 0, 1].index(number) for number in encoded.sequence_ids]
    expected = [torch.tensor([[number == wanted for number in sequence]]) & ~special for wanted in (1, 2)]
    assert ids[0].tolist().count(reranker.tokenizer.sep_token_id) > 2
    assert torch.equal(query, expected[0])
    assert torch.equal(document, expected[1])


# Exports.


def shaken(base: Path) -> Reranker:
    """A model whose scores differ from text to text, as after training."""
    reranker = Reranker.load(base, max_length=32)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in reranker.model.base_model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
        (head,) = [
            module
            for module in reranker.model.modules()
            if isinstance(module, torch.nn.Linear) and module.out_features == 1
        ]
        head.weight.normal_()
        if reranker.is_interaction:
            reranker.model.token_weights.uniform_(0.5, 3.0)
    return reranker


def exported(base: Path, folder: Path) -> Any:
    """What `export` measured; the model goes to `folder/model`."""
    reranker = shaken(base)
    recipe = Recipe.model_validate({"name": "family", "data": {"path": "/set"}, "reranker": {"model": str(base)}})
    systems = {system: {"nDCG@10": Interval(0.5, 0.4, 0.6)} for system in ("first_stage", "tuned")}
    pairs = [(query, document) for query in ["why does the probe restart", "disk space", "lag"] for document in TEXT]
    return export(reranker, recipe, Results("test", 9, 4, systems, []), pairs, folder)


QUICK = [("deberta-v2", "classifier"), ("xlm-roberta", "encoder"), ("electra", "encoder")]
CASES = [(name, "classifier") for name in FAMILIES] + [(name, "encoder") for name in WITH_INTERACTION]


@pytest.mark.parametrize(
    ("name", "head"),
    [pytest.param(name, head, marks=[] if (name, head) in QUICK else pytest.mark.slow) for name, head in CASES],
)
def test_every_reader_gives_the_trained_scores(bases, name, head, tmp_path):
    parity = exported(bases(name, head), tmp_path)
    if head != "classifier" or name in NOT_THERE:
        own = NOT_THERE_OWN | ({"Infinity"} if name in NOT_IN_TRANSFORMERS_4 else set())
        assert refused(parity.loaded) == (NOT_THERE[name] if head == "classifier" else own)
    halves = {"bfloat16", "float16"}
    assert parity.left_out.keys() <= (halves if name in NOT_IN_HALF else set())
    assert set(parity.differences) == {"transformers", "padded batches", "sentence-transformers", "onnx"}
    assert max(parity.differences.values()) <= 1e-3
    assert set(parity.halves) | parity.left_out.keys() == halves
    assert np.ptp(parity.expected) > 0.1  # scores that are all alike could hide a fault
    long = [len(query) + len(document) > 200 for query, document in parity.pairs]
    assert any(long)
    assert ("", "") in parity.pairs


@pytest.mark.parametrize(
    ("name", "head"),
    [pytest.param(name, head, marks=[] if name in ("mpnet", "bert") else pytest.mark.slow) for name, head in CASES],
)
def test_the_graph_with_fused_attention_gives_the_trained_scores(bases, name, head, tmp_path):
    reranker = shaken(bases(name, head))
    batch = reranker.pairs.pad(reranker.pairs.tokenize_pairs([("why does the probe restart", TEXT[0]), ("lag", "")]))
    inference.write("onnx-fused", reranker.model, {key: rows[:1] for key, rows in batch.items()}, tmp_path)
    with torch.no_grad():
        expected = reranker.model(**batch).logits[:, 0].numpy()
    found = inference.Session(tmp_path / inference.FILES["onnx-fused"]).logits(batch).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / inference.FILES["onnx-fused"]).graph.node)
    assert (operators["MultiHeadAttention"] > 0) == (name not in OWN_ATTENTION)


def test_an_interaction_folder_loads_whole_in_half_precision(bases, tmp_path):
    exported(bases("bert", "encoder"), tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert not {"dtype", "torch_dtype"} & config["encoder"].keys()
    for dtype in (torch.float16, torch.bfloat16):
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "model", dtype=dtype, trust_remote_code=True
        )
        assert type(model).__module__.startswith("transformers_modules.")
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_files_hold_the_names_that_transformers_4_reads(bases, tmp_path):
    base = write_family("modernbert", "encoder", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["full_attention"]["rope_theta"] = 500.0
    config["rope_parameters"]["sliding_attention"]["rope_theta"] = 50.0
    config["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    (base / "config.json").write_text(json.dumps(config))
    exported(base, tmp_path)
    encoder = json.loads((tmp_path / "model" / "config.json").read_text())["encoder"]
    assert encoder["global_rope_theta"] == 500.0
    assert encoder["local_rope_theta"] == 50.0
    assert encoder["global_attn_every_n_layers"] == 2
    tokenizer = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer["split_special_tokens"] is True


# Which servers load the folders of each family.

CANDLE, ELASTIC = "Text Embeddings Inference (candle)", "Elasticsearch"
NOT_THERE = {
    "bert": set(),
    "roberta": {"Vespa"},
    "xlm-roberta": {ELASTIC, "Vespa"},
    "deberta-v2": {"vLLM", ELASTIC},
    "electra": {CANDLE, "vLLM"},
    "mpnet": {CANDLE, "vLLM", "Vespa"},
    "modernbert": {ELASTIC},
    "distilbert": {"vLLM"},
    "albert": {CANDLE, "vLLM", ELASTIC},
    "camembert": {"vLLM", ELASTIC, "Vespa"},
}
COLUMNS = {  # of the table in docs/serving.md
    "transformers, sentence-transformers": ("transformers", "sentence-transformers"),
    "TEI, CPU image": ("Text Embeddings Inference (ONNX)",),
    "TEI, GPU images": (CANDLE,),
}
ROWS = {  # of the same table, and the family that stands for each
    "BERT": "bert",
    "RoBERTa": "roberta",
    "XLM-R": "xlm-roberta",
    "CamemBERT": "camembert",
    "DeBERTa-v2 and v3": "deberta-v2",
    "ELECTRA": "electra",
    "MPNet": "mpnet",
    "ModernBERT": "modernbert",
    "DistilBERT": "distilbert",
    "ALBERT": "albert",
}
NOT_THERE_OWN = {CANDLE, "vLLM", ELASTIC, "Vespa"}  # of the interaction head
NOT_THERE_DECODER = {target.name for target in loads.TARGETS} - {"transformers", "sentence-transformers", "vLLM"}


def refused(loaded: list[Loading]) -> set[str]:
    """The names of the targets that do not load a folder."""
    return {found.name for found in loaded if found.reasons}


def graph_with(inputs: list[str], path: Path) -> None:
    """Write an ONNX graph that has these inputs and the output `logits`; it computes nothing useful."""
    integer, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Cast", inputs[:1], ["logits"], to=real)
    values = [onnx.helper.make_tensor_value_info(name, integer, ["batch", "length"]) for name in inputs]
    logits = onnx.helper.make_tensor_value_info("logits", real, ["batch", 1])
    path.parent.mkdir()
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([node], "g", values, [logits])), str(path))


def written(base: Path, root: Path, max_length: int = 32) -> Path:
    """The folder of an export, with a graph that computes nothing."""
    reranker = Reranker.load(base, max_length=max_length)
    folder._write(reranker, root / "model")
    graph_with(reranker.tokenizer.model_input_names, root / "model" / "onnx" / "model.onnx")
    return root / "model"


def reasons(model: Path) -> dict[str, tuple[str, ...]]:
    """The reasons of each target that does not load a folder."""
    return {found.name: found.reasons for found in loads.loadings(model, {}) if found.reasons}


@pytest.mark.parametrize("name", NOT_THERE)
def test_every_family_loads_where_the_table_says(bases, name, tmp_path):
    found = reasons(written(bases(name, "classifier"), tmp_path))
    assert found.keys() == NOT_THERE[name], found


@pytest.mark.parametrize("head", ["classifier", "encoder"])
@pytest.mark.parametrize("name", ["gte", "jina_embeddings_v3", "nomic_bert"])
def test_what_needs_transformers_4_does_not_load_a_family_that_version_5_brought(bases, name, head, tmp_path):
    found = reasons(written(bases(name, head), tmp_path))
    for target in ("Infinity", ELASTIC):
        assert f"it needs transformers 4, which has no {name}" in found[target]
    assert found.keys().isdisjoint({"transformers", "sentence-transformers", "fastembed"})


def test_a_decoder_loads_where_a_chat_template_is_applied(tmp_path):
    base = build_decoder("qwen3", tmp_path / "base", TEXT, template=PLAIN)
    found = reasons(written(base, tmp_path, max_length=256))
    assert found.keys() == NOT_THERE_DECODER
    assert all(any("chat template" in reason for reason in why) for why in found.values())


def documented(heading: str) -> dict[str, dict[str, str]]:
    """The table of docs/serving.md whose first column has this heading: a dictionary for each row."""
    lines = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = list(takewhile(lambda line: line.startswith("|"), lines[start:]))
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


def test_the_documentation_has_what_loads_each_family():
    table = documented("base")
    interaction, decoders = "any of these, with the interaction head", "decoders (Qwen, Llama, Gemma, Mistral)"
    expected = {row: NOT_THERE[family] for row, family in ROWS.items()}
    expected |= {interaction: NOT_THERE_OWN, decoders: NOT_THERE_DECODER}
    assert set(ROWS.values()) == NOT_THERE.keys()
    assert table.keys() == expected.keys()
    for row, cells in table.items():
        targets = {target: cell for name, cell in cells.items() for target in COLUMNS.get(name, (name,))}
        assert targets.keys() == {target.name for target in loads.TARGETS}
        assert {target for target, cell in targets.items() if cell == "no"} == expected[row], row
        assert set(cells.values()) <= {"yes", "no"}


def test_the_documentation_has_the_rules_of_each_target():
    rules = " ".join(documented("target"))
    names = {target: name for name, targets in COLUMNS.items() for target in targets if len(targets) == 1}
    assert [target.name for target in loads.TARGETS if names.get(target.name, target.name) not in rules] == []


TEI = ["Text Embeddings Inference (ONNX)", CANDLE]
LENGTHS = "sentence_bert_config.json"
FAULTS = [  # family, file, changed keys (None: the key or the file is missing), the targets that refuse it, words
    ("bert", LENGTHS, {"max_seq_length": None}, TEI, "has no max_seq_length"),
    ("bert", LENGTHS, {"max_seq_length": 9999}, TEI, "9999 tokens are more than the 66 positions"),
    ("roberta", LENGTHS, {"max_seq_length": 65}, TEI, "65 tokens are more than the 64 positions"),
    ("bert", "config.json", {"pad_token_id": "0"}, TEI, 'pad_token_id is "0", not a whole number'),
    ("bert", "config.json", {"max_position_embeddings": None}, TEI, "max_position_embeddings is missing"),
    ("bert", "config.json", {"label2id": None}, TEI, "no label2id"),
    ("bert", "config.json", {"hidden_act": "gelu_new"}, [CANDLE], "no activation gelu_new"),
    ("distilbert", "config.json", {"hidden_size": None}, TEI[:1], "hidden_size is missing"),
    ("modernbert", "config.json", {"global_rope_theta": None}, [CANDLE], "global_rope_theta is missing"),
    ("modernbert", "config.json", {"layer_types": ["full_attention"] * 3}, [CANDLE], "not evenly spaced"),
    ("modernbert", "config.json", {"classifier_bias": True}, [CANDLE], "it reads no classifier bias"),
    ("bert", "config.json", {"sentence_transformers": None}, ["sentence-transformers", "vLLM"], "apply a sigmoid"),
    (
        "bert",
        "config.json",
        {"id2label": {"0": "no", "1": "yes"}},
        [*TEI, "sentence-transformers", "vLLM", "Infinity", ELASTIC],
        "one label",
    ),
    ("bert", "config.json", {"architectures": ["BertModel"]}, [*TEI, "transformers", "vLLM", ELASTIC], "class"),
    ("bert", "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, ["transformers"], "TokenizersBackend"),
    ("bert", "tokenizer_config.json", {"model_max_length": None}, ["Infinity", "fastembed"], "no model_max_length"),
    ("bert", "tokenizer_config.json", {"model_max_length": int(1e30)}, ["fastembed"], "no model_max_length"),
    ("bert", "tokenizer_config.json", {"model_max_length": 0}, ["Infinity", "fastembed"], "no model_max_length"),
    ("bert", "vocab.txt", None, [ELASTIC], "no vocab.txt"),
    ("roberta", "merges.txt", None, [ELASTIC], "no merges.txt"),
    ("bert", "onnx/model.onnx", None, [TEI[0], "fastembed", "Vespa"], "no ONNX graph"),
]


@pytest.mark.parametrize(("name", "file", "changes", "targets", "words"), FAULTS)
def test_a_file_that_a_parser_refuses_is_named(bases, name, file, changes, targets, words, tmp_path):
    model = written(bases(name, "classifier"), tmp_path)
    before = reasons(model)
    if changes is None:
        (model / file).unlink()
    else:
        content = json.loads((model / file).read_text()) | changes
        (model / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    after = reasons(model)
    assert {target for target in after if any(words in reason for reason in after[target])} >= set(targets), after
    assert not any(words in reason for why in before.values() for reason in why)


def test_the_table_says_what_was_left_out_and_why(bases, tmp_path):
    model = written(bases("roberta", "classifier"), tmp_path)
    loaded = loads.loadings(model, {"sentence-transformers": "ValueError: a | b"})
    table = loads.as_table(loaded, brings_code=False)
    assert "| sentence-transformers | no | ValueError: a \\| b |" in table
    assert "| vLLM | yes | `vllm serve" in table
    assert "distil" not in table
    assert "`distil:`" in loads.as_table(loaded, brings_code=True)
    line = loads.in_a_line(loaded)
    assert line.startswith("loads in transformers, Text Embeddings Inference (ONNX)")
    assert line.endswith("does not load in sentence-transformers, Vespa (README.md says why)")


def test_the_vocabulary_files_are_those_of_the_tokenizer(bases, tmp_path):
    model = written(bases("bert", "classifier"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = (model / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert {token: row for row, token in enumerate(lines)} == tokenizer.get_vocab()
