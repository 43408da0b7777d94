"""Decoders as rerankers: the tokens whose logits are the score, and the prompt, from the folder or by family.

The score of a causal language model is the logit of one token, or the difference of two, after the prompt. This is a
linear function of the last state, so that a head of one row computes it: `W[true] - W[false]` (model/decoder.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ModelError
from trainer.model_files.prompt import (
    has_prompt,
    has_roles,
    read_prompt,
    saved_instruction,
    saved_special_tokens,
    saved_template,
    with_instruction,
)
from trainer.model_files.references import name_of
from trainer.recipe.sections import Reranker

TEMPLATES = Path(__file__).with_name("templates")
# Published rerankers by model_type: Qwen3-Reranker, mxbai-rerank-v2 and bge-reranker-v2-gemma; tokens are the one of
# an irrelevant document, if any, and the one of a relevant document.
TOKENS = {"qwen3": ("no", "yes"), "qwen2": ("0", "1"), "gemma": ("Yes",)}
SPACES = ("▁", "Ġ")  # a space before a word, as SentencePiece and byte-level vocabularies write it
LANGUAGE_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")  # in the families' names
LOGIT_SCORE = "LogitScore"  # module of sentence-transformers with the ids of the two tokens


@dataclass(frozen=True)
class Prompting:
    """The recipe's settings of a decoder: a template file, an instruction, and the tokens that make the score.

    `tokens` are (irrelevant, relevant) or (relevant,). Whatever is None or empty comes from the model's folder, or from
    the table of families.
    """

    template: Path | None = None
    instruction: str | None = None
    tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, section: Reranker) -> Prompting:
        """Return the settings of a recipe's section."""
        return cls(section.template, section.instruction, section.tokens)

    @classmethod
    def of_model(cls, section: Any, reference: str | None) -> Prompting:
        """Return the settings of a recipe's section for a model that any key names: the base's, none for others."""
        return cls.of(section) if reference == section.model else NO_PROMPTING

    @property
    def parts(self) -> list[str]:
        """The template's text, the instruction and the tokens, for a fingerprint; empty without any of them."""
        template = _read(self.template) if self.template is not None else ""
        return [template, self.instruction or "", *self.tokens] if self != NO_PROMPTING else []


NO_PROMPTING = Prompting()


def template_of(folder: Path, family: object, prompting: Prompting, special: Mapping[str, str] | None = None) -> str:
    """Return the template with its instruction: the recipe's, else the folder's if usable, else the family's.

    Raises ModelError if there is none, or if it does not render query and document.
    """
    special = saved_special_tokens(folder) if special is None else special
    saved = saved_template(folder)
    if prompting.template is not None:
        template = _read(prompting.template)
    elif saved is not None and has_roles(saved, special):
        template = saved
    elif (known := TEMPLATES / f"{family}.jinja").is_file():
        template = _read(known)
    elif saved is None:
        raise ModelError(
            f"model {name_of(folder)}: is a decoder without a chat template; name a Jinja file as reranker.template"
        )
    else:
        template = saved
    try:
        read_prompt(template, special)
        template = with_instruction(template, prompting.instruction, special)
    except ModelError as error:
        raise ModelError(f"model {name_of(folder)}: its chat template {error}") from None
    if prompting.instruction is None:
        with suppress(ModelError):  # a template that renders no instruction
            template = with_instruction(template, saved_instruction(folder), special)
    return template


def token_ids(folder: Path, family: object, prompting: Prompting, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the ids (irrelevant, relevant) or (relevant,) of the tokens that make the score.

    They come from the recipe, else from the folder's LogitScore module, else from the table of families. Raises
    ModelError if there are none, or if the vocabulary has no such token.
    """
    saved = None if prompting.tokens else _logit_score(folder)
    if saved is not None:
        return [token for token in (saved.get("false_token_id"), saved["true_token_id"]) if token is not None]
    names = prompting.tokens or TOKENS.get(str(family), ())
    if not names:
        raise ModelError(
            f"model {name_of(folder)}: is a {family} model, for which no tokens are known that make a score; name "
            "them as reranker.tokens: [irrelevant, relevant], e.g. [no, yes]"
        )
    if missing := [name for name in names if name not in vocabulary]:
        similar = [f"{space}{missing[0]}" for space in SPACES if f"{space}{missing[0]}" in vocabulary]
        has = f", but {similar[0]!r}, with a space before it," if similar else ""
        raise ModelError(
            f"model {name_of(folder)}: its vocabulary has no token {missing[0]!r}{has}; name two of its tokens as "
            "reranker.tokens: [irrelevant, relevant], e.g. [no, yes]"
        )
    return [vocabulary[name] for name in names]


def ranks_already(folder: Path) -> bool:
    """Return whether a causal model was published as a reranker, which its files or its name tell."""
    named = "rerank" in name_of(folder).rpartition("/")[2].lower()
    return named or _logit_score(folder) is not None or has_prompt(folder)


def logit_score_path(modules: Sequence[tuple[str, str]]) -> str | None:
    """Return the subfolder of the LogitScore module, None if there is none."""
    return next((path for name, path in modules if name.rpartition(".")[2] == LOGIT_SCORE), None)


def _logit_score(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the folder's LogitScore module, None if it has none."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        path = logit_score_path([(str(module["type"]), str(module["path"])) for module in modules])
        settings = json.loads((folder / path / "config.json").read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return settings if isinstance(settings, dict) and isinstance(settings.get("true_token_id"), int) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"reranker.template: {path} cannot be read ({error}); name a Jinja file") from None
