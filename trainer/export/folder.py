"""Write the model folder for serving, and verify it with other libraries.

Standard classifiers, including distilled ones, are written in the standard `ForSequenceClassification` layout; the
interaction head is written with its own modeling file. Other libraries load the folder and score real and odd pairs; a
format whose scores differ from the trained model's is left out, and the model card gives the reason.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import ExportError
from trainer.evaluation.results import Results
from trainer.export.card import UNKNOWN, History, consequence, model_card
from trainer.export.contents import IDENTITY
from trainer.export.engines import BYTE_PAIRS, WORD_PIECE, vocabulary_files
from trainer.export.formats import DevMetric, add_formats
from trainer.export.formats import report as report_formats
from trainer.export.loads import in_a_line, loadings
from trainer.export.odd_pairs import odd_pairs
from trainer.export.parity import Parity
from trainer.export.readers import Pairs
from trainer.export.signature import signed
from trainer.export.tei import LENGTHS
from trainer.model import Reranker, interaction
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import read_json, write_json

# Settings of the base model that make older readers apply a sigmoid to the logit.
SQUASHING = ("sbert_ce_default_activation_function", "problem_type")


def export(
    reranker: Reranker,
    recipe: Recipe,
    results: Results,
    pairs: Pairs,
    folder: Path,
    history: History = UNKNOWN,
    dev: DevMetric | None = None,
) -> Parity:
    """Write `folder/model` from a float32 model, and return the comparison of its readers' scores with the model's.

    `pairs` are real (query, document) texts of mixed length, or none; `history` is for the model card; `dev` is the
    metric that formats of fewer bits must keep. Raise ExportError if transformers does not compute the trained model's
    scores from the folder; any other reader that does not is listed in `left_out`.
    """
    unverified, model = folder / "unverified", folder / "model"
    odd: Pairs = odd_pairs(pairs, reranker.tokenizer.all_special_tokens, reranker.max_length)
    if reranker.pairs.is_prompt:
        pairs, odd = (_with_whole_queries(reranker, some) for some in (pairs, odd))
    texts = [*pairs, *odd]
    parity = Parity(texts, _scores(reranker, texts), real=len(pairs) or None)
    _write(reranker, unverified)
    parity.compare_folder(unverified, reranker.model.device.type)
    if "transformers" in parity.left_out:
        shutil.rmtree(unverified)
        raise ExportError(
            f"export: transformers does not read the trained model from the saved folder: "
            f"{parity.left_out['transformers']}; nothing was exported, the trained model is still in the run folder; "
            "please report this with the name of the base model"
        )
    add_formats(reranker, recipe.export.formats, unverified, parity, dev)
    parity.loaded = loadings(unverified, parity.left_out)
    card = model_card(reranker, recipe, results, parity, history)
    (unverified / "README.md").write_text(signed(card), encoding="utf-8")
    shutil.rmtree(model, ignore_errors=True)
    unverified.rename(model)
    _report(parity)
    console.stage("export", in_a_line(parity.loaded))
    return parity


def _write(reranker: Reranker, folder: Path) -> None:
    """Write weights, configuration, tokenizer and, for the interaction head, its code."""
    shutil.rmtree(folder, ignore_errors=True)
    reranker.save(folder)
    _finish_config(folder, reranker)
    _finish_tokenizer(folder, reranker)
    if reranker.pairs.is_prompt:
        _write_modules(folder)
    _write_length(folder, reranker.max_length)
    _write_vocabulary(folder)
    if reranker.is_interaction:
        shutil.copyfile(interaction.__file__, folder / Path(interaction.__file__).name)


def _with_whole_queries(reranker: Reranker, pairs: Pairs) -> Pairs:
    """Return the pairs whose query fits the prompt: other readers cut the end of the prompt instead of a long query."""
    tokens = reranker.pairs.tokenize_pairs(pairs)
    return [
        pair
        for pair, (query, document) in zip(pairs, tokens, strict=True)
        if reranker.pairs.lengths(query, document)[0] == len(query)
    ]


def _write_modules(folder: Path) -> None:
    """Write the files by which sentence-transformers 5.4 and later read a prompted model as a CrossEncoder."""
    forward = {"method": "forward", "method_output_name": "logits"}
    transformer = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    settings = {"model_type": "CrossEncoder", "activation_fn": IDENTITY, "prompts": {}, "default_prompt_name": None}
    modalities = {"text": forward, "message": forward | {"format": "flat"}}
    write_json(folder / "modules.json", [module])
    write_json(folder / "sentence_bert_config.json", transformer | {"modality_config": modalities})
    write_json(folder / "config_sentence_transformers.json", settings)


def _write_length(folder: Path, length: int) -> None:
    """Write the maximum length where Text Embeddings Inference and vLLM read it; without it they take the base's."""
    path = folder / LENGTHS
    settings = read_json(path) if path.is_file() else {}
    write_json(path, settings | {"max_seq_length": length, "do_lower_case": False})


