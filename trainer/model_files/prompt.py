"""The prompt of a decoder reranker as data: a Jinja template of messages with the roles system, query and document.

The system message is the instruction. The template is the tokenizer's chat template, so that transformers,
sentence-transformers and vLLM build the same prompt from the exported folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainer.errors import ModelError, one_line

FILE = "chat_template.jinja"
ROLES = ("query", "document")
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MARKS = ("\ue000", "\ue001")  # characters of the private use area: no template treats them in a special way
# Pairs that filters would change: by case, punctuation, line breaks, escapes, length, and no text at all.
MARKUP = "<a href='x'>&amp; \"q\"</a>\n{{ B }}\r\n  two"
PROBES = (("what is B?", "A, and b"), (f"is {MARKUP}?", f"{MARKUP * 2000}."), ("", "x"), ("x", ""))
EXAMPLE = """{{ (messages | selectattr("role", "eq", "document") | first).content }}"""


class Prompt(NamedTuple):
    """The constant text of a prompt around its two texts."""

    before: str
    between: str
    after: str
    query_first: bool
    stripped: tuple[bool, bool]  # whether the template strips white space around query and document


def read_prompt(template: str, special: Mapping[str, str]) -> Prompt:
    """Return the constant text of a template; `special` are the tokenizer's special tokens by name.

    Raises ModelError if the template fails, changes a text, does not render query and document once each, or puts no
    text between them.
    """
    text = render(template, special, MARKS)
    for role, mark in zip(ROLES, MARKS, strict=True):
        if (count := text.count(mark)) != 1:
            raise ModelError(
                f"renders the {role} {count} times instead of once; name a Jinja file as reranker.template that "
                f'renders one message with role "{role}", e.g. {EXAMPLE.replace("document", role)}'
            )
    first, second = sorted(MARKS, key=text.index)
    before, rest = text.split(first)
    between, after = rest.split(second)
    if not between:
        raise ModelError("renders no text between query and document, so that a model cannot tell them apart")
    wide = render(template, special, [f"\t{mark}\t" for mark in MARKS])
    stripped = (f"\t{MARKS[0]}\t" not in wide, f"\t{MARKS[1]}\t" not in wide)
    prompt = Prompt(before, between, after, first == MARKS[0], stripped)
    for texts in PROBES:
        expected = prompt.before + prompt.between.join(texts if prompt.query_first else texts[::-1]) + prompt.after
        if render(template, special, texts) != expected:
            raise ModelError(
                "changes or shortens the texts that it renders, so that they cannot be tokenised on their own"
            )
    return prompt


def render(template: str, special: Mapping[str, str], texts: Sequence[str]) -> str:
    """Return the prompt of a query and a document; raises ModelError if the template fails."""
    messages = [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=True)]
    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=False, **special)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ModelError(
            f"cannot be rendered with a query and a document ({one_line(error)[:200]}); name a Jinja file with these "
            "two roles as reranker.template"
        ) from None


def with_instruction(template: str, instruction: str | None, special: Mapping[str, str]) -> str:
    """Return the template with this instruction as its default, for programs that pass no system message.

    Raises ModelError if the template does not render a system message.
    """
    if not instruction:
        return template
    message = json.dumps([{"role": "system", "content": instruction}], ensure_ascii=False)
    added = (
        '{% if not messages | selectattr("role", "eq", "system") | list %}'
        f"{{% set messages = {message} + messages %}}{{% endif %}}{template}"
    )
    if render(added, special, MARKS) == render(template, special, MARKS):
        raise ModelError("renders no instruction (a system message); remove reranker.instruction, or name a template")
    return added


def saved_template(folder: Path) -> str | None:
    """Return the chat template in a model's folder, None if it has none."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    template = _tokenizer_config(folder).get("chat_template")
    return template if isinstance(template, str) else None


def saved_instruction(folder: Path) -> str | None:
    """Return the system message that sentence-transformers passes by default (its default prompt), None without one."""
    config = _settings(folder / "config_sentence_transformers.json")
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    instruction = prompts.get(name) if isinstance(prompts, dict) else None
    return instruction if isinstance(instruction, str) and config.get("model_type") == "CrossEncoder" else None


def saved_special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens by name that the tokenizer's settings in a folder hold."""
    config = _tokenizer_config(folder)
    tokens = {name: config.get(name) for name in SPECIAL}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def has_prompt(folder: Path) -> bool:
    """Return whether the chat template in a model's folder renders both a query and a document."""
    return has_roles(saved_template(folder), saved_special_tokens(folder))


def has_roles(template: str | None, special: Mapping[str, str]) -> bool:
    """Return whether a chat template renders both a query and a document."""
    try:
        return template is not None and bool(read_prompt(template, special))
    except ModelError:
        return False


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    return _settings(folder / "tokenizer_config.json")


def _settings(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, empty if there is no such file with an object."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


@lru_cache
def _compiled(template: str) -> jinja2.Template:
    """Return a template with the settings with which transformers renders chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
