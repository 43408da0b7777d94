"""Loading a cross-encoder and its tokenizer from a folder, with checks before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from trainer.errors import ModelError
from trainer.model.decoder import is_prompted, prepare_tokenizer, with_score_row
from trainer.model.heads import one_label, with_classifier, with_interaction
from trainer.model.interaction import InteractionForSequenceClassification
from trainer.model.modular import with_saved_head
from trainer.model.prompt import pair_encoder
from trainer.model.tokenizer import framed, load_tokenizer
from trainer.model_files import weights
from trainer.model_files.architectures import CLASSIFIER
from trainer.model_files.checks import Head, require_cross_encoder
from trainer.model_files.decoders import Prompting
from trainer.model_files.references import is_modular, label_names, name_of, read_config, relevant_label
from trainer.runtime import console

PROBE_LENGTH = 1 << 20  # tokens, never reached by the test pair for architectures that are not in the tested list


def load_cross_encoder(
    folder: Path, head: Head, layers: Sequence[int] | None, trust_remote_code: bool, prompting: Prompting
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the float32 model on the CPU and its tokenizer; a fresh head is reported on the terminal.

    Raises ModelError if the folder, its weights or its tokenizer do not make a cross-encoder.
    """
    kind = require_cross_encoder(folder, head, trust_remote_code, prompting=prompting)
    with weights.loading(folder):
        prompted = is_prompted(folder, kind, prompting)
        tokenizer = load_tokenizer(folder, name_of(folder), trust_remote_code, prompted)
        prepare_tokenizer(tokenizer, folder, prompting, prompted)
        if kind == "decoder":
            model = with_score_row(folder, tokenizer, prompting, trust_remote_code)
        elif kind == "reranker" and is_modular(folder):
            model = with_saved_head(folder, trust_remote_code)
        elif kind != "encoder":
            # Not registered with transformers' Auto classes, where it would shadow the file in an exported folder.
            own = InteractionForSequenceClassification if kind == "interaction" else AutoModelForSequenceClassification
            model = weights.load(own, folder, trust_remote_code=trust_remote_code)
            if kind == "reranker" and model.config.num_labels > 1:
                _keep_relevance(model, folder)
            if kind == "reranker" and (prompted or getattr(model.config, "pad_token_id", None) is None):
                model.config.pad_token_id = tokenizer.pad_token_id
        elif head == "classifier":
            model = with_classifier(folder, trust_remote_code)
        else:
            model = with_interaction(folder, tokenizer, layers)
            tokenizer = framed(tokenizer)
        if prompted:
            model.config.use_cache = False  # keys and values of earlier tokens serve generation only
        weights.require_rows(model, tokenizer, folder)
        _require_scores(model, tokenizer, folder)
    if kind == "encoder":
        new = "classifier" if head == "classifier" else "interaction head"
        console.stage("model", f"{name_of(folder)}: the {new} is new; the encoder keeps its weights")
    return model, tokenizer


def _keep_relevance(model: Any, folder: Path) -> None:
    """Reduce a classifier with several labels to the one that means relevance, and report it."""
    names = label_names(read_config(folder))
    column = relevant_label(names)
    assert column is not None  # else `kind_of` refuses the folder
    one_label(model, column)
    others = " and ".join(name for name in names if name != names[column])
    console.stage("model", f"{name_of(folder)}: the score is its logit of {names[column]!r} minus that of {others}")


def longest_input(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the maximum number of input tokens: the model's positions, else the tokenizer's limit."""
    return weights.longest_text(model.base_model) or tokenizer.model_max_length


@torch.inference_mode()
def _require_scores(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise ModelError if the tokenizer cannot join two texts, or if an untested architecture gives no logit."""
    special: Any = tokenizer("a", "a", return_special_tokens_mask=True)["special_tokens_mask"]
    first = special.index(0) if 0 in special else len(special)
    if tokenizer.chat_template is None and 1 not in special[first:]:
        raise ModelError(
            f"model {name_of(folder)}: its tokenizer puts no special token between query and document; take a model "
            "whose tokenizer does, or name a prompt as reranker.template"
        )
    if model.config.model_type in CLASSIFIER | {"interaction"}:
        return
    pairs = pair_encoder(tokenizer, PROBE_LENGTH)
    logits = model.eval()(**pairs.pad([(pairs.tokenize(["a"], "query")[0], pairs.tokenize(["a a"])[0])])).logits
    if logits.shape != (1, 1) or not torch.isfinite(logits).all():
        raise ModelError(
            f"model {name_of(folder)}: gives {tuple(logits.shape)} logits for a pair instead of one finite "
            "number; take another base"
        )