def _write_vocabulary(folder: Path) -> None:
    """Write the vocabulary as the slow tokenizers of transformers 4 read it, which eland loads.

    There are none for unigrams: their file is the one with which the base was trained.
    """
    files = vocabulary_files(read_json(folder / "tokenizer_config.json")["tokenizer_class"])
    model = read_json(folder / "tokenizer.json")["model"]
    if files == WORD_PIECE and model["type"] == "WordPiece":
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    elif files == BYTE_PAIRS and model["type"] == "BPE":
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        write_json(folder / "vocab.json", model["vocab"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _scores(reranker: Reranker, pairs: Pairs) -> np.ndarray:
    """Return the trained model's scores (pairs,), each pair in a batch of its own, so that nothing is padded.

    Long documents are truncated as other libraries do, also if the model reads them in windows.
    """
    return np.concatenate([reranker.logits([pair]) for pair in reranker.pairs.tokenize_pairs(pairs)])


def _finish_config(folder: Path, reranker: Reranker) -> None:
    """Add the settings that servers need to config.json.

    vLLM and sentence-transformers read the activation: none, so that they return the logit (a float32 sigmoid cannot
    distinguish logits above 17). `auto_map` tells transformers where the modeling file is.
    """
    config = read_json(folder / "config.json")
    config["sentence_transformers"] = {"activation_fn": IDENTITY}
    for name in ("_name_or_path", *SQUASHING):
        config.pop(name, None)
    for name in ("hidden_size", "num_hidden_layers"):  # DistilBERT names them differently, heads have none
        if (value := getattr(reranker.model.base_model.config, name, None)) is not None:
            config[name] = value
    if reranker.is_interaction:
        module = Path(interaction.__file__).stem
        config["auto_map"] = {
            "AutoConfig": f"{module}.InteractionConfig",
            "AutoModelForSequenceClassification": f"{module}.InteractionForSequenceClassification",
        }
        config["encoder"] |= _names_before_5(config["encoder"])
    write_json(folder / "config.json", config | _names_before_5(config))


def _names_before_5(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that transformers 4 names differently: rotary positions and layers with global attention."""
    names: dict[str, Any] = {}
    rotary = config.get("rope_parameters") or {}
    if "rope_theta" in rotary:
        names["rope_theta"] = rotary["rope_theta"]
    for kind, name in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        if "rope_theta" in (rotary.get(kind) or {}):
            names[name] = rotary[kind]["rope_theta"]
    layers = config.get("layer_types") or []
    if config.get("model_type") == "modernbert" and layers:
        full = [layer for layer, kind in enumerate(layers) if kind == "full_attention" and layer]
        names["global_attn_every_n_layers"] = full[0] if full else len(layers)
    return names


def _finish_tokenizer(folder: Path, reranker: Reranker) -> None:
    """Write settings to tokenizer_config.json for which other versions of transformers have other defaults."""
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    config["model_input_names"] = reranker.tokenizer.model_input_names
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name before transformers 5, which accepts both
    write_json(path, config)


def _report(parity: Parity) -> None:
    """Print the measured differences, and the formats and precisions that are left out."""
    for name, difference in parity.differences.items():
        console.stage("export", f"{name}: largest score difference to the trained model {difference:.1e}")
    report_formats(parity.formats)
    for name, half in parity.halves.items():
        figures = f"largest score difference {half.difference:.1e}, Kendall's tau {half.tau:.3f}"
        console.stage("export", f"weights loaded as {name}: {figures}")
    for name, reason in parity.left_out.items():
        console.warn("export", f"{name}: {consequence(name)}: {reason}")
