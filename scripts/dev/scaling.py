"""Render docs/SCALING.md again, the arithmetic of training on 1 to 64 GPUs.

    python scripts/dev/scaling.py

To be run after the model's cost or an assumption below has changed; a test compares the page with a fresh rendering.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval.report.report import read_reference
from concept_encoder.modeling_concept import ConceptEncoderForDiffusionMLM
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically

PAGE = Path(__file__).resolve().parents[2] / "docs" / "SCALING.md"
GPU = "NVIDIA H100 SXM"
PEAK_FLOPS = 989e12  # per second, dense bfloat16, data sheet
PEAK_SHARE = 0.3  # assumed; see the page for what the reference run comes to
NVLINK_BYTES = 450e9  # per second, GPU and direction, data sheet
NETWORK_BYTES = 50e9  # per second and GPU between nodes: 400 Gbit/s each, assumed
GPUS_PER_NODE = 8
REFERENCE_PEAK_FLOPS = 71e12  # per second, RTX 3090, dense bfloat16 with float32 sums, data sheet
GPU_COUNTS = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Run:
    """A model and how long it is trained."""

    name: str
    config: dict[str, Any]
    length: int
    """tokens per text"""
    texts_per_step: int
    micro_batch: int
    """texts at most per GPU at a time"""
    steps: int
    masked_share: float
    """of the positions, on average: the mean timestep"""

    @property
    def tokens(self) -> int:
        return self.length * self.texts_per_step * self.steps


@dataclass(frozen=True)
class Counted:
    """What one text costs, counted on a model without memory."""

    parameters: int
    flops: int
    """forward and backward of one text"""
    vocabulary_flops: int
    """of them, the product with the vocabulary"""
    saved_elements: int
    """numbers that the forward pass keeps for the backward pass of one text"""


REFERENCE = Run(
    name="reference",
    config={
        "vocab_size": 50_368,
        "hidden_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "intermediate_size": 1024,
        "num_concepts": 128,
        "max_position_embeddings": 512,
        "decoder_num_hidden_layers": 2,
        "tie_word_embeddings": False,
    },
    length=512,
    texts_per_step=512,
    micro_batch=64,
    steps=39_000,
    masked_share=0.55,
)
LARGER = Run(
    name="larger",
    config={
        "vocab_size": 50_368,
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "intermediate_size": 2816,
        "num_concepts": 256,
        "max_position_embeddings": 2048,
        "decoder_num_hidden_layers": 4,
    },
    length=2048,
    texts_per_step=512,
    micro_batch=16,
    steps=100_000,
    masked_share=0.5,
)
RUNS = (REFERENCE, LARGER)


def count(run: Run) -> Counted:
    """Parameters, FLOPs and activations of one text, by torch's own counters on the meta device."""
    config = ConceptEncoderConfig(**run.config, mask_token_id=4, attn_implementation="eager")
    with torch.device("meta"):
        model = ConceptEncoderForDiffusionMLM(config)
        model.tie_weights()
        ids = torch.zeros(1, run.length, dtype=torch.long)
        positions = torch.arange(round(run.masked_share * run.length))[None]
        timesteps = torch.zeros(1)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes() // tensor.element_size()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # a storage's address is its own only while it lives
    with (
        FlopCounterMode(display=False) as whole,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        concepts = model.encoder(ids).last_hidden_state
        states = model.decoder(ids, concepts, timesteps, positions=positions).last_hidden_state
        model.lm_head(states).log_softmax(-1).sum().backward()
    num_rows = positions.shape[1]
    return Counted(
        parameters=model.num_parameters(),
        flops=whole.get_total_flops(),
        vocabulary_flops=3 * 2 * num_rows * config.hidden_size * config.vocab_size,
        saved_elements=sum(saved.values()),
    )


@dataclass(frozen=True)
class Scaled:
    """A run on so many GPUs; seconds are of an optimizer step, bytes of one GPU."""

    compute_seconds: float
    ddp_bytes: float
    fsdp_bytes: float
    ddp_seconds: float
    fsdp_seconds: float
    hours: float
    """with DDP, none of its communication hidden behind computation"""
    ddp_memory: float
    fsdp_memory: float


def scale(run: Run, counted: Counted, gpus: int) -> Scaled:
    """The arithmetic of `run` on `gpus` GPUs at the rates above."""
    texts = run.texts_per_step / gpus
    compute = texts * counted.flops / (PEAK_FLOPS * PEAK_SHARE)
    link = NVLINK_BYTES if gpus <= GPUS_PER_NODE else NETWORK_BYTES
    others = (gpus - 1) / gpus
    # A ring moves the gradients twice; FSDP2 gathers bfloat16 weights twice and scatters bfloat16 gradients once.
    ddp, fsdp = others * 2 * 4 * counted.parameters, others * 3 * 2 * counted.parameters
    activations = min(texts, run.micro_batch) * 2 * counted.saved_elements
    state = 16 * counted.parameters  # float32 weights, gradients and AdamW's two moments
    return Scaled(
        compute_seconds=compute,
        ddp_bytes=ddp,
        fsdp_bytes=fsdp,
        ddp_seconds=ddp / link,
        fsdp_seconds=fsdp / link,
        hours=run.steps * (compute + ddp / link) / 3600,
        ddp_memory=state + activations,
        fsdp_memory=state / gpus + 2 * counted.parameters + activations,
    )


def render_page() -> str:
    """docs/SCALING.md."""
    counts = {run.name: count(run) for run in RUNS}
    return _PAGE.format(
        gpu=GPU,
        peak=f"{PEAK_FLOPS / 1e12:.0f}",
        share=f"{PEAK_SHARE:.0%}",
        nvlink=f"{NVLINK_BYTES / 1e9:.0f}",
        network=f"{NETWORK_BYTES / 1e9:.0f}",
        node=GPUS_PER_NODE,
        slower=f"{PEAK_SHARE / reference_peak_share(counts['reference']):.1f}",
        reference_share=f"{reference_peak_share(counts['reference']):.0%}",
        reference_peak=f"{REFERENCE_PEAK_FLOPS / 1e12:.0f}",
        reference_hours=f"{REFERENCE.steps / _reference_training()['steps_per_second'] / 3600:.0f}",
        models="\n".join(_model_row(run, counts[run.name]) for run in RUNS),
        scales="\n".join(_scale_row(run, counts[run.name], gpus) for run in RUNS for gpus in GPU_COUNTS),
    )


def reference_peak_share(counted: Counted) -> float:
    """Of its GPUs' peak that the reference run reached, had every text been of full length."""
    training = _reference_training()
    flops = training["steps_per_second"] * REFERENCE.texts_per_step * counted.flops
    return flops / (training["world_size"] * REFERENCE_PEAK_FLOPS)


def _reference_training() -> dict[str, Any]:
    return read_reference()["runs"][0]["training"]


def _model_row(run: Run, counted: Counted) -> str:
    c = run.config
    shape = f"H{c['hidden_size']} L{c['num_hidden_layers']} C{c['num_concepts']} D{c['decoder_num_hidden_layers']}"
    cells = (
        f"{run.name}, {shape}",
        f"{counted.parameters / 1e6:.0f} M",
        f"{run.length:,}",
        f"{counted.flops / run.length / 1e6:,.0f} M",
        f"{counted.vocabulary_flops / counted.flops:.0%}",
        f"{2 * counted.saved_elements / 2**20:,.0f} MiB",
        f"{run.steps:,} x {run.texts_per_step}, {run.micro_batch}",
        f"{run.tokens / 1e9:,.1f} G",
    )
    return f"| {' | '.join(cells)} |"


def _scale_row(run: Run, counted: Counted, gpus: int) -> str:
    scaled = scale(run, counted, gpus)
    step = scaled.compute_seconds + scaled.ddp_seconds
    cells = (
        f"{run.name}, {gpus}",
        f"{run.length * run.texts_per_step / step / 1e6:,.2f} M",
        f"{scaled.hours:,.1f}",
        f"{scaled.compute_seconds * 1e3:,.0f} ms",
        f"{scaled.ddp_bytes / 1e9:.2f} GB, {scaled.ddp_seconds * 1e3:.1f} ms",
        f"{scaled.fsdp_bytes / 1e9:.2f} GB, {scaled.fsdp_seconds * 1e3:.1f} ms",
        f"{scaled.ddp_memory / 2**30:.1f}",
        f"{scaled.fsdp_memory / 2**30:.1f}",
    )
    return f"| {' | '.join(cells)} |"


_PAGE = """# From 1 GPU to 64

Rendered by `python scripts/dev/scaling.py`; a test keeps it fresh. **Nothing here was measured on a GPU.**
Counted, by torch's FLOP counter and autograd's saved tensors: what a text costs. Assumed: an {gpu} of {peak} TFLOP/s
in bfloat16; training reaches {share} of it; {nvlink} GB/s between the GPUs of a node of {node}, {network} GB/s per
GPU between nodes. Measured, on two CPU processes: DDP and FSDP2 give the losses of one process at equal global batch
(`tests/trainers/test_trainer.py`, `tests/trainers/test_fsdp.py`).

{share} is optimistic until measured: the reported rate of the reference run, {reference_hours} hours on four RTX 3090,
is {reference_share} of their {reference_peak} TFLOP/s, if all its texts had been of full length. At that share all
computation below would take {slower} times as long.

| model | parameters | text | FLOPs per token | vocabulary | activations | steps x texts, micro-batch | tokens |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{models}

Text: tokens of one. FLOPs: forward and backward, with loss on the mean timestep's share of the positions. Vocabulary:
share of its product in the FLOPs; `position_share` cuts it by its factor. Activations of one text: autograd's saved
numbers at 2 bytes, attention weights written out; flash attention and gradient checkpointing keep fewer.

| model, GPUs | tokens/s | hours | compute per step | DDP, per step | FSDP2, per step | DDP, GiB | FSDP2, GiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{scales}

The global batch stays as it is: each GPU gets 1/n of its texts, accumulated over micro-batches. DDP: a ring all-reduce
moves 2 (n - 1) / n of the float32 gradients. FSDP2: bfloat16 weights gathered for forward and backward, bfloat16
gradients scattered, 3 (n - 1) / n; an upper bound, since tied tables and last layers stay gathered. Memory: 16 bytes
per parameter (weights, gradients, AdamW's moments; FSDP2 1/n of that and one gathered copy) and the activations of
a micro-batch. Hours: with DDP and none of its communication hidden behind computation, which most of it can be.

So: both models fit one GPU and want DDP; FSDP2 is for those whose 16 bytes per parameter do not fit. Between nodes the
reference's step is too short for its gradients: more GPUs want a larger global batch, not the same one cut finer.

Launch: `scripts/accelerate/ddp.yaml`, `fsdp2.yaml`, `multinode.yaml`, each with its command.
"""


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="to write (default: docs/SCALING.md)")
    arguments = parser.parse_args(argv)
    write_atomically(arguments.page, render_page())
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
