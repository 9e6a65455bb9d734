"""Configuration of concept encoders: every architecture knob, checked here."""

import json
import math
import os
from pathlib import Path
from typing import Literal

import transformers
from transformers.activations import ACT2FN
from transformers.utils.versions import require_version

# A checkpoint is loaded by what people have: transformers from 4.57 on.
require_version("transformers>=4.57", "The code of this checkpoint needs it: pip install --upgrade transformers")
if hasattr(transformers.PretrainedConfig, "__dataclass_fields__"):
    from huggingface_hub.dataclasses import strict
    from transformers import PreTrainedConfig
else:  # before 5.4 a configuration is no dataclass: its fields are set here, without a check of their types

    class PreTrainedConfig(transformers.PretrainedConfig):  # type: ignore[no-redef]
        def __init__(self, **kwargs):
            fields = {name: getattr(type(self), name) for name in type(self).__annotations__}
            super().__init__(**{**fields, **kwargs})
            self.__post_init__()
            self.validate_architecture()

        def __post_init__(self):
            pass

    def strict(cls):  # type: ignore[no-redef]
        return cls


# What every checkpoint can be loaded as: its encoder is there, and the classifier is a new head on it. A save adds the
# class that it is of (`save_pretrained`); a decoder that is not in the file is in no map, since it would be random.
AUTO_MAP = {
    "AutoConfig": "configuration_concept.ConceptEncoderConfig",
    "AutoModel": "modeling_concept.ConceptEncoderModel",
    "AutoModelForSequenceClassification": "modeling_concept.ConceptEncoderForSequenceClassificationPerceiver",
}
CLASSIFIER = "ForSequenceClassification"


def with_classifier(architectures: list[str]) -> list[str]:
    """Of a classifier, behind its class a name that ends as sentence-transformers knows classifiers by: without it
    `CrossEncoder(folder)` would make a new one with a single label."""
    if any(name.endswith(CLASSIFIER) for name in architectures):
        return architectures
    return [*architectures, *(f"ConceptEncoder{CLASSIFIER}" for name in architectures if "Classification" in name)]


