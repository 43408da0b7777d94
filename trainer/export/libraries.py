"""The rules by which Python libraries read a folder: transformers, sentence-transformers, Infinity and fastembed."""

from __future__ import annotations

import sys

from trainer.export.contents import Contents
from trainer.export.tei import LENGTHS, PROMPT

FILLED = {"input_ids", "attention_mask", "token_type_ids"}  # the inputs of a graph that fastembed and Vespa compute


def transformers_faults(contents: Contents) -> list[str]:
    """Return the reasons for which transformers (4.51 to 5) would not load a folder."""
    faults = []
    if not contents.architecture.endswith("ForSequenceClassification"):
        faults.append(f"its class {contents.architecture} is not the one for sequence classification")
    for name in sorted({value.partition(".")[0] for value in contents.config.get("auto_map", {}).values()}):
        if not (contents.folder / f"{name}.py").is_file():
            faults.append(f"there is no {name}.py, which config.json names")
    if contents.tokenizer_config.get("tokenizer_class") == "TokenizersBackend":
        faults.append("transformers 4 has no tokenizer class TokenizersBackend")
    if "rope_parameters" in contents.config and not any(key.endswith("rope_theta") for key in contents.config):
        faults.append("transformers 4 looks for rope_theta")
    return faults


def sentence_transformers_faults(contents: Contents) -> list[str]:
    """Return the reasons for which sentence-transformers would not load a folder, or would give other scores."""
    faults = transformers_faults(contents) + contents.activation_faults
    if contents.labels != 1:
        faults.append(f"a score needs one label, not {contents.labels}")
    if contents.is_prompt:
        needed = ("modules.json", LENGTHS, "config_sentence_transformers.json")
        faults += [f"there is no {name}" for name in needed if not (contents.folder / name).is_file()]
    return faults


def infinity_faults(contents: Contents) -> list[str]:
    """Return the reasons for which Infinity 0.0.78 would not serve a folder as a reranker with its torch engine."""
    faults = transformers_faults(contents) + contents.faults_in_transformers_4 + [PROMPT] * contents.is_prompt
    if contents.labels > 1:
        faults.append(f"a reranker has one label, not {contents.labels}")
    if not contents.tokenizer_config.get("model_max_length"):
        faults.append("tokenizer_config.json has no model_max_length, by which it cuts pairs")
    return faults


def fastembed_faults(contents: Contents) -> list[str]:
    """Return the reasons for which fastembed would not load a folder as a cross-encoder, or would give other scores."""
    faults = [PROMPT] * contents.is_prompt + contents.graph_faults(FILLED)
    length, pad = (contents.tokenizer_config.get(key) for key in ("model_max_length", "pad_token"))
    if not isinstance(length, int) or not 0 < length <= sys.maxsize:  # an unknown length is saved as 1e30
        faults.append("tokenizer_config.json has no model_max_length")
    if not isinstance(pad, str) or not isinstance(contents.config.get("pad_token_id"), int):
        faults.append("it finds no padding token")
    return faults
