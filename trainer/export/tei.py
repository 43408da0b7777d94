"""The rules by which Text Embeddings Inference 1.9 starts a folder as a reranker, with each of its two backends.

Read from its source (router/src/lib.rs, backends/ort, backends/candle/src/models): the keys of config.json are typed
fields, and one that is missing or null where it must not be stops the server. The CPU image tries ONNX Runtime first.
"""

from __future__ import annotations

from trainer.export.contents import Contents, Fields, fields

PROMPT = "it does not join query and document by the chat template"
LENGTHS = "sentence_bert_config.json"  # its key max_seq_length must be there if the file is
OFFSET = ("roberta", "xlm-roberta", "camembert")  # their positions begin after the id of the padding token
ACTIVATIONS = ("gelu", "relu", "silu", "swiglu")
INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}

_SIZES = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
_BERT = fields(
    whole=f"{_SIZES} type_vocab_size pad_token_id",
    number="hidden_dropout_prob initializer_range layer_norm_eps",
    text="hidden_act",
)
_MODERNBERT = fields(
    whole=f"{_SIZES} pad_token_id eos_token_id bos_token_id cls_token_id sep_token_id global_attn_every_n_layers "
    "local_attention",
    number="initializer_range initializer_cutoff_factor norm_eps global_rope_theta local_rope_theta attention_dropout",
    text="hidden_activation classifier_activation",
    flag="norm_bias attention_bias",
)
_DEBERTA = fields(
    whole=f"{_SIZES} type_vocab_size",
    number="initializer_range layer_norm_eps max_relative_positions",
    text="hidden_act",
    flag="relative_attention position_biased_input",
)
_DISTILBERT = fields(
    whole="vocab_size dim n_layers n_heads hidden_dim max_position_embeddings pad_token_id", text="activation"
)
FAMILIES: dict[str, tuple[Fields, tuple[str, ...]]] = {  # the fields and the tensors of the head
    "bert": (_BERT, ("bert.pooler.dense.weight", "classifier.weight", "classifier.bias")),
    **dict.fromkeys(OFFSET, (_BERT, ("classifier.dense.weight", "classifier.out_proj.weight"))),
    "deberta-v2": (_DEBERTA, ("pooler.dense.weight", "classifier.weight", "classifier.bias")),
    "distilbert": (_DISTILBERT, ("pre_classifier.weight", "classifier.weight", "classifier.bias")),
    "modernbert": (_MODERNBERT, ("head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias")),
}


def onnx_faults(contents: Contents) -> list[str]:
    """Return the reasons for which the ONNX backend would not start, or would give other scores."""
    faults = _router_faults(contents)
    faults += contents.graph_faults(INPUTS)
    if contents.graph is None:
        return faults
    faults += contents.wrong(fields(whole="hidden_size num_hidden_layers"))
    inputs, _ = contents.graph
    faults += [f"the graph has no input {name}" for name in ("input_ids", "attention_mask") if name not in inputs]
    if contents.tokenizer_config.get("padding_side", "right") not in ("left", "right"):
        faults.append("tokenizer_config.json: padding_side is neither left nor right")
    return faults


def candle_faults(contents: Contents) -> list[str]:
    """Return the reasons for which the candle backend would not start, or would give other scores."""
    faults = _router_faults(contents)
    if contents.family not in FAMILIES:
        return [*faults, f"it has no classifier for the model type {contents.family}"]
    keys, head = FAMILIES[contents.family]
    faults += contents.wrong(keys)
    for key in keys:
        value = contents.config.get(key)
        if key.endswith(("hidden_act", "activation")) and isinstance(value, str) and value not in ACTIVATIONS:
            faults.append(f"it has no activation {value}")
    if contents.config.get("position_embedding_type") not in (None, "absolute"):
        faults.append("it reads absolute positions only")
    faults += [f"there is no tensor {name}" for name in head if name not in contents.tensors]
    return faults + (_modernbert_faults(contents) if contents.family == "modernbert" else [])


def _router_faults(contents: Contents) -> list[str]:
    """Return the faults of the files that every backend needs."""
    config, faults = contents.config, [PROMPT] * contents.is_prompt
    if not contents.architecture.endswith("Classification"):
        faults.append(f"its class {contents.architecture} is not a classifier")
    faults += contents.wrong(fields(whole="max_position_embeddings", text="model_type"))
    if "pad_token_id" in config:
        faults += contents.wrong(fields(whole="pad_token_id"))
    faults += [f"config.json: no {key}" for key in ("id2label", "label2id") if not isinstance(config.get(key), dict)]
    if contents.labels != 1:
        faults.append(f"a reranker has one label, not {contents.labels}")
    if not (contents.folder / "tokenizer.json").is_file():
        faults.append("there is no tokenizer.json")
    return faults + _length_faults(contents)


def _length_faults(contents: Contents) -> list[str]:
    """Return the fault of the file with the maximum length, if there is one."""
    lengths = contents.json(LENGTHS)
    if lengths is None:
        return []
    length, positions = lengths.get("max_seq_length"), contents.config.get("max_position_embeddings")
    if not isinstance(length, int):
        return [f"{LENGTHS} has no max_seq_length"]
    if contents.family in OFFSET and isinstance(positions, int):
        positions -= (contents.config.get("pad_token_id") or 0) + 1
    if isinstance(positions, int) and length > positions:
        return [f"{LENGTHS}: {length} tokens are more than the {positions} positions"]
    return []


def _modernbert_faults(contents: Contents) -> list[str]:
    """Return what the backend's ModernBERT computes differently."""
    config, faults = contents.config, []
    every, kinds = config.get("global_attn_every_n_layers"), config.get("layer_types")
    if isinstance(every, int) and isinstance(kinds, list):
        regular = [layer % every == 0 for layer in range(len(kinds))]
        if regular != [kind == "full_attention" for kind in kinds]:
            faults.append("its layers with full attention are not evenly spaced")
    faults += [f"it reads no {key.replace('_', ' ')}" for key in ("classifier_bias", "norm_bias") if config.get(key)]
    return faults
