"""The tokenizer: only its template adds special tokens, here and in every program that loads the saved folder.

`[SEP]` in a query, or `</s>` in an HTML page, is plain text. With `split_special_tokens` in tokenizer_config.json,
transformers does not match special tokens in texts. A Unigram model (XLM-R, ALBERT, DeBERTa) still produces them,
because its vocabulary has them with the highest scores. For such models a pre-tokenizer splits these strings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.errors import ModelError


def load_tokenizer(
    folder: Path, reference: str, trust_remote_code: bool, prompted: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer without truncation and padding, which treats special tokens in texts as text.

    In a prompt they are special tokens, as in every program that renders and tokenises the prompt as one string. Raises
    ModelError if the folder has only a slow tokenizer, without a tokenizer.json.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        split_special_tokens=not prompted,
        truncation_side="right",
        padding_side="right",
    )
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {reference}: its tokenizer ({type(tokenizer).__name__}) is one of transformers' slow ones, without "
            "a tokenizer.json; take a model that has one"
        )
    tokenizer.backend_tokenizer.no_truncation()  # set in the base's training; it would truncate pairs at that length
    tokenizer.backend_tokenizer.no_padding()
    return _split_special_tokens(tokenizer) if not prompted and _matches_in_text(tokenizer) else tokenizer


def _matches_in_text(tokenizer: Any) -> bool:
    """Return whether the string of any special token (except the unknown token) is encoded as that token."""
    for token in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}:
        texts = [token, f"a {token} a", f"a{token}a"]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if any(tokenizer.convert_tokens_to_ids(token) in ids for ids in encoded):
            return True
    return False


def _split_special_tokens(tokenizer: Any) -> PreTrainedTokenizerFast:
    """Return the tokenizer with a final pre-tokenizer that splits special tokens after their first character."""
    backend, tokens = tokenizer.backend_tokenizer, [token for token in tokenizer.all_special_tokens if len(token) > 1]
    splits = [Split(Regex(f"{re.escape(token[0])}(?={re.escape(token[1:])})"), "isolated") for token in tokens]
    backend.pre_tokenizer = Sequence([*filter(None, [backend.pre_tokenizer]), *splits])
    return _as_generic_class(tokenizer, tokenizer.model_input_names)


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens before and after a single text."""
    single: Any = tokenizer("a", return_special_tokens_mask=True)
    texts = [index for index, special in enumerate(single["special_tokens_mask"]) if not special]
    return single["input_ids"][: texts[0]], single["input_ids"][texts[-1] + 1 :]


def framed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the pair template `[CLS] query [SEP] [CLS] document [SEP]`.

    An encoder trained on single texts directs much attention to the special tokens around them; without a [CLS] before
    the document the document's states are worse (measured in docs/results.md).
    """
    before, after = frame(tokenizer)
    names: Any = tokenizer.convert_ids_to_tokens([*before, *after])
    around = [[*names[: len(before)], f"${text}", *names[len(before) :]] for text in "AB"]
    ids = list(dict.fromkeys(zip(names, [*before, *after], strict=True)))
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=around[0], pair=around[0] + around[1], special_tokens=ids)
    # Without token_type_ids: the head splits the texts at the separator.
    return _as_generic_class(tokenizer, ["input_ids", "attention_mask"])


def _as_generic_class(tokenizer: Any, input_names: list[str]) -> PreTrainedTokenizerFast:
    """Return it as PreTrainedTokenizerFast; architecture-specific classes rebuild their own steps on loading."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        model_input_names=input_names,
        split_special_tokens=True,
        **tokenizer.special_tokens_map,
    )
