"""The rules by which vLLM loads a folder as a reranker, checked from its files alone.

Read from vLLM's registry, its documentation of pooling models and its conversion script (2026): a class for sequence
classification with one label, the tensors under transformers' names, the row `score.weight` for decoders, no setting
that would convert the model once more, and a chat template with the roles query and document.
"""

from __future__ import annotations

from trainer.export.contents import Contents
from trainer.model_files.prompt import has_prompt

# Classes for which vLLM has a model of its own or converts the causal one.
CLASSES = frozenset(
    f"{family}ForSequenceClassification"
    for family in (
        "Qwen3",
        "Qwen2",
        "Llama",
        "Gemma",
        "Gemma2",
        "Mistral",
        "Bert",
        "Roberta",
        "XLMRoberta",
        "ModernBert",
    )
)
CONVERSIONS = ("classifier_from_token", "is_original_qwen3_reranker", "method")


def vllm_faults(contents: Contents) -> list[str]:
    """Return the reasons for which vLLM would not load a folder, or would give other scores."""
    config, faults = contents.config, []
    if contents.architecture not in CLASSES:
        faults.append(f"it has no class {contents.architecture}")
    if contents.labels != 1:
        faults.append(f"its score needs one label, not {contents.labels}")
    faults += [f"config.json holds {key}, which would convert it again" for key in CONVERSIONS if key in config]
    faults += contents.activation_faults
    return faults + (_faults_of_decoder(contents) if contents.is_prompt else [])


def _faults_of_decoder(contents: Contents) -> list[str]:
    """Return the faults of a decoder's score row, tensors, padding and prompt."""
    config, shapes, faults = contents.config, contents.tensors, []
    if shapes.get("score.weight") != [1, config.get("hidden_size")]:
        faults.append(f"score.weight has the shape {shapes.get('score.weight')}")
    if strange := sorted(name for name in shapes if not name.startswith(("model.", "score."))):
        faults.append(f"it knows no tensor {strange[0]}")
    if not isinstance(config.get("pad_token_id"), int):
        faults.append("config.json has no pad_token_id")
    if not has_prompt(contents.folder):
        faults.append("its chat template does not render query and document")
    if contents.tokenizer_config.get("split_special_tokens"):
        faults.append("the special tokens of its prompt would be split")
    return faults
