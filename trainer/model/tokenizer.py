"""The tokenizer: special tokens come from its template alone, and readers of the saved folder see the same tokens.

`[SEP]` in a query, or the `</s>` of a page of HTML, is text. transformers reads `split_special_tokens` from
tokenizer_config.json and then looks for no special tokens in texts; but a Unigram model (XLM-R, ALBERT, DeBERTa) has
them in its vocabulary with the best of all scores and finds them again. There a text is cut inside of them before the
model sees it.
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


def load_tokenizer(folder: Path, reference: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer without settings of the base's own training, reading special tokens in texts as text.

    Raises ModelError where there is only one of transformers' slow ones.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        split_special_tokens=True,
        truncation_side="right",
        padding_side="right",
    )
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {reference}: its tokenizer ({type(tokenizer).__name__}) is one of transformers' slow ones, without "
            "a tokenizer.json; take a model that has one"
        )
    tokenizer.backend_tokenizer.no_truncation()  # these would cut our pairs at the length of the base's own training
    tokenizer.backend_tokenizer.no_padding()
    return _cutting(tokenizer) if _finds_in_text(tokenizer) else tokenizer


def _finds_in_text(tokenizer: Any) -> bool:
    """Whether a text that spells a special token is given its id; the unknown token's is any text's."""
    for token in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}:
        texts = [token, f"a {token} a", f"a{token}a"]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if any(tokenizer.convert_tokens_to_ids(token) in ids for ids in encoded):
            return True
    return False


def _cutting(tokenizer: Any) -> PreTrainedTokenizerFast:
    """Return the tokenizer with a last step before its model: special tokens are cut behind their first character."""
    backend, tokens = tokenizer.backend_tokenizer, [token for token in tokenizer.all_special_tokens if len(token) > 1]
    cuts = [Split(Regex(f"{re.escape(token[0])}(?={re.escape(token[1:])})"), "isolated") for token in tokens]
    backend.pre_tokenizer = Sequence([*filter(None, [backend.pre_tokenizer]), *cuts])
    return _generic(tokenizer, tokenizer.model_input_names)


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens before and behind a single text."""
    single: Any = tokenizer("a", return_special_tokens_mask=True)
    texts = [place for place, special in enumerate(single["special_tokens_mask"]) if not special]
    return single["input_ids"][: texts[0]], single["input_ids"][texts[-1] + 1 :]


def framed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Return the tokenizer joining a pair as two framed texts: `[CLS] query [SEP] [CLS] document [SEP]`.

    An encoder that only ever read single texts rests its attention on the special tokens around them; without a [CLS]
    of its own the document's states are worse (measured in docs/results.md).
    """
    before, behind = frame(tokenizer)
    names: Any = tokenizer.convert_ids_to_tokens([*before, *behind])
    around = [[*names[: len(before)], f"${text}", *names[len(before) :]] for text in "AB"]
    ids = list(dict.fromkeys(zip(names, [*before, *behind], strict=True)))
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=around[0], pair=around[0] + around[1], special_tokens=ids)
    return _generic(tokenizer, ["input_ids", "attention_mask"])  # the head finds the texts by the separator


def _generic(tokenizer: Any, input_names: list[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer under the plain class: those of single architectures build their own steps when loaded."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        model_input_names=input_names,
        split_special_tokens=True,
        **tokenizer.special_tokens_map,
    )
