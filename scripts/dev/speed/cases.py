"""What the benchmark measures: training steps, the loss alone, and encoding by this model and by its peers.

A case is a small value that can go to another process; `build` makes weights and inputs from a fixed seed, and returns
the call to be timed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, PerceiverConfig, PerceiverModel
from transformers.models.perceiver.modeling_perceiver import PerceiverTextPreprocessor

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.modeling_concept import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.scripts.dev.speed.tools import Run
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.corruptions import Diffusion
from concept_encoder.trainers.training.kernels import linear_cross_entropy

SEED = 0
SHARE = 0.25  # of the positions to rebuild that carry the loss


@dataclass(frozen=True)
class Plan:
    """Sizes of a benchmark.

    Attributes:
        hidden_size ... vocab_size: of this model and of its peers alike.
        batch, length: texts and tokens of a training step; encoding has as many texts at this length, one at others.
        lengths: N to encode at, shortest first.
        longest: N to encode at with a bounded memory.
        chunk: tokens read at a time where encoding goes by chunks.
        square_sizes: of the matrices that the roofline is measured with, for `square_seconds` a turn.
        variants: forms of the step that the group `variants` compares.
        batches: of the group `scaling`.
    """

    hidden_size: int = 512
    num_layers: int = 2
    num_heads: int = 8
    num_concepts: int = 128
    intermediate_size: int = 1024
    decoder_layers: int = 2
    vocab_size: int = 50_368
    batch: int = 8
    length: int = 512
    lengths: tuple[int, ...] = (512, 2048, 8192, 32_768, 131_072)
    longest: int = 1_048_576
    chunk: int = 8192
    square_sizes: tuple[int, ...] = (1024, 2048, 4096)
    square_seconds: float = 0.25
    variants: tuple[str, ...] = ("full", "bfloat16", "compile", "checkpointing")
    batches: tuple[int, ...] = (8, 32, 128, 512)

    def config(self, length: int, sinusoidal: bool = False) -> ConceptEncoderConfig:
        """Of this model for texts of `length` tokens, with its default dropout."""
        tokenizer = microworld_tokenizer()
        return ConceptEncoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            num_concepts=self.num_concepts,
            decoder_num_hidden_layers=self.decoder_layers,
            max_position_embeddings=length,
            position_embedding_type="sinusoidal" if sinusoidal else "learned",
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
        )

    def texts(self, length: int) -> int:
        return self.batch if length == self.length else 1


QUICK = Plan(
    hidden_size=32,
    num_heads=4,
    num_concepts=4,
    intermediate_size=64,
    vocab_size=400,
    batch=2,
    length=16,
    lengths=(16, 32, 64),
    longest=256,
    chunk=32,
    square_sizes=(64, 128),
    square_seconds=0.002,
    variants=("full", "bfloat16", "checkpointing"),  # compiling takes a minute at any size
    batches=(1, 2),
)


def random_ids(plan: Plan, texts: int, length: int, device: str) -> Tensor:
    """(texts, length) ids above the special ones, the same at every call."""
    first = max(microworld_tokenizer().all_special_ids) + 1
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(first, plan.vocab_size, (texts, length), generator=generator).to(device)


# ----------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainingCase:
    """A step of masked diffusion: forward, backward, AdamW. `form` is one of `TRAINING_FORMS`."""

    plan: Plan
    form: str
    device: str = "cpu"
    batch: int | None = None

    def build(self) -> Run:
        torch.manual_seed(SEED)
        form = TRAINING_FORMS[self.form]
        model = ConceptEncoderForDiffusionMLM(self.plan.config(self.plan.length)).to(self.device).train()
        if form.checkpointing:
            model.activation_checkpointing_enable()
        inputs = training_inputs(self.plan, form.share, self.device, self.batch)
        loss_of = torch.compile(form.loss) if form.compiled else form.loss
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=form.half):
                loss = loss_of(model, inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # a step later than the first finds the moments of AdamW in place
        return step

    def warm_up(self) -> None:
        """`build` has taken a step."""


def training_inputs(plan: Plan, share: float, device: str, texts: int | None = None) -> dict[str, Tensor]:
    """Inputs of a step as training draws them: t even over (0, 1], weights 1/t, loss on `share` of the positions."""
    ids = random_ids(plan, texts or plan.batch, plan.length, "cpu")
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    collator = DataCollatorForReconstruction(microworld_tokenizer(), Diffusion(position_share=share), SEED)
    drawn = collator.corrupt(batch, collator.draw(batch, step=0))
    drawn["num_items_in_batch"] = drawn.pop("num_items").sum()
    return {name: tensor.to(device) for name, tensor in drawn.items()}


def model_loss(model: ConceptEncoderForDiffusionMLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """The loss as training takes it."""
    return model(**inputs, row_loss=linear_cross_entropy).loss


def plain_loss(model: ConceptEncoderForDiffusionMLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """The same loss in the plain way: every position decoded, and all logits of those with a label at once."""
    mask = inputs["attention_mask"]
    concepts = model.encoder(inputs["input_ids"], mask).last_hidden_state  # (B, C, D)
    decoded = model.decoder(inputs["decoder_input_ids"], concepts, inputs["timesteps"], mask)
    return plain_cross_entropy(model, decoded.last_hidden_state, inputs)


def plain_cross_entropy(model: ConceptEncoderForDiffusionMLM, states: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Weighted cross-entropy of decoded states (B, N, D), with all logits (M, V) at once."""
    labelled = inputs["labels"] != -100
    logits = model.lm_head(states[labelled])  # (M, V)
    losses = nn.functional.cross_entropy(logits.float(), inputs["labels"][labelled], reduction="none")
    return (losses * inputs["loss_weights"][labelled]).sum() / inputs["num_items_in_batch"]


