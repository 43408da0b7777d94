"""The section `retriever` of a recipe: the first stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import Stemmer
from pydantic import Field, ValidationInfo, field_validator

from trainer.errors import did_you_mean
from trainer.recipe.section import Section

MINING_DEPTH = 200  # least depth of the train queries' candidates and of every list in the fusion
UNSPACED = ("chinese", "japanese", "thai", "lao", "khmer", "burmese")  # languages written without spaces


class Retriever(Section):
    """The first stage, which retrieves candidates for mining, dev and test; it is not trained."""

    kind: Literal["dense", "bm25", "hybrid", "run"] = "hybrid"
    """dense: a bi-encoder; bm25: BM25; hybrid: both, fused; run: a TREC run of your own engine."""
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Bi-encoder, as a Hub id, folder, or package:NAME/SUBFOLDER."""
    trust_remote_code: bool = False
    """Run the Python code in the bi-encoder's folder; set it only for code that you have read."""
    depth: int = Field(default=50, ge=1, le=1000)
    """Number of candidates per query; train queries get at least 200, for mining."""
    max_length: int = Field(default=256, ge=8)
    """Maximum length of a document for the bi-encoder, in tokens; the rest is cut off."""
    query_prompt: str | None = None
    """Text that precedes every query for the bi-encoder, e.g. "query: "; null: the model's own prompt."""
    document_prompt: str | None = None
    """Text that precedes every document for the bi-encoder, e.g. "passage: "; null: the model's own prompt."""
    index: Literal["auto", "flat", "ivf"] = "auto"
    """flat: exact search from disk; ivf: approximate search in memory (FAISS); auto: ivf if flat would take more than
    about an hour, else flat."""
    language: str = "auto"
    """Language of BM25's stemmer and stop words; japanese, chinese, thai ...: pairs of characters; none: plain words;
    auto: detected."""
    run: Path | None = Field(default=None, validate_default=True)
    """TREC run file with the queries of all splits; needs kind: run."""
    fuse_run: bool = Field(default=False, validate_default=True)
    """Fuse the TREC run with the bi-encoder and BM25; needs kind: run."""
    tune: Literal["auto", "on", "off"] = "auto"
    """Tune BM25 (k1, b, stop words, stemming) and the fusion's weights on the train queries, or on dev if the stage
    generate makes those; auto: on 50 or more that people asked."""
    fusion: Literal["weighted", "rrf"] = "weighted"
    """weighted: weighted sum of standardised scores (rrf if the weights are not tuned); rrf: reciprocal rank fusion."""

    @property
    def bi_encoder(self) -> str | None:
        """The bi-encoder of the first stage, None if it has none."""
        return self.model if self.kind in ("dense", "hybrid") or self.fuse_run else None

    @property
    def has_bm25(self) -> bool:
        """True if BM25 is one of the engines."""
        return self.kind in ("bm25", "hybrid") or self.fuse_run

    @property
    def is_fused(self) -> bool:
        """True if there are several engines."""
        return self.kind == "hybrid" or self.fuse_run

    @field_validator("tune", mode="before")
    @classmethod
    def _undo_yaml_booleans(cls, tune: Any) -> Any:
        return {True: "on", False: "off"}[tune] if isinstance(tune, bool) else tune  # YAML reads on and off as booleans

    @field_validator("fuse_run")
    @classmethod
    def _require_run_to_fuse(cls, fuse_run: bool, info: ValidationInfo) -> bool:
        kind = info.data.get("kind")
        if fuse_run and kind not in (None, "run"):
            raise ValueError(f"there is no run to fuse with kind: {kind}; use kind: run with a run file, or remove it")
        return fuse_run

    @field_validator("language")
    @classmethod
    def _require_known_language(cls, language: str) -> str:
        if language not in (known := [*Stemmer.algorithms(), *UNSPACED, "auto", "none"]):
            raise ValueError(f"no stemmer for {language!r}{did_you_mean(language, known)}")
        return language

    @field_validator("run")
    @classmethod
    def _require_matching_kind(cls, run: Path | None, info: ValidationInfo) -> Path | None:
        kind = info.data.get("kind")
        if kind == "run" and run is None:
            raise ValueError("kind: run needs the TREC run file here, e.g. run: my_engine.trec")
        if kind not in (None, "run") and run is not None:
            raise ValueError(f"a run file is only used with kind: run, but kind is {kind}; remove one of them")
        return run
