"""A cross-encoder head that starts from what a bi-encoder or raw encoder already knows.

A fresh [CLS] classifier has to learn from a few hundred labels what relevance is. This head instead compares the
token states of a jointly read pair, as late interaction does (ColBERT: Khattab and Zaharia, SIGIR 2020), so that the
model ranks sensibly before the first step and fine-tuning only has to improve it:

- every query token takes its largest cosine with any document token; the mean over query tokens, weighted by how
  rare a token is in the corpus, is one feature; the other direction is the second; the cosine of the mean states of
  query and document is the third; all three at several hidden layers, mixed by learned weights;
- attention between query and document is damped by a constant: an encoder that never saw two texts at once
  otherwise mixes them until everything resembles everything;
- four lexical signals see exact words, which contextual states blur: BM25 of the word pieces, BM25 as a share of the
  query's idf, the share of the query's idf that occurs in the document, and the logarithm of the document's length;
- a linear term on the first token's state, zero at the start, learns the rest.

The file stands alone (torch and transformers, 4.51 to 5): an export carries it, and
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` needs nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

try:
    from transformers import PreTrainedConfig
except ImportError:  # its name before transformers 5
    from transformers import PretrainedConfig as PreTrainedConfig

SHARPNESS = 50.0  # cosines of candidates differ by hundredths, logits have to by units
BEFORE_5 = int(transformers.__version__.partition(".")[0]) < 5
FEATURES = 3  # of a layer: query to document, document to query, mean to mean
LEXICAL = 4  # BM25, BM25 / idf, share of the idf found, log length
K1, B = 0.9, 0.4  # BM25's saturation and length normalisation (Anserini's defaults)


class InteractionConfig(PreTrainedConfig):
    """The encoder's own configuration as a dictionary, and how the head reads it."""

    model_type = "interaction"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (),
        damping: float = 4.0,
        separator_id: int = 0,
        opening_id: int | None = None,
        special_ids: tuple[int, ...] = (),
        lexical: bool = False,  # heads saved before there were lexical signals have none
        **kwargs: Any,
    ) -> None:
        # The type of the encoder's weights is that of the whole model, whatever it was when they were saved.
        self.encoder = {name: value for name, value in (encoder or {}).items() if name not in ("dtype", "torch_dtype")}
        self.layers = list(layers)
        self.damping = damping
        self.separator_id = separator_id
        self.opening_id = opening_id
        self.special_ids = list(special_ids)
        self.lexical = lexical
        for name in ("vocab_size", "hidden_size", "max_position_embeddings", "pad_token_id"):
            kwargs.setdefault(name, self.encoder.get(name))
        kwargs.setdefault("num_labels", 1)
        super().__init__(**kwargs)