@dataclass(frozen=True)
class TrainingForm:
    """How a step is taken: its loss, the share of positions that carry it, and what is switched on."""

    loss: Callable[[ConceptEncoderForDiffusionMLM, Mapping[str, Tensor]], Tensor] = model_loss
    share: float = 1.0
    half: bool = False
    compiled: bool = False
    checkpointing: bool = False


TRAINING_FORMS = {
    "plain": TrainingForm(loss=plain_loss),
    "full": TrainingForm(),
    "share": TrainingForm(share=SHARE),
    "bfloat16": TrainingForm(half=True),
    "compile": TrainingForm(compiled=True),
    "checkpointing": TrainingForm(checkpointing=True),
}


@dataclass(frozen=True)
class LossCase:
    """Forward and backward from decoded states to the loss, nothing else. `form` is one of `LOSS_FORMS`."""

    plan: Plan
    form: str
    device: str = "cpu"

    def build(self) -> Run:
        torch.manual_seed(SEED)
        model = ConceptEncoderForDiffusionMLM(self.plan.config(self.plan.length)).to(self.device).train()
        inputs = training_inputs(self.plan, 1.0, self.device)
        shape = (*inputs["labels"].shape, self.plan.hidden_size)
        states = torch.randn(shape, device=self.device, requires_grad=True)

        def run() -> None:
            LOSS_FORMS[self.form](model, states, inputs).backward()
            states.grad = None
            model.zero_grad()

        run()
        return run

    def warm_up(self) -> None:
        """`build` has made the call once."""


