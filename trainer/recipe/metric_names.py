"""The names of metrics, as ir_measures spells them."""

from __future__ import annotations

from collections.abc import Sequence

import ir_measures


def unknown_metrics(names: Sequence[str]) -> list[str]:
    """Return those of `names` that ir_measures cannot parse or compute."""
    # gdeval accepts only numbers as ids.
    tools = [tool for tool in ir_measures.DefaultPipeline.providers if tool.NAME != "gdeval" and tool.is_available()]
    unknown = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()  # asserts that required parameters are given
            numbers = [value for value in measure.params.values() if type(value) is int]
            usable = all(number > 0 for number in numbers) and any(tool.supports(measure) for tool in tools)
        except (NameError, ValueError, AttributeError, TypeError, SyntaxError, AssertionError):
            usable = False
        if not usable:
            unknown.append(name)
    return unknown
