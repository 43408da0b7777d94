"""A cross-encoder head that makes use of the token similarities of a pre-trained bi-encoder or encoder.

A fresh [CLS] classifier has to learn relevance from a few hundred labels. This head instead compares the token states
of the jointly encoded pair by late interaction (ColBERT: Khattab and Zaharia, SIGIR 2020), so that the model ranks
reasonably before the first training step:

- MaxSim: every query token takes its largest cosine with any document token; the mean over query tokens, weighted by
  idf, is the first feature, the other direction is the second, and the cosine of the mean states of query and document
  is the third; all three are computed at several hidden layers and mixed by learned weights;
- a constant bias (`damping`) is subtracted from the attention scores between query and document: an encoder trained on
  single texts otherwise mixes the two until all token states are similar;
- four lexical signals for exact matches, which contextual states lose: BM25 of the word pieces, BM25 divided by the
  query's total idf, the share of the query's idf that occurs in the document, and the logarithm of the document length;
- a linear term on the first token's state, zero at the start, for everything else.

The file depends only on torch and transformers (4.51 to 5), because exports contain it:
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

SHARPNESS = 50.0  # inverse temperature: cosines of candidates differ by hundredths, logits should by units
BEFORE_5 = int(transformers.__version__.partition(".")[0]) < 5
FEATURES = 3  # of each layer: query to document, document to query, mean to mean
LEXICAL = 4  # BM25, BM25 / idf, matched share of the idf, log length
K1, B = 0.9, 0.4  # BM25's saturation and length normalisation (Anserini's defaults)


class InteractionConfig(PreTrainedConfig):
    """The encoder's configuration as a dictionary, and the settings of the head.

    `damping` is the bias subtracted from the attention scores between query and document.
    """

    model_type = "interaction"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (),
        damping: float = 4.0,
        separator_id: int = 0,
        opening_id: int | None = None,
        special_ids: tuple[int, ...] = (),
        lexical: bool = False,  # False for heads saved before lexical signals were added
        **kwargs: Any,
    ) -> None:
        # The encoder's weights take the dtype of the model, not the one they were saved in.
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
    """A cross-encoder with one relevance logit for pairs joined as `[CLS] query [SEP] [CLS] document [SEP]`."""

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
            self.encoder.pooler = None  # not used here, and data parallelism needs a gradient for every weight
        self.mixture = nn.Parameter(torch.zeros(len(config.layers), FEATURES))
        self.token_weights = nn.Parameter(torch.ones(encoder_config.vocab_size))
        self.classifier = nn.Linear(encoder_config.hidden_size, 1)
        if config.lexical:
            self.lexical = nn.Parameter(torch.zeros(LEXICAL))
            self.register_buffer("idf", torch.ones(encoder_config.vocab_size))
            self.register_buffer("average_length", torch.ones(()))  # tokens of a document after truncation
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave all weights unchanged: the encoder's are loaded, and `start_head` initialises the head."""

    @torch.no_grad()
    def start_head(self, idf: Tensor, average_length: float = 1.0) -> None:
        """Initialise the head with the corpus's idf (vocabulary,) and average document length in tokens.

        The query-to-document feature gets the largest weights, increasing with depth (docs/results.md); lexical signals
        get weight 0.
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
        """Set the weights (signals,) of the signals, in logits per unit of signal."""
        scaled = weights / SHARPNESS
        self.mixture.copy_(scaled[: self.mixture.numel()].view_as(self.mixture))
        if self.config.lexical:
            self.lexical.copy_(scaled[self.mixture.numel() :])

    @torch.no_grad()
    def shift(self, amount: float) -> None:
        """Add a constant to every logit, which keeps the order of documents."""
        self.classifier.bias.add_(amount)

    def signals(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the signals (batch, signals) and first tokens' states (batch, hidden) of ids (batch, length)."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        query, document, second_segment = self.texts(input_ids, real.bool())
        bias = self.attention_bias(second_segment, real.bool())
        outputs = self.encoder(input_ids=input_ids, attention_mask=bias, output_hidden_states=True)
        # In transformers 4 ModernBERT's last entry of hidden_states lacks the final norm.
        every = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
        states = [every[layer] for layer in self.config.layers]
        return self.compare(states, input_ids, query, document), outputs.last_hidden_state[:, 0]

    def texts(self, input_ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks (batch, length) bool of the query's text, the document's text, and the second segment.

        The second segment is everything after the query's separator: the document, its special tokens and padding. That
        separator is the first one followed by the document's [CLS], so that a separator id inside the query's text,
        which some tokenizers produce, is not mistaken for it.
        """
        separators = input_ids == self.config.separator_id
        if self.config.opening_id is not None:
            separators = separators & (input_ids.roll(-1, dims=1) == self.config.opening_id)
        separators = separators.long()
        second_segment = (separators.cumsum(dim=1) - separators) > 0
        special = torch.zeros_like(real)
        for identity in self.config.special_ids:
            special = special | (input_ids == identity)
        return real & ~special & ~second_segment, real & ~special & second_segment, second_segment

    def compare(self, states: list[Tensor], input_ids: Tensor, query: Tensor, document: Tensor) -> Tensor:
        """Return the signals (batch, layers * 3 + 4) of the compared layers' states (batch, length, hidden) and ids.

        `query` and `document` are the masks (batch, length) of `texts`; without lexical signals the 4 are missing.
        """
        weights = self.token_weights.clamp(min=0)[input_ids]
        device = input_ids.device.type
        # In float32: cosines differ by hundredths, and near 1 the resolution of bf16 is .004.
        exact = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with exact:
            signals = torch.cat([_compare(one, query, document, weights) for one in states], dim=1)
            if not self.config.lexical:
                return signals
            return torch.cat([signals, self.compare_words(input_ids, query, document).to(signals.dtype)], dim=1)

    def compare_words(self, input_ids: Tensor, query: Tensor, document: Tensor) -> Tensor:
        """Return the lexical signals (batch, 4) of ids (batch, length), computed on the truncated document."""
        idf = self.idf[input_ids] * query
        same = (input_ids[:, :, None] == input_ids[:, None, :]) & document[:, None, :]
        frequency = same.sum(dim=2).to(idf.dtype)  # of each token in the document
        length = document.sum(dim=1, keepdim=True).to(idf.dtype)
        return word_signals(idf, frequency, length, self.average_length)

    def combine(self, signals: Tensor, first: Tensor) -> Tensor:
        """Return the logits (batch, 1) of signals (batch, signals) and first tokens' states (batch, hidden)."""
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
        """Return the logits (batch, 1) of ids (batch, length); `token_type_ids` are ignored."""
        logits = self.combine(*self.signals(input_ids, attention_mask))
        return SequenceClassifierOutput(logits=logits) if return_dict is not False else (logits,)

    def attention_bias(self, second_segment: Tensor, real: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the bias (batch, 1, length, length) on attention scores: -damping across segments, masked padding.

        For encoders with sliding windows, one bias for each kind of layer.
        """
        dtype = self.encoder.dtype
        across = (second_segment[:, :, None] != second_segment[:, None, :]).to(dtype)
        least = torch.finfo(torch.float16).min  # float32's minimum would be infinite in half precision
        bias = (across * -self.config.damping).masked_fill(~real[:, None, :], least)[:, None]
        config = self.encoder.config
        window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", 0) // 2
        if "sliding_attention" not in (getattr(config, "layer_types", None) or []) or not window:
            return bias
        positions = torch.arange(bias.shape[-1], device=bias.device)
        outside = (positions[:, None] - positions[None, :]).abs() > window
        return {"full_attention": bias, "sliding_attention": bias.masked_fill(outside, least)}


def word_signals(idf: Tensor, frequency: Tensor, length: Tensor, average_length: Tensor | float) -> Tensor:
    """Return the lexical signals (batch, 4): BM25, BM25 / idf, matched share of the idf, and log length.

    `idf` are those of the query's tokens (batch, tokens), 0 for other tokens; `frequency` says how often each token
    occurs in the document, and `length` (batch, 1) how many tokens that has.
    """
    saturation = frequency + K1 * (1 - B + B * length / average_length)
    bm25 = (idf * frequency * (K1 + 1) / saturation).sum(dim=1)
    total = idf.sum(dim=1).clamp(min=1e-6)
    matched = (idf * (frequency > 0)).sum(dim=1)
    return torch.stack([bm25, bm25 / total, matched / total, torch.log(length[:, 0] + 1)], dim=1)


def _attention_of(config: Any, attention: str | None) -> str | None:
    """Return the attention implementation for the encoder; in transformers 4 some encoders do not support sdpa."""
    encoder: Any = transformers.MODEL_MAPPING[type(config)]
    return "eager" if BEFORE_5 and not encoder._supports_sdpa else attention


def _accept_bias(encoder: Any) -> None:
    """Make an encoder of transformers 4 accept a bias (batch, 1, length, length) as mask, as transformers 5 does."""
    if not BEFORE_5:
        return
    encoder.get_extended_attention_mask = _unless_bias(encoder.get_extended_attention_mask)
    encoder._update_attention_mask = lambda biases, *_, **__: (biases["full_attention"], biases["sliding_attention"])
    module, name = sys.modules[type(encoder).__module__], "_prepare_4d_attention_mask_for_sdpa"  # ALBERT, DistilBERT
    if hasattr(module, name) and not hasattr(getattr(module, name), "__wrapped__"):
        setattr(module, name, _unless_bias(getattr(module, name)))


def _unless_bias(expand: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a function that expands a mask (batch, length), so that it returns a four-dimensional bias unchanged."""

    @wraps(expand)
    def expand_masks(mask: Tensor, *others: Any, **named: Any) -> Tensor:
        return mask if mask.dim() == 4 else expand(mask, *others, **named)

    return expand_masks


def _compare(states: Tensor, query: Tensor, document: Tensor, weights: Tensor) -> Tensor:
    """Return the three features (batch, 3) float32 of one layer's states (batch, length, hidden).

    MaxSim from query to document and back (Khattab and Zaharia, SIGIR 2020), and the cosine of the mean states; masks
    and token weights are (batch, length).
    """
    unit = functional.normalize(states.float(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    best_in_document = cosines.masked_fill(~document[:, None, :], -1.0).amax(dim=2)
    best_in_query = cosines.masked_fill(~query[:, None, :], -1.0).amax(dim=2)
    query_mean, document_mean = (_weighted_mean(states.float(), mask) for mask in (query, document))
    means = functional.cosine_similarity(query_mean, document_mean, dim=1)
    return torch.stack(
        [
            _weighted_mean(best_in_document[..., None], query * weights)[:, 0],
            _weighted_mean(best_in_query[..., None], document * weights)[:, 0],
            means,
        ],
        dim=1,
    )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean (batch, width) over tokens of values (batch, length, width) with weights (batch, length)."""
    weights = weights.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)