def model_cross_entropy(model: ConceptEncoderForDiffusionMLM, states: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """The same cross-entropy as the model takes it."""
    labelled = inputs["labels"] != -100
    row_weights = inputs["loss_weights"][labelled] / inputs["num_items_in_batch"]
    rows = inputs["labels"][labelled], row_weights
    return linear_cross_entropy(model.lm_head, states[labelled], *rows)[0]


LOSS_FORMS = {"plain": plain_cross_entropy, "model": model_cross_entropy}


# ----------------------------------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class EncodingCase:
    """Texts of `length` tokens to their states, without gradients. `form` is one of `ENCODERS`."""

    plan: Plan
    form: str
    length: int
    device: str = "cpu"

    @property
    def texts(self) -> int:
        return self.plan.texts(self.length)

    def build(self) -> Run:
        torch.manual_seed(SEED)
        encode = ENCODERS[self.form](self.plan, self.length, self.device)
        ids = random_ids(self.plan, self.texts, self.length, self.device)

        def run() -> Tensor:
            with torch.inference_mode():
                return encode(ids)

        return run

    def warm_up(self) -> "EncodingCase":
        return replace(self, length=min(self.length, 2 * self.plan.chunk))


Encode = Callable[[Tensor], Tensor]


def _encoder(plan: Plan, length: int, device: str, sinusoidal: bool = False) -> ConceptEncoderModel:
    return ConceptEncoderModel(plan.config(length, sinusoidal)).to(device).eval()


def _ours(plan: Plan, length: int, device: str) -> Encode:
    model = _encoder(plan, length, device)
    return lambda ids: model(ids).last_hidden_state


def _chunked(plan: Plan, length: int, device: str) -> Encode:
    model = _encoder(plan, length, device, sinusoidal=True)
    return lambda ids: model(ids, chunk_length=plan.chunk).last_hidden_state


def _half(plan: Plan, length: int, device: str) -> Encode:
    model = _encoder(plan, length, device)

    def encode(ids: Tensor) -> Tensor:
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            return model(ids).last_hidden_state

    return encode


def _compiled(plan: Plan, length: int, device: str) -> Encode:
    model = torch.compile(_encoder(plan, length, device))
    return lambda ids: model(ids).last_hidden_state


def _peer_sizes(plan: Plan, length: int) -> dict[str, Any]:
    return {
        "vocab_size": plan.vocab_size,
        "hidden_size": plan.hidden_size,
        "num_hidden_layers": plan.num_layers,
        "num_attention_heads": plan.num_heads,
        "intermediate_size": plan.intermediate_size,
        "max_position_embeddings": length,
    }


def _bert(plan: Plan, length: int, device: str) -> Encode:
    model = BertModel(BertConfig(**_peer_sizes(plan, length)), add_pooling_layer=False).to(device).eval()
    return lambda ids: model(ids).last_hidden_state


def _modernbert(plan: Plan, length: int, device: str) -> Encode:
    special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}  # its own are beyond a small V
    model = ModernBertModel(ModernBertConfig(**_peer_sizes(plan, length), **special)).to(device).eval()
    return lambda ids: model(ids).last_hidden_state


def _perceiver(plan: Plan, length: int, device: str) -> Encode:
    widening = plan.intermediate_size // plan.hidden_size
    config = PerceiverConfig(
        num_latents=plan.num_concepts,
        d_latents=plan.hidden_size,
        d_model=plan.hidden_size,
        num_blocks=1,
        num_self_attends_per_block=plan.num_layers,
        num_self_attention_heads=plan.num_heads,
        num_cross_attention_heads=plan.num_heads,
        self_attention_widening_factor=widening,
        cross_attention_widening_factor=widening,
        vocab_size=plan.vocab_size,
        max_position_embeddings=length,
    )
    model = PerceiverModel(config, input_preprocessor=PerceiverTextPreprocessor(config)).to(device).eval()
    return lambda ids: model(ids).last_hidden_state


ENCODERS: dict[str, Callable[[Plan, int, str], Encode]] = {
    "ours": _ours,
    "chunked": _chunked,
    "bert": _bert,
    "modernbert": _modernbert,
    "perceiver": _perceiver,
    "bfloat16": _half,
    "compile": _compiled,
}
PEERS = {  # name -> power of N that its cost grows with
    "bert": 2,
    "modernbert": 2,
    "perceiver": 1,
}


def own_forms(plan: Plan, length: int) -> list[str]:
    """Forms of this model to encode `length` tokens with."""
    return ["ours", *(["chunked"] if length > plan.chunk else [])]


def growth(lengths: list[int], seconds: list[float]) -> float:
    """Exponent p of the power law seconds = a N^p, by least squares on the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (lengths, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
