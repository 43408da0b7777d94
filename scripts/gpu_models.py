"""The inputs of scripts/gpu_check: a collection of invented words, and random models of real shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LONGEST = 512  # tokens that every shape accepts
# The published sizes; a dry run uses the same architectures with a few thousand parameters.
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
QWEN3: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
}
TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def words() -> list[str]:
    """Return the 4,900 words of two syllables."""
    syllables = [first + vowel for first in CONSONANTS for vowel in VOWELS]
    return [one + two for one in syllables for two in syllables]


def tokenizer(segments: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word and BERT's template, with or without segment ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words()])}
    backend: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if segments else "[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    special: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    names = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LONGEST, model_input_names=names, **special
    )


def config(shape: str, dry: bool) -> Any:
    """Return the configuration of minilm, modernbert or decoder with one label and no dropout."""
    import transformers

    label: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0}
    if shape == "minilm":
        still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertConfig(**(TINY if dry else MINILM), **label, **still)
    if shape == "modernbert":
        special: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
        return transformers.ModernBertConfig(**(TINY if dry else {}), **label, **special)
    ids: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "tie_word_embeddings": True}
    heads: dict[str, Any] = {"num_key_value_heads": 1 if dry else 8, "head_dim": 16 if dry else 128}
    return transformers.Qwen3Config(**(TINY if dry else QWEN3), **heads, **label, **ids)


def classifier(shape: str, dry: bool, device: str) -> PreTrainedModel:
    """Return a sequence classifier with one label and random weights, created on the device."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(13)
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(config(shape, dry))


def save_classifier(shape: str, dry: bool, device: str, folder: Path) -> None:
    """Save such a classifier with its tokenizer to a folder that both sides load."""
    classifier(shape, dry, device).save_pretrained(folder)
    tokenizer(segments=shape == "minilm").save_pretrained(folder)


def save_encoder(folder: Path) -> None:
    """Save a tiny BERT without a head, for the reranker's base model and the bi-encoder of a recipe."""
    import torch
    from transformers import BertModel

    torch.manual_seed(13)
    BertModel(config("minilm", dry=True)).save_pretrained(folder)
    tokenizer(segments=True).save_pretrained(folder)


def save_collection(folder: Path, queries: dict[str, int], documents: int, length: int) -> None:
    """Write a BEIR folder with a number of queries in each split.

    Documents have about `length` words, half of them between 2/3 and 3/2 of it; a query is four words of the one
    document that is relevant.
    """
    rng = np.random.default_rng(13)
    known = np.array(words())
    lengths = np.clip(length * np.exp(0.6 * rng.standard_normal(documents)), 5, None).astype(int)
    texts = [rng.choice(known, size=size).tolist() for size in lengths]
    _write_rows(folder / "corpus.jsonl", {f"d{row}": " ".join(text) for row, text in enumerate(texts)})
    (folder / "qrels").mkdir()
    query_texts = {}
    for split, count in queries.items():
        relevant = rng.choice(documents, size=count, replace=False).tolist()
        query_texts |= {f"{split}-{row}": " ".join(rng.choice(texts[row], size=4, replace=False)) for row in relevant}
        lines = ["query-id\tcorpus-id\tscore", *(f"{split}-{row}\td{row}\t1" for row in relevant)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    _write_rows(folder / "queries.jsonl", query_texts)


def _write_rows(path: Path, texts: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()))
