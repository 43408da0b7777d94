"""The LoRA adapter of an exported model, compared with the merged weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import ExportError
from trainer.inference.gate import TOLERANCE, largest_difference
from trainer.model import Reranker


def difference_to_merged(
    start: Path, adapter: Path, reranker: Reranker, pairs: Sequence[tuple[str, str]], trust_remote_code: bool
) -> float:
    """Return the largest difference of the scores of model and adapter to those of the merged weights, in float32.

    `start` is the model before training. Raises ExportError above the tolerance of rounding errors.
    """
    from peft import PeftModel

    base = Reranker.load(
        start, head="trained", precision="fp32", max_length=reranker.max_length, trust_remote_code=trust_remote_code
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is deprecated
        warnings.simplefilter("ignore", FutureWarning)
        PeftModel.from_pretrained(base.model, str(adapter))
    difference = largest_difference(base.score(pairs), reranker.score(pairs))
    if difference > TOLERANCE:
        raise ExportError(
            f"export: the adapter's scores differ by {difference:.1e} from those of the merged weights, more than the "
            f"{TOLERANCE} of rounding errors; nothing was exported; please report this with the name of the base model"
        )
    return difference
