"""The architectures that each head supports, determined by building tiny random models (tests/test_architectures.py).

Names are `model_type` in config.json. An encoder for the interaction head must respect an attention bias for every pair
of tokens and return the hidden states of all layers; a standard classifier needs less. A model in none of these lists
may still work with a classifier, which is tested when it is loaded.
"""

from __future__ import annotations

from typing import Any

# ruff: noqa: SIM905 - a list of seventy quoted names is harder to read and to add to

INTERACTION = frozenset(
    """
    albert bert camembert data2vec-text distilbert electra ernie eurobert gte jina_embeddings_v3 mobilebert
    modernbert nomic_bert roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl
    """.split()
)
CLASSIFIER = INTERACTION | frozenset(
    """
    bart big_bird convbert deberta deberta-v2 esm flaubert ibert layoutlm lilt longformer luke mbart megatron-bert
    mpnet mt5 mvp rembert roformer squeezebert t5 tapas umt5 xlm
    """.split()
)
DECODERS = frozenset(
    """
    arcee bigbird_pegasus biogpt bloom codegen cohere cohere2 ctrl deepseek_v2 deepseek_v3 diffllama doge exaone4
    falcon gemma gemma2 gemma3 gemma3_text glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite
    helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe llama mamba mamba2 minimax ministral ministral3 mistral
    mistral4 mixtral modernbert-decoder mpt nemotron olmo olmo2 olmo3 openai-gpt opt persimmon phi phi3 phimoe qwen2
    qwen2_moe qwen3 qwen3_5 qwen3_5_text qwen3_moe qwen3_next rwkv seed_oss smollm3 stablelm starcoder2 zamba zamba2
    """.split()
)
UNSUPPORTED = {
    "canine": "it reads characters and has no fast tokenizer",
    "fnet": "it has no attention mask, so a score would depend on the padding of its batch",
    "funnel": "it pools neighbouring tokens, so a score would depend on the padding of its batch",
    "mra": "its attention is approximated in blocks, so that short texts all get the same score",
    "nystromformer": "it reads only texts whose length is a multiple of its landmarks",
    "perceiver": "it reads bytes",
    "reformer": "it hashes tokens at random, so scores would be random",
    "xlnet": "it reads the last token, which is padding in a batch",
    "xmod": "it needs the language of each text",
    "yoso": "it samples random numbers, so scores would be random",
}
# Positions are counted from the padding's id + 1, so that the first positions are never used.
POSITIONS_AFTER_PADDING = frozenset(
    """
    camembert data2vec-text esm ibert lilt longformer luke mpnet roberta roberta-prelayernorm xlm-roberta
    xlm-roberta-xl
    """.split()
)


# Compared with transformers 4.57.1, the last version before 5; what this package supports of the difference.
NOT_IN_TRANSFORMERS_4 = frozenset(
    """
    eurobert gte jina_embeddings_v3 ministral3 mistral4 nomic_bert olmo olmo2 olmo3 qwen3_5 qwen3_5_text
    """.split()
)


def brings_code(config: dict[str, Any]) -> bool:
    """Return True if the model needs Python code from its own folder, since transformers has no class for it."""
    known = CLASSIFIER | DECODERS | set(UNSUPPORTED) | {"interaction"}
    return bool(config.get("auto_map")) and config.get("model_type") not in known


def is_decoder(config: dict[str, Any], architecture: str) -> bool:
    """Return True if each token attends only to earlier ones."""
    generates = architecture.endswith(("ForCausalLM", "LMHeadModel")) and not config.get("use_bidirectional_attention")
    return generates or bool(config.get("is_decoder")) or config.get("model_type") in DECODERS


def longest_text(config: dict[str, Any]) -> int | None:
    """Return the longest input of a model in tokens, None if config.json sets no limit."""
    positions, family = config.get("max_position_embeddings"), config.get("model_type")
    if not isinstance(positions, int) or positions <= 0:
        return None
    padding = (
        1 if family == "mpnet" else config.get("pad_token_id")
    )  # MPNet's code uses 1, even if its tokenizer differs
    unused = padding + 1 if family in POSITIONS_AFTER_PADDING and isinstance(padding, int) else 0
    return positions - unused