@strict
class ConceptEncoderConfig(PreTrainedConfig):
    """Architecture of a concept encoder and of the heads built on it.

    Args:
        vocab_size (`int`, default 50368): number of token ids V.
        hidden_size (`int`, default 512): width D of concepts and of the decoder.
        num_hidden_layers (`int`, default 2): encoder layers L; 0 only where concepts start as sums of tokens.
        num_attention_heads (`int`, default 8): heads per attention; must divide `hidden_size`.
        intermediate_size (`int`, default 1024): width of the gated feed-forward.
        num_concepts (`int`, default 128): concept vectors C per text.
        max_position_embeddings (`int`, default 512): longest text N with learned positions.
        token_embedding_size (`int`, optional): width of the encoder's token embeddings; projected to `hidden_size`
            when smaller. `None` means `hidden_size`.
        position_embedding_type (`str`, default `"learned"`): token positions, `"learned"`, `"sinusoidal"` (any
            length) or `"none"`: the encoder reads a token without its place (any length); a decoder's are sinusoidal.
        position_counting (`str`, default `"tokens"`): what a token's place counts: the real `"tokens"` before it,
            wherever the padding is, or `"columns"`, padding too, as in the reference run and in imported checkpoints.
        embedding_layer_norm (`bool`, default False): LayerNorm on the sum of token and position embeddings, after its
            projection, in the encoder and in the diffusion decoder: keys and values then start at the same scale
            for any `initializer_range`. Off: raw embeddings, as in the reference run and in imported checkpoints.
        neighbours (`int`, default 0): tokens w before it that a token is mixed with, before it is read: half of its
            numbers are multiplied by 1 plus a weighted sum of the other half of theirs. 0: none.
        latent_init (`str`, default `"normal"`): how the latent queries start. `"normal"`: independent draws;
            `"orthogonal"`: rows of a random orthogonal matrix, scaled to the norm that normal ones have on average.
        concept_position_type (`str`, default `"none"`): positions added to the latent queries: `"none"`,
            `"sinusoidal"` or `"learned"` of the concept's index, or `"anchored"`: concept c gets what the token
            embeddings give for place (c + 1/2) / C of the longest text, `max_position_embeddings`, and nothing else
            at the start. The place follows the position table as it learns.
        token_update (`str`, default `"none"`): `"bixt"` lets tokens read the concepts between encoder layers.
        concept_attention (`str`, default `"softmax"`): normalisation of the cross-attention. `"softmax"` over tokens,
            or `"slot"`: over concepts, then renormalised over tokens (Locatello et al. 2020, arXiv:2006.15055).
        concept_aggregation (`str`, default `"mean"`): what concepts are before the layers read. `"mean"`: latent
            queries alone, and all that a concept holds is means of tokens. `"sum"`: slots that share out the tokens,
            by a softmax over concepts of a linear score, times a learned weight of the token, and keep the sums
            (NetVLAD, Arandjelovic et al. 2016, arXiv:1511.07247); a text without a token is a code of zeros.
        aggregation_power (`float`, default 0.5): of a slot's norm that its sum is divided by, in [0, 1]; then all
            slots of a text are normalised together.
        concepts_per_token (`int`, optional): a token goes to its best one to four slots alone, straight through in
            training; `None`: to all of them.
        count_saturation (`bool`, default False): a token that stands n times in a text counts log(1 + n) times in
            the sums.
        pooled_output (`str`, default `"mean"`): of the concepts: their `"mean"`, a mean `"weighted"` by a softmax over
            learned scores, or all of them one after the other, `"concat"`, to be compared slot by slot.
        projection_size (`int`, optional): numbers d of a concept in the pooled output, by a linear map from D. `None`:
            all D, without a map.
        tokens_per_concept (`int`, optional): r of `num_concepts="auto"` in a call: ceil(N / r) concepts for N tokens.
        hidden_act (`str`, default `"gelu"`): activation of the gate in the feed-forward.
        hidden_dropout_prob (`float`, default 0.1): dropout on embeddings and on the output of every sublayer.
        attention_probs_dropout_prob (`float`, default 0.1): dropout on attention weights.
        classifier_dropout (`float`, optional): dropout before the classifier; `None` means `hidden_dropout_prob`.
        layer_norm_eps (`float`, default 1e-5): epsilon of every LayerNorm but the encoder's last.
        final_layer_norm_eps (`float`, optional): epsilon of the encoder's last LayerNorm; `None` means
            `layer_norm_eps`. Imported checkpoints have 1e-12 there.
        initializer_range (`float`, default 0.02): standard deviation of the normal initialisation.
        decoder_num_hidden_layers (`int`, default 2): layers of the diffusion decoder.
        decoder_context (`str`, default `"none"`): what a masked position can see besides the concepts. `"none"`:
            nothing; `"latent"`: the visible tokens, through a copy of the concepts that has read them.
        decoder_query (`str`, default `"token+position"`): what a position asks the concepts with in the one-layer
            decoder of the masked language modelling baseline. `"token+position"`: the embeddings of the token it
            holds and of its place; `"position"`: its place alone, so that all it knows comes from the concepts.
        pair_comparison (`str`, default `"features"`): how the sentence-pair head compares two pooled texts a and b.
            `"features"`: a linear classifier on `[a; b; |a - b|; a * b]`; `"cosine"`: their cosine is the one logit.
        pooler_whitening (`bool`, default False): the pooled output is the mean concept after a fixed affine map, which
            is fitted after training, once: `concept_encoder.eval.concepts.whitening`.
        timestep_scale (`float`, default 1000): factor on t in [0, 1] before its sinusoidal embedding.
        tie_word_embeddings (`bool`, default True): one (V, D) matrix for encoder tokens, decoder tokens and `lm_head`.
        pad_token_id, mask_token_id, bos_token_id, eos_token_id (`int`, optional): ids of [PAD], [MASK], the first
            token of a text ([CLS]) and the last one ([SEP]).
        auto_map (`dict`): where the Auto classes find this code in a checkpoint; completed on construction, and to
            the map of the class that is saved in `save_pretrained`.
    """

    model_type = "concept_encoder"
    keys_to_ignore_at_inference = [  # by a Trainer, which collects the logits alone
        *("token_losses", "concepts", "pooler_output", "hidden_states", "attentions", "cross_attentions"),
        *("decoder_hidden_states", "decoder_cross_attentions"),
    ]

    vocab_size: int = 50368
    hidden_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    num_concepts: int = 128
    max_position_embeddings: int = 512
    token_embedding_size: int | None = None
    position_embedding_type: Literal["learned", "sinusoidal", "none"] = "learned"
    position_counting: Literal["tokens", "columns"] = "tokens"
    embedding_layer_norm: bool = False
    neighbours: int = 0
    latent_init: Literal["normal", "orthogonal"] = "normal"
    concept_position_type: Literal["none", "sinusoidal", "learned", "anchored"] = "none"
    token_update: Literal["none", "bixt"] = "none"
    concept_attention: Literal["softmax", "slot"] = "softmax"
    concept_aggregation: Literal["mean", "sum"] = "mean"
    aggregation_power: float | int = 0.5
    concepts_per_token: int | None = None
    count_saturation: bool = False
    pooled_output: Literal["mean", "weighted", "concat"] = "mean"
    projection_size: int | None = None
    tokens_per_concept: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    layer_norm_eps: float = 1e-5
    final_layer_norm_eps: float | None = None
    initializer_range: float = 0.02
    decoder_num_hidden_layers: int = 2
    decoder_context: Literal["none", "latent"] = "none"
    decoder_query: Literal["token+position", "position"] = "token+position"
    pair_comparison: Literal["features", "cosine"] = "features"
    pooler_whitening: bool = False
    timestep_scale: float | int = 1000.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    auto_map: dict[str, str] | None = None

    def __post_init__(self, **kwargs):
        if self.token_embedding_size is None:
            self.token_embedding_size = self.hidden_size
        if self.final_layer_norm_eps is None:
            self.final_layer_norm_eps = self.layer_norm_eps
        self.auto_map = {**AUTO_MAP, **(self.auto_map or {})}
        super().__post_init__(**kwargs)
        self.architectures: list[str] = self.architectures or []  # over which the Auto classes loop

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As in transformers, by which every model is saved: with the map of the class that is saved, and the files by
        which `SentenceTransformer(save_directory, trust_remote_code=True)` gives the unit pooled output."""
        own = {auto: ref.rpartition("--")[2] for auto, ref in (self.auto_map or {}).items()}
        saved = {f"modeling_concept.{name}" for name in self.architectures}
        self.auto_map = AUTO_MAP | {auto: ref for auto, ref in own.items() if ref in saved}
        self.architectures = with_classifier(self.architectures)
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, content in self.sentence_transformers_files().items():
            path = Path(save_directory, name)
            # A save of that library writes this one before the model, with prompts and kind, and the others after it.
            if name != "config_sentence_transformers.json" or not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text(content, encoding="utf-8")

    def sentence_transformers_files(self) -> dict[str, str]:
        """Names in a checkpoint to JSON texts. Concepts take the place of the tokens, all of them real: the library's
        own mask is of the tokens, and would fit in shape where a batch is as long as there are concepts. A
        weighted mean is taken as the model gives it."""
        whole = "sentence_transformers"
        types = {
            "": f"{whole}.base.modules.transformer.Transformer",
            "1_ConceptMask": "modeling_concept.ConceptMask",
            "2_Pooling": f"{whole}.sentence_transformer.modules.pooling.Pooling",
            "3_Normalize": f"{whole}.sentence_transformer.modules.normalize.Normalize",
        }
        method = "forward" if self.projection_size is None else "projected"
        method = "whitened" if self.pooler_whitening else method
        states, features = "last_hidden_state", "token_embeddings"
        if self.pooled_output == "weighted":
            method, states, features = "forward", "pooler_output", "sentence_embedding"
        if self.pooled_output != "mean":
            del types["2_Pooling"]
        contents = {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path, "type": types[path]} for i, path in enumerate(types)
            ],
            "config_sentence_transformers.json": {
                "model_type": "SentenceTransformer",
                "prompts": {"query": "", "document": ""},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
            # Without unpad_inputs=False a batch would be joined into one row with flash attention, its texts mixed.
            "sentence_bert_config.json": {
                "transformer_task": "feature-extraction",
                "unpad_inputs": False,
                "module_output_name": features,
                "modality_config": {"text": {"method": method, "method_output_name": states}},
            },
            "2_Pooling/config.json": {"embedding_dimension": self.projection_dim, "pooling_mode": "mean"},
            "3_Normalize/config.json": {"module_input_name": "sentence_embedding"},
        }
        kept = {name: each for name, each in contents.items() if "/" not in name or name.partition("/")[0] in types}
        return {name: json.dumps(content, indent=2) + "\n" for name, content in kept.items()}

    @property
    def concept_dim(self) -> int:
        """Numbers d of a concept in the pooled output."""
        return self.projection_size or self.hidden_size

    @property
    def projection_dim(self) -> int:
        """Numbers P of the pooled output, under the name that sentence-transformers asks for."""
        return self.concept_dim * self.num_concepts if self.pooled_output == "concat" else self.concept_dim

    def validate_architecture(self):
        """Part of `@strict` validation: raises a ValueError that names the field, its value and the legal range."""
        sizes = "vocab_size hidden_size num_attention_heads intermediate_size num_concepts max_position_embeddings "
        sizes += "token_embedding_size decoder_num_hidden_layers num_hidden_layers neighbours"
        nothing = {"neighbours"} | ({"num_hidden_layers"} if self.concept_aggregation == "sum" else set())
        for name in sizes.split():
            least = 0 if name in nothing else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
            if getattr(self, name) >= 2**31:
                raise ValueError(f"{name} must be less than 2**31, got {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        for name in ("layer_norm_eps", "final_layer_norm_eps", "initializer_range", "timestep_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        self._validate_reading()
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even for the sinusoidal timestep embedding, got {self.hidden_size}")
        assert self.token_embedding_size is not None  # __post_init__ has filled it
        if self.position_embedding_type == "sinusoidal" and self.token_embedding_size % 2:
            raise ValueError(
                f"token_embedding_size must be even with sinusoidal positions, got {self.token_embedding_size}"
            )
        self._validate_latents()
        if self.tie_word_embeddings and self.token_embedding_size != self.hidden_size:
            raise ValueError(
                f"tie_word_embeddings=True needs token_embedding_size ({self.token_embedding_size}) equal to "
                f"hidden_size ({self.hidden_size}); set tie_word_embeddings=False"
            )
        for name in ("pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} must be in [0, vocab_size = {self.vocab_size}), got {value}")

    def _validate_reading(self):
        summed, each, size = self.concept_aggregation == "sum", self.concepts_per_token, self.projection_size
        if not 0 <= self.aggregation_power <= 1:
            raise ValueError(f"aggregation_power must be in [0, 1], got {self.aggregation_power}")
        if not summed and (each is not None or self.count_saturation or self.aggregation_power != 0.5):
            raise ValueError(
                "concepts_per_token, count_saturation and aggregation_power say how sums of tokens are made, and "
                "concept_aggregation='mean' makes none; set concept_aggregation='sum'"
            )
        if each is not None and not 1 <= each <= min(4, self.num_concepts):
            raise ValueError(
                f"concepts_per_token must be in [1, 4] and at most num_concepts ({self.num_concepts}), got {each}"
            )
        if summed and self.concept_position_type != "none":
            raise ValueError(
                f"concept_position_type={self.concept_position_type!r} moves latent queries, and with "
                "concept_aggregation='sum' these are scores of tokens; leave it 'none'"
            )
        if self.tokens_per_concept is not None and self.tokens_per_concept < 1:
            raise ValueError(f"tokens_per_concept must be at least 1, got {self.tokens_per_concept}")
        if size is not None and not 1 <= size <= self.hidden_size:
            raise ValueError(f"projection_size must be in [1, hidden_size = {self.hidden_size}], got {size}")
        if self.pooler_whitening and self.pooled_output != "mean":
            raise ValueError(
                f"pooler_whitening=True maps the mean concept; pooled_output={self.pooled_output!r} is another vector"
            )

    def _validate_latents(self):
        if self.latent_init == "orthogonal" and self.num_concepts > self.hidden_size:
            raise ValueError(
                f"latent_init='orthogonal' needs num_concepts ({self.num_concepts}) of at most hidden_size "
                f"({self.hidden_size}): no more vectors can be orthogonal; set latent_init='normal'"
            )
        if self.concept_position_type == "anchored" and self.position_embedding_type == "none":
            raise ValueError(
                "concept_position_type='anchored' takes places of tokens, and position_embedding_type='none' has none"
            )
        if self.concept_position_type == "anchored" and self.latent_init == "orthogonal":
            raise ValueError(
                "concept_position_type='anchored' starts each latent query as its place alone, which leaves nothing "
                "for latent_init='orthogonal' to set; choose one of the two"
            )
        if self.concept_position_type == "anchored" and self.num_concepts > self.max_position_embeddings:
            raise ValueError(
                f"concept_position_type='anchored' needs num_concepts ({self.num_concepts}) of at most "
                f"max_position_embeddings ({self.max_position_embeddings}), a place of its own for each concept"
            )


ConceptEncoderConfig.register_for_auto_class()

__all__ = ["AUTO_MAP", "ConceptEncoderConfig"]
