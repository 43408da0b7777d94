"""Tiny random decoders of the real architectures, and encoders saved in unusual ways; nothing is downloaded."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# As in Qwen's and Llama 3's tokenizers: punctuation takes the line breaks after it, words the space before them.
GPT = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ANSWERS = ["no", "yes", "0", "1", "Yes", "No"]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16384,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "gemma": {"tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False, "sliding_window": 24},
}
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' if m.role == 'user' else '' }}{% endfor %}"
PLAIN = """{% set told = messages | selectattr("role", "eq", "system") | map(attribute="content") | first %}
{{ bos_token }}{{ told | default("Is it relevant?") }}
Q: {{ (messages | selectattr("role", "eq", "query") | first).content }}
D: {{ (messages | selectattr("role", "eq", "document") | first).content }}
Answer:"""


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a vocabulary that has merges across spaces, punctuation and line breaks."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(GPT), "isolated")
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [*texts, *(f"{text}?\n" for text in texts), *(f" {word}" for word in ANSWERS), *ANSWERS] * 3
    backend.train_from_iterator(lines, trainer)
    backend.add_tokens([word for word in ANSWERS if backend.token_to_id(word) is None])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<bos>")


def metaspace(texts: list[str]) -> PreTrainedTokenizerFast:
    """A BPE over whole strings with `▁` for spaces, as in Llama 2, Mistral and Gemma."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    special = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=760, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*texts, *ANSWERS] * 3, trainer)
    backend.add_tokens([word for word in ANSWERS if backend.token_to_id(word) is None])
    ids = [("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def build_decoder(
    family: str,
    folder: Path,
    texts: list[str],
    template: str | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    std: float = 0.2,
    **changes: Any,
) -> Path:
    """Write a causal model of a family with random weights; its tokenizer has no padding token."""
    tokenizer = tokenizer or (byte_level if family.startswith("qwen") else metaspace)(texts)
    tokenizer.chat_template = template
    torch.manual_seed(11)
    names = SIZE | FAMILIES.get(family, {}) | {"vocab_size": len(tokenizer), "pad_token_id": None} | changes
    for token in ("bos", "eos"):
        names[f"{token}_token_id"] = getattr(tokenizer, f"{token}_token_id")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **names))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TOY_WORDS = {topic: [f"{topic}{number}" for number in range(6)] for topic in "abcdefgh"}
TOY_TEMPLATE = (
    '<s> {{ (messages | selectattr("role", "eq", "query") | first).content }} <q> '
    '{{ (messages | selectattr("role", "eq", "document") | first).content }} <d>'
)


def word_level() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words for the toy task, so that a tiny model learns it in seconds."""
    special = ["<|endoftext|>", "<unk>", "<s>", "<q>", "<d>"]
    words = [*special, *ANSWERS, *(word for words in TOY_WORDS.values() for word in words)]
    backend = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>", model_max_length=64
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<q>", "<d>"]})
    return tokenizer


def toy_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The toy's tokenizer; for Qwen2 a byte-level one, because transformers' class for it rebuilds any other."""
    if family != "qwen2":
        return word_level()
    tokenizer = byte_level([word for words in TOY_WORDS.values() for word in words])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "<q>", "<d>"]})
    return tokenizer


def build_toy(folder: Path, family: str, queries: int = 120) -> Path:
    """Write a model, a collection and a recipe whose queries and relevant documents share a topic, not words.

    Lexical signals are off, because the letter of a topic is a token of its own in some vocabularies. Every query has
    eight candidates, one of each topic, in random order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.jinja").write_text(TOY_TEMPLATE)
    build_decoder(family, folder / "model", [], tokenizer=toy_tokenizer(family), std=0.1)
    rng = random.Random(5)
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    documents, texts, run, qrels = {}, {}, [], {"train": [], "dev": [], "test": []}
    for topic, words in TOY_WORDS.items():
        documents |= {f"{topic}-{number}": " ".join(rng.sample(words, 3)) for number in range(6)}
    for number in range(queries + 48):
        split = "train" if number < queries else "dev" if number < queries + 24 else "test"
        topic = rng.choice(list(TOY_WORDS))
        texts[f"q{number}"] = " ".join(rng.sample(TOY_WORDS[topic], 2))
        candidates = [f"{one}-{rng.randrange(6)}" for one in TOY_WORDS]
        rng.shuffle(candidates)
        run += [f"q{number} Q0 {one} {rank} {-rank} toy" for rank, one in enumerate(candidates, 1)]
        qrels[split] += [f"q{number}\t{one}\t1" for one in candidates if one.startswith(topic)]
    for name, rows in (("corpus", documents), ("queries", texts)):
        (data / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": one, "text": text}) + "\n" for one, text in rows.items())
        )
    for split, rows in qrels.items():
        (data / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    (folder / "run.trec").write_text("\n".join(run) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""name: tiny
data:
  path: {data}
retriever:
  kind: run
  run: {folder / "run.trec"}
  depth: 8
reranker:
  model: {folder / "model"}
  template: {folder / "template.jinja"}
  tokens: ["no", "yes"]
  max_length: 32
  lexical_signals: false
train:
  epochs: 14
  queries_per_step: 8
  learning_rate: 4.0e-3
  evaluations_per_epoch: 1
  checkpoint_steps: 5
  precision: fp32
evaluate:
  metrics: [nDCG@10]
export:
  formats: []
"""
    )
    return recipe
