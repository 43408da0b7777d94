"""Tiny random models of every family that rerankers are made of, with tokenizers of the family's own class."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import ascii_lowercase, punctuation
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    CamembertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertTokenizer,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    MPNetTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

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
    content: dict[str, Any] = __import__("json").loads(backend.to_str())["model"]
    return content["vocab"], [tuple(pair) for pair in content["merges"]]


def roberta_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary, merges = byte_pairs(XLM)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=64)


def modernbert_tokenizer() -> PreTrainedTokenizerBase:
    """As published: the generic class, special tokens outside of the model's own vocabulary."""
    from tokenizers.processors import TemplateProcessing

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
}
WITH_INTERACTION = [name for name in FAMILIES if name not in ("deberta-v2", "mpnet")]


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
