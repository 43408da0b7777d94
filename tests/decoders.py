"""Tiny random decoders of the real architectures, and encoders saved in unusual ways; nothing is downloaded."""

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


def build_decoder(family: str, folder: Path, texts: list[str], template: str | None = None, **changes: Any) -> Path:
    """Write a causal model of a family with random weights; its tokenizer has no padding token."""
    tokenizer = (byte_level if family.startswith("qwen") else metaspace)(texts)
    tokenizer.chat_template = template
    torch.manual_seed(11)
    names = SIZE | FAMILIES[family] | {"vocab_size": len(tokenizer), "pad_token_id": None} | changes
    for token in ("bos", "eos"):
        names[f"{token}_token_id"] = getattr(tokenizer, f"{token}_token_id")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **names))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
