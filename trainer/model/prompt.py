"""Pairs in a prompt: tokenised as if the whole prompt was, and truncated in the texts only.

Other programs tokenise the rendered prompt as one string. A token can span the border between constant text and a
query or document: in `Query: why?` and a line break, ` why` and `?` with the line break are tokens of many
vocabularies. Each text is therefore tokenised with the constant text before it and as many characters after it as can
share a token with it. The document is cut so that the prompt fits, the query only beyond half of the room; the
constant text around them stays, so that the last token is always the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainer.errors import ModelError
from trainer.model.batching import PairEncoder, Piece, Role, Tokens
from trainer.model_files.prompt import has_roles, read_prompt

LEAST_ROOM = 8  # tokens of query and document together; with fewer nothing of the document is left
# Texts whose first or last characters share tokens with their surroundings in some vocabularies.
PROBES = [
    *("a", "", "A b", "7 8", "what?", "?", "(x)", '"', "'s", "- -", "é.", "日本", "🙂", "...", "</a>", ":", "_", "\ta"),
    *(" ", " a ", "\n", "\n\n", "a\n", "\na", "\n\na\n\n", "a \n"),
]


class _Slot(NamedTuple):
    """The place of a text in the prompt: constant text that is tokenised with it."""

    lead: str  # the constant text before it
    skipped: int  # number of its first tokens that no text changes
    trail: str  # characters after the text that can share a token with it
    ending: list[int]  # the ids of `trail` after a text that is cut
    strips: bool  # whether the template strips white space around the text


def pair_encoder(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PairEncoder:
    """Return the encoder of pairs: with the prompt of the chat template if it has both roles, else without prompt."""
    template = tokenizer.chat_template
    prompted = isinstance(template, str) and has_roles(template, special_tokens(tokenizer))
    return (PromptEncoder if prompted else PairEncoder)(tokenizer, max_length)


class PromptEncoder(PairEncoder):
    """Joins tokenised queries and documents in the prompt of the tokenizer's chat template."""

    is_prompt = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        super().__init__(tokenizer, max_length)
        self.has_segments = False
        if max_length < self.num_special + LEAST_ROOM:
            raise ModelError(
                f"reranker.max_length: {max_length} tokens, but the prompt alone has {self.num_special}; raise it to "
                f"{self.num_special + LEAST_ROOM} or more"
            )

    def _read_template(self) -> None:
        """Find the tokens of the constant text, and what is tokenised together with query and document."""
        template = self.tokenizer.chat_template
        assert isinstance(template, str)
        prompt = read_prompt(template, special_tokens(self.tokenizer))
        before, between, after = prompt.before, prompt.between, prompt.after
        strips = prompt.stripped if prompt.query_first else prompt.stripped[::-1]
        first, _ = self._slot(before, f"{between}a{after}", strips[0])
        second, rest = self._slot(between, after, strips[1])
        (whole,) = self._ids([f"{before}a{between}a{after}"])
        start = first.skipped + len(self._tokens_in(first, ["a"])[0])
        end = len(whole) - len(rest) - len(self._tokens_in(second, ["a"])[0])
        if start > end:
            raise ModelError("its chat template puts too little text between query and document to tell them apart")
        pieces = [Piece(ids, [0] * len(ids)) for ids in (whole[: first.skipped], whole[start:end], rest)]
        self.before, self.between, self.after = pieces
        self.query_segment = self.document_segment = 0
        self.num_special = sum(len(piece.ids) for piece in pieces)
        self._query_first = prompt.query_first
        slots = (first, second) if prompt.query_first else (second, first)
        self._slots: dict[Role, _Slot] = dict(zip(("query", "document"), slots, strict=True))

    def _slot(self, lead: str, after: str, strips: bool) -> tuple[_Slot, list[int]]:
        """Return the slot between two constant texts, and the ids after it that no text changes."""
        whole = self._ids([f"{lead}{text}{after}" for text in PROBES])
        starts = (self._ids([lead[: len(lead) - shared]])[0] for shared in range(len(lead) + 1))
        start = next(start for start in starts if all(ids[: len(start)] == start for ids in whole))
        rests = ((after[:length], self._rest(lead, after[:length], whole)) for length in range(len(after) + 1))
        trail, rest = next((trail, rest) for trail, rest in rests if rest is not None)
        slot = _Slot(lead, len(start), trail, [], strips)
        return slot._replace(ending=_common_end(*self._tokens_in(slot, ["0", "1 2 3 4"]))), rest

    def _rest(self, lead: str, trail: str, whole: Sequence[list[int]]) -> list[int] | None:
        """Return the ids after `trail` in all prompts, None if they depend on the text before."""
        parts = self._ids([f"{lead}{text}{trail}" for text in PROBES])
        pairs = list(zip(whole, parts, strict=True))
        rests = [ids[len(part) :] for ids, part in pairs]
        same = all(ids[: len(part)] == part for ids, part in pairs) and all(rest == rests[0] for rest in rests)
        return rests[0] if same else None

    def _tokens_in(self, slot: _Slot, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts at their place in the prompt."""
        own = [text.strip() if slot.strips else text for text in texts]
        return [ids[slot.skipped :] for ids in self._ids([f"{slot.lead}{text}{slot.trail}" for text in own])]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts without special tokens around them."""
        return self.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def tokenize(self, texts: Sequence[str], role: Role = "document") -> list[Tokens]:
        """Return the ids of each text at its place in the prompt, not truncated: truncation depends on the pair."""
        if not texts:
            return []
        return [np.asarray(ids, dtype=np.int32) for ids in self._tokens_in(self._slots[role], texts)]

    def cut(self, query: Tokens, document: Tokens) -> tuple[Tokens, Tokens]:
        """Return the truncated texts in the order of the prompt; a cut text keeps the characters that follow it."""
        lengths = self.lengths(query, document)
        texts = [
            _shortened(tokens, length, slot.ending)
            for tokens, length, slot in zip((query, document), lengths, self._slots.values(), strict=True)
        ]
        return (texts[0], texts[1]) if self._query_first else (texts[1], texts[0])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens by name, as templates call them."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _shortened(tokens: Tokens, length: int, ending: list[int]) -> Tokens:
    """Return at most `length` tokens, which end with `ending` if any were cut off."""
    if length >= len(tokens):
        return tokens
    kept = max(0, length - len(ending))
    return np.concatenate([tokens[:kept], np.asarray(ending[len(ending) - (length - kept) :], dtype=tokens.dtype)])


def _common_end(one: list[int], other: list[int]) -> list[int]:
    """Return the longest list of ids with which both lists end."""
    count = 0
    while count < min(len(one), len(other)) and one[-count - 1] == other[-count - 1]:
        count += 1
    return one[len(one) - count :]
