"""Corruptions: what the encoder sees of a text, what the decoder has to rebuild, and which head can do it.

A corruption is a small dataclass whose fields are its settings; `CORRUPTIONS` names them for recipes. Adding one is a
class and a row here. It is pure: all randomness comes in as uniform noise, drawn by the collator that holds it.

Letters: B texts, N tokens of a text, N' positions of the decoder (N unless said otherwise).
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ...configuration_concept import ConceptEncoderConfig
from ...modeling_concept import ConceptEncoderForDiffusionMLM, ConceptEncoderForMaskedLMPerceiver, ConceptMaskedLMModel
from ...utils.command_line import did_you_mean
from ...utils.fields import annotations, typed
from .schedules import get_schedule


class Text(NamedTuple):
    """A clean batch: `input_ids` (B, N), `real` (B, N) bool, `eligible` (B, N) bool (real and not special)."""

    input_ids: Tensor
    real: Tensor
    eligible: Tensor
    mask_token_id: int
    pad_token_id: int


class Noise(NamedTuple):
    """Uniform noise in [0, 1): `rows` (R, B), one number per text, and `tokens` (K, B, N), one per token."""

    rows: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> "Noise":
        return Noise(self.rows.to(device), self.tokens.to(device))


def chosen_tokens(eligible: Tensor, noise: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor]:
    """(B, N) bool twice: the eligible tokens with noise below `rate`, and these plus the one of least noise where a
    text would have none. `rate` is a number or (B, 1)."""
    drawn = eligible & (noise < rate)
    least = torch.where(eligible, noise, torch.inf).argmin(-1, keepdim=True)
    lacking = eligible.any(-1, keepdim=True) & ~drawn.any(-1, keepdim=True)
    places = torch.arange(noise.shape[1], device=noise.device)
    return drawn, drawn | (lacking & (places == least))


def pack(keep: Tensor, *tensors: tuple[Tensor, int | float]) -> tuple[Tensor, ...]:
    """`keep` (B, N) bool and (B, N) tensors with only the kept places, moved together to the left, in their order.

    Each tensor comes with the value that fills its rows up to the longest.
    """
    width = max(int(keep.sum(-1).max()), 1)
    order = (~keep).long().argsort(dim=-1, stable=True)[:, :width]  # (B, N')
    kept = keep.gather(-1, order)
    return kept, *(tensor.gather(-1, order).masked_fill(~kept, fill) for tensor, fill in tensors)


@dataclass
class Corruption:
    """Base of the corruptions; called, it makes a batch of inputs of `head`.

    Args:
        position_share: share of the positions to rebuild, in (0, 1], drawn to carry the training loss, each weighing
            1 / share: the expected gradient is that of all of them, at that share of the product with the vocabulary.

    Attributes:
        head: class of the model that can undo it.
        needs: fields of the model's configuration, and the value that each must have.
        row_draws, token_draws: how many numbers per text and per token it takes from `Noise`.
        own_decoder_ids: whether the decoder is given ids of its own, and not what the encoder reads.
        stratified: whether the first number per text is evenly spread over the global batch.
    """

    head: ClassVar[type[ConceptMaskedLMModel]]
    needs: ClassVar[dict[str, Any]] = {}
    row_draws: ClassVar[int] = 1
    token_draws: ClassVar[int] = 1
    own_decoder_ids: ClassVar[bool] = True
    stratified: ClassVar[bool] = False
    _: KW_ONLY
    position_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.position_share <= 1:
            raise ValueError(f"position_share must be in (0, 1], got {self.position_share}")

    def __call__(self, text: Text, noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        """Inputs of `head`, `labels` (B, N') on every position to rebuild included, and

        `loss_weights` (B, N'), what each weighs; `num_items` (B,), what each text adds to the denominator of the loss.
        `timesteps` (B,) take the place of the drawn ones where there are any.
        """
        raise NotImplementedError

    def check(self, config: ConceptEncoderConfig) -> None:
        """ValueError if a model of this configuration cannot undo the corruption."""
        name = self.name
        for field, value in self.needs.items():
            if getattr(config, field) != value:
                raise ValueError(
                    f"corruption {name!r} needs {field}={value!r}, got {getattr(config, field)!r}; set it in the "
                    f"model section of the recipe, or with --{field} {value}"
                )

    @property
    def name(self) -> str:
        """Its name in `CORRUPTIONS`."""
        return next(name for name, cls in CORRUPTIONS.items() if type(self) is cls)

    def _ordered(self, *names: str) -> None:
        low, high = (getattr(self, name) for name in names)
        if not 0 < low <= high < 1:
            raise ValueError(f"{names[0]} and {names[1]} need 0 < min <= max < 1, got {low} and {high}")

    def _rate(self, name: str) -> None:
        if not 0 < getattr(self, name) < 1:
            raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")


@dataclass
class Diffusion(Corruption):
    """Absorbing-state diffusion: the encoder sees the clean text, the decoder one with each token masked with
    probability 1 - alpha(t), and rebuilds the masked ones.

    Special tokens are never masked. A text without any masked token gets the one with the least noise masked; with
    weighting "elbo" this token weighs 0, so that the bound stays unbiased.

    Args:
        schedule: name in `SCHEDULES`, the keep probability alpha(t).
        t_min, t_max: timesteps are uniform over (t_min, t_max], within [0, 1].
        t_sampling: "independent" per text, or "antithetic": one uniform draw, then even spacing over the global batch.
        weighting: weight of a masked token in the loss. "none": 1, a mean over masked tokens. "elbo": the schedule's
            exact weight (1 / t for linear), a sum over all tokens that could be masked, divided by their number.

    Raises:
        ValueError: t_min >= t_max or outside [0, 1]; unknown choice.
    """

    schedule: str = "linear"
    t_min: float = 0.0
    t_max: float = 1.0
    t_sampling: Literal["independent", "antithetic"] = "antithetic"
    weighting: Literal["none", "elbo"] = "elbo"
    head = ConceptEncoderForDiffusionMLM

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(f"timesteps need 0 <= t_min < t_max <= 1, got t_min={self.t_min}, t_max={self.t_max}")
        if self.t_sampling not in ("independent", "antithetic"):
            raise ValueError(f"t_sampling must be 'independent' or 'antithetic', got {self.t_sampling!r}")
        if self.weighting not in ("none", "elbo"):
            raise ValueError(f"weighting must be 'none' or 'elbo', got {self.weighting!r}")
        self._schedule = get_schedule(self.schedule)

    @property
    def stratified(self) -> bool:  # type: ignore[override]
        return self.t_sampling == "antithetic"

    def __call__(self, text: Text, noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        """The batch as in `Corruption`; its `timesteps` are the masking rates 1 - alpha(t), t for the linear
        schedule."""
        return {"input_ids": text.input_ids, "attention_mask": text.real.long(), **self._mask(text, noise, timesteps)}

    def timesteps(self, noise: Noise) -> Tensor:
        """(B,) in (t_min, t_max]."""
        return self.t_max - (self.t_max - self.t_min) * noise.rows[0]

    def _mask(self, text: Text, noise: Noise, timesteps: Tensor | None) -> dict[str, Tensor]:
        if timesteps is None:
            timesteps = self.timesteps(noise)
        rate = 1 - self._schedule.alpha(timesteps.double()).float()  # (B,)
        drawn, masked = chosen_tokens(text.eligible, noise.tokens[0], rate[:, None])
        if self.weighting == "elbo":
            weights = self._schedule.elbo_weight(timesteps)[:, None] * drawn
        else:
            weights = masked.float()
        return {
            "decoder_input_ids": text.input_ids.masked_fill(masked, text.mask_token_id),
            "timesteps": rate,
            "labels": text.input_ids.masked_fill(~masked, -100),
            "loss_weights": weights,
            "num_items": (text.eligible if self.weighting == "elbo" else masked).sum(-1),
        }


@dataclass
class Prefix(Diffusion):
    """The encoder sees the beginning of a text, the decoder rebuilds the rest by diffusion; copying cannot help.

    The prefix is a share of the real tokens, uniform in [min_prefix, max_prefix) and at least one. Both parts are
    packed to the left: positions of the decoder count from the first token of the rest.
    """

    min_prefix: float = 0.3
    max_prefix: float = 0.5
    row_draws = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ordered("min_prefix", "max_prefix")

    def __call__(self, text: Text, noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        share = self.min_prefix + (self.max_prefix - self.min_prefix) * noise.rows[1]
        length = (share * text.real.sum(-1)).floor().clamp_min(1)
        prefix = text.real & (text.real.cumsum(-1) <= length[:, None])
        rest = text.real & ~prefix
        masked = self._mask(text._replace(eligible=text.eligible & rest), noise, timesteps)
        seen, encoder_ids = pack(prefix, (text.input_ids, text.pad_token_id))
        behind, decoder_ids, labels, weights = pack(
            rest,
            (masked["decoder_input_ids"], text.pad_token_id),
            (masked["labels"], -100),
            (masked["loss_weights"], 0),
        )
        return {
            **masked,
            "input_ids": encoder_ids,
            "attention_mask": seen.long(),
            "decoder_input_ids": decoder_ids,
            "decoder_attention_mask": behind.long(),
            "labels": labels,
            "loss_weights": weights,
        }


@dataclass
class TwoView(Corruption):
    """Two masked views of a text, drawn apart: a light one for the encoder, a heavy one that the decoder rebuilds.

    Rates are uniform over their ranges, per text. The loss is a mean over the tokens masked for the decoder.

    Source: RetroMAE (Xiao et al. 2022, arXiv:2205.12035). Differs: rates are ranges, and the decoder is the one of
    masked diffusion, its timestep the masking rate of its view.
    """

    min_encoder_rate: float = 0.15
    max_encoder_rate: float = 0.3
    min_decoder_rate: float = 0.5
    max_decoder_rate: float = 0.7
    head = ConceptEncoderForDiffusionMLM
    row_draws = 2
    token_draws = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ordered("min_encoder_rate", "max_encoder_rate")
        self._ordered("min_decoder_rate", "max_decoder_rate")

    def __call__(self, text: Text, noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        light = self.min_encoder_rate + (self.max_encoder_rate - self.min_encoder_rate) * noise.rows[0]
        heavy = self.min_decoder_rate + (self.max_decoder_rate - self.min_decoder_rate) * noise.rows[1]
        hidden, _ = chosen_tokens(text.eligible, noise.tokens[0], light[:, None])
        _, masked = chosen_tokens(text.eligible, noise.tokens[1], heavy[:, None])
        return {
            "input_ids": text.input_ids.masked_fill(hidden, text.mask_token_id),
            "attention_mask": text.real.long(),
            "decoder_input_ids": text.input_ids.masked_fill(masked, text.mask_token_id),
            "timesteps": heavy,
            **_mean_over(masked, text),
        }


@dataclass
class MaskedLanguageModeling(Corruption):
    """Encoder and decoder see one masked text, the masked tokens are rebuilt.

    Source: BERT (Devlin et al. 2019, arXiv:1810.04805). Differs: every chosen token becomes [MASK], none is kept or
    replaced: a kept token would be handed to the decoder by its own query.
    """

    masking_rate: float = 0.15
    head = ConceptEncoderForMaskedLMPerceiver
    own_decoder_ids = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rate("masking_rate")

    def __call__(self, text: Text, noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        _, masked = chosen_tokens(text.eligible, noise.tokens[0], self.masking_rate)
        ids = text.input_ids.masked_fill(masked, text.mask_token_id)
        return {"input_ids": ids, "attention_mask": text.real.long(), **_mean_over(masked, text)}


@dataclass
class Deletion(Corruption):
    """The encoder sees what is left of a text after deletion, the decoder rebuilds every real token by position alone.

    Special tokens are never deleted, and one token is always left. What is left is packed to the left, so that the
    encoder cannot see where something is missing; the decoder's ids are all [MASK].

    Source: TSDAE (Wang et al. 2021, arXiv:2104.06979). Differs: position queries and all positions at once in place of
    an autoregressive decoder.
    """

    deletion_rate: float = 0.6
    head = ConceptEncoderForMaskedLMPerceiver
    needs = {"decoder_query": "position"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rate("deletion_rate")

    def __call__(self, text: Text, noise: Noise, timesteps: Tensor | None = None) -> dict[str, Tensor]:
        _, kept = chosen_tokens(text.eligible, 1 - noise.tokens[0], 1 - self.deletion_rate)
        seen, ids = pack(kept | (text.real & ~text.eligible), (text.input_ids, text.pad_token_id))
        return {
            "input_ids": ids,
            "attention_mask": seen.long(),
            "decoder_input_ids": torch.full_like(text.input_ids, text.mask_token_id),
            **_mean_over(text.real, text),
        }


def _mean_over(rebuilt: Tensor, text: Text) -> dict[str, Tensor]:
    """Labels, weights and number of items of a mean over the tokens `rebuilt` (B, N)."""
    return {
        "labels": text.input_ids.masked_fill(~rebuilt, -100),
        "loss_weights": rebuilt.float(),
        "num_items": rebuilt.sum(-1),
    }


CORRUPTIONS: dict[str, type[Corruption]] = {
    "diffusion": Diffusion,
    "mlm": MaskedLanguageModeling,
    "tsdae": Deletion,
    "prefix": Prefix,
    "two_view": TwoView,
}


def build_corruption(given: str | Mapping[str, Any]) -> Corruption:
    """The corruption of a name, or of a mapping from one name to its settings: `{"tsdae": {"deletion_rate": 0.6}}`.

    Raises:
        ValueError: not such a mapping; a corruption or a setting that is unknown; a value that a setting cannot have.
    """
    if isinstance(given, Mapping) and len(given) != 1:
        raise ValueError(f"corruption must be one name, or a mapping from one name to its settings, got {given!r}")
    name, settings = next(iter(given.items())) if isinstance(given, Mapping) else (given, None)
    if name not in CORRUPTIONS:
        hint = did_you_mean(name, CORRUPTIONS)
        raise ValueError(f"Unknown corruption {name!r}. Available: {', '.join(CORRUPTIONS)}{hint}")
    if not isinstance(settings, Mapping | None):
        raise ValueError(f"the settings of corruption {name!r} must be a mapping, got {settings!r}")
    legal = annotations(CORRUPTIONS[name])
    for setting in settings or {}:
        if setting not in legal:
            raise ValueError(f"Unknown setting {setting!r} of corruption {name!r}. Available: {', '.join(legal)}")
    values = {key: typed(f"{key} of {name}", value, legal[key]) for key, value in (settings or {}).items()}
    return CORRUPTIONS[name](**values)