class InteractionForSequenceClassification(PreTrainedModel):
    """One relevance logit for a pair that the tokenizer has joined as `[CLS] query [SEP] [CLS] document [SEP]`."""

    idf: Tensor
    average_length: Tensor

    config_class = InteractionConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: InteractionConfig) -> None:
        super().__init__(config)
        settings = dict(config.encoder)
        encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        encoder_config._attn_implementation = _attention_of(encoder_config, config._attn_implementation)
        self.encoder = AutoModel.from_config(encoder_config)
        _accept_bias(self.encoder)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # never read here, and data parallelism wants a gradient for every weight
        self.mixture = nn.Parameter(torch.zeros(len(config.layers), FEATURES))
        self.token_weights = nn.Parameter(torch.ones(encoder_config.vocab_size))
        self.classifier = nn.Linear(encoder_config.hidden_size, 1)
        if config.lexical:
            self.lexical = nn.Parameter(torch.zeros(LEXICAL))
            self.register_buffer("idf", torch.ones(encoder_config.vocab_size))
            self.register_buffer("average_length", torch.ones(()))  # tokens of a document, as far as it is read
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the encoder brings its weights, and the head's start is `start_head`."""

    @torch.no_grad()
    def start_head(self, idf: Tensor, average_length: float = 1.0) -> None:
        """Set the weights that a head begins with, from the corpus: idf (vocabulary,) and tokens of a document.

        The query's direction counts most, and deeper layers more (docs/results.md); lexical signals count nothing yet.
        """
        self.token_weights.copy_(idf)
        mixture = torch.zeros_like(self.mixture)
        mixture[:, 0] = torch.linspace(2.0, 14.0, len(mixture))
        mixture[:, 1] = 1.0
        weights = mixture.flatten()
        if self.config.lexical:
            self.idf.copy_(idf)
            self.average_length.fill_(average_length)
            weights = torch.cat([weights, weights.new_zeros(LEXICAL)])
        self.mix(weights)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @torch.no_grad()
    def mix(self, weights: Tensor) -> None:
        """Set how signals are mixed: (signals,) logits per unit of signal."""
        scaled = weights / SHARPNESS
        self.mixture.copy_(scaled[: self.mixture.numel()].view_as(self.mixture))
        if self.config.lexical:
            self.lexical.copy_(scaled[self.mixture.numel() :])

    @torch.no_grad()
    def shift(self, amount: float) -> None:
        """Add a constant to every logit; the order of documents stays."""
        self.classifier.bias.add_(amount)

    def signals(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the signals (batch, signals) and first states (batch, hidden) of (batch, length) ids."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        query, document, behind = self.texts(input_ids, real.bool())
        bias = self._attention_bias(behind, real.bool())
        outputs = self.encoder(input_ids=input_ids, attention_mask=bias, output_hidden_states=True)
        # transformers 4 lists ModernBERT's last states without their norm.
        every = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
        states = [every[layer] for layer in self.config.layers]
        return self.compare(states, input_ids, query, document), outputs.last_hidden_state[:, 0]

    def texts(self, input_ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks of the query's tokens, the document's, and all behind the query: (batch, length) bool each.

        The document begins behind the first separator that the document's own [CLS] follows, so that a separator in the
        query's text, where a tokenizer turns it into one, is not taken for it.
        """
        separators = input_ids == self.config.separator_id
        if self.config.opening_id is not None:
            separators = separators & (input_ids.roll(-1, dims=1) == self.config.opening_id)
        separators = separators.long()
        behind = (separators.cumsum(dim=1) - separators) > 0
        special = torch.zeros_like(real)
        for identity in self.config.special_ids:
            special = special | (input_ids == identity)
        return real & ~special & ~behind, real & ~special & behind, behind

    def compare(self, states: list[Tensor], input_ids: Tensor, query: Tensor, document: Tensor) -> Tensor:
        """Return the signals (batch, layers * 3 + 4) of the compared layers' states (batch, length, hidden) and ids."""
        weights = self.token_weights.clamp(min=0)[input_ids]
        device = input_ids.device.type
        # Cosines differ by hundredths, and near 1 those of bf16 come in steps of .004.
        exact = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with exact:
            signals = torch.cat([_compare(one, query, document, weights) for one in states], dim=1)
            if not self.config.lexical:
                return signals
            return torch.cat([signals, self.compare_words(input_ids, query, document).to(signals.dtype)], dim=1)

    def compare_words(self, input_ids: Tensor, query: Tensor, document: Tensor) -> Tensor:
        """Return the lexical signals (batch, 4) of (batch, length) ids; a document counts as far as it is read."""
        idf = self.idf[input_ids] * query
        same = (input_ids[:, :, None] == input_ids[:, None, :]) & document[:, None, :]
        frequency = same.sum(dim=2).to(idf.dtype)  # of each token in the document
        length = document.sum(dim=1, keepdim=True).to(idf.dtype)
        saturation = frequency + K1 * (1 - B + B * length / self.average_length)
        bm25 = (idf * frequency * (K1 + 1) / saturation).sum(dim=1)
        total = idf.sum(dim=1).clamp(min=1e-6)
        found = (idf * (frequency > 0)).sum(dim=1)
        return torch.stack([bm25, bm25 / total, found / total, torch.log(length[:, 0] + 1)], dim=1)

    def combine(self, signals: Tensor, first: Tensor) -> Tensor:
        """Return logits (batch, 1) of signals (batch, signals) and first states (batch, hidden)."""
        weights = self.mixture.flatten()
        if self.config.lexical:
            weights = torch.cat([weights, self.lexical])
        mixed = SHARPNESS * (signals * weights).sum(dim=1)
        return self.classifier(first) + mixed[:, None]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor]:
        """Logits (batch, 1) for (batch, length) ids; the separator, not `token_type_ids`, tells the texts apart."""
        logits = self.combine(*self.signals(input_ids, attention_mask))
        return SequenceClassifierOutput(logits=logits) if return_dict is not False else (logits,)

    def _attention_bias(self, behind: Tensor, real: Tensor) -> Tensor | dict[str, Tensor]:
        """(batch, 1, length, length) added to attention scores: damping across the texts, minus infinity on padding."""
        dtype = self.encoder.dtype
        across = (behind[:, :, None] != behind[:, None, :]).to(dtype)
        least = torch.finfo(torch.float16).min  # float32's would be infinite in half precision
        bias = (across * -self.config.damping).masked_fill(~real[:, None, :], least)[:, None]
        config = self.encoder.config
        window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", 0) // 2
        if "sliding_attention" not in (getattr(config, "layer_types", None) or []) or not window:
            return bias
        places = torch.arange(bias.shape[-1], device=bias.device)
        far = (places[:, None] - places[None, :]).abs() > window
        return {"full_attention": bias, "sliding_attention": bias.masked_fill(far, least)}


def _attention_of(config: Any, attention: str | None) -> str | None:
    """Return the kind of attention that the encoder has; in transformers 4 that is not sdpa for all of them."""
    encoder: Any = transformers.MODEL_MAPPING[type(config)]
    return "eager" if BEFORE_5 and not encoder._supports_sdpa else attention


def _accept_bias(encoder: Any) -> None:
    """Make an encoder of transformers 4 add a (batch, 1, length, length) bias as it is; those of 5 do."""
    if not BEFORE_5:
        return
    encoder.get_extended_attention_mask = _unless_bias(encoder.get_extended_attention_mask)
    encoder._update_attention_mask = lambda biases, *_, **__: (biases["full_attention"], biases["sliding_attention"])
    module, name = sys.modules[type(encoder).__module__], "_prepare_4d_attention_mask_for_sdpa"  # ALBERT, DistilBERT
    if hasattr(module, name) and not hasattr(getattr(module, name), "__wrapped__"):
        setattr(module, name, _unless_bias(getattr(module, name)))


def _unless_bias(expand: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap what expands a (batch, length) mask, so that it returns a bias unchanged."""

    @wraps(expand)
    def expand_masks(mask: Tensor, *others: Any, **named: Any) -> Tensor:
        return mask if mask.dim() == 4 else expand(mask, *others, **named)

    return expand_masks


def _compare(states: Tensor, query: Tensor, document: Tensor, weights: Tensor) -> Tensor:
    """The three features (batch, 3) of one layer's states (batch, length, hidden)."""
    unit = functional.normalize(states.float(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    best_in_document = cosines.masked_fill(~document[:, None, :], -1.0).amax(dim=2)
    best_in_query = cosines.masked_fill(~query[:, None, :], -1.0).amax(dim=2)
    means = functional.cosine_similarity(_mean(states.float(), query), _mean(states.float(), document), dim=1)
    return torch.stack(
        [
            _mean(best_in_document[..., None], query * weights)[:, 0],
            _mean(best_in_query[..., None], document * weights)[:, 0],
            means,
        ],
        dim=1,
    )


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over tokens: (batch, length, width) and (batch, length) to (batch, width)."""
    weights = weights.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)
