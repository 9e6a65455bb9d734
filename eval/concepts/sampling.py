"""Texts sampled through their concepts: rebuilt, filled in, continued, and between two texts.

Everything here ends in `ConceptEncoderForDiffusionMLM.generate`; `sampling` are its arguments from `num_steps`
to `generator`. Letters: B texts, N tokens, C concepts, D hidden size.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...modeling_concept import ConceptEncoderForDiffusionMLM
from ..loading.checkpoints import Checkpoint

Mode = Literal["reconstruct", "infill", "continue", "interpolate", "swap"]
PARALLEL = 1e-4  # sine of an angle below which two concepts are one direction


def generate(
    checkpoint: str | os.PathLike,
    texts: Sequence[str],
    mode: Mode = "reconstruct",
    *,
    num_tokens: int | None = None,
    rest_only: bool = False,
    num_texts: int | None = None,
    swap_concepts: Sequence[int] | None = None,
    seed: int = 0,
    revision: str | None = None,
    **sampling: Any,
) -> list[str]:
    """Texts sampled through the concepts of a checkpoint.

    Args:
        checkpoint: folder or Hub id of a model pretrained by masked diffusion, with its tokenizer.
        texts: what to begin with; two for the modes "interpolate" and "swap".
        mode: "reconstruct", "infill" (each [MASK] of a text), "continue", "interpolate" or "swap", as the functions of
            this module do it.
        num_tokens, rest_only: of `continue_texts`.
        num_texts: of `interpolate`.
        swap_concepts: indices, of `swap`.
        seed: of the draws.
        revision: commit, branch or tag of a Hub id.
        sampling: further arguments of the model's `generate`, such as `num_steps=16` and `temperature=1.0`.

    Raises:
        ValueError: an argument that belongs to another mode, or is missing for this one; as `load_sampler` and the
            function of the mode.
        FileNotFoundError: no such folder.
    """
    belongs: dict[str, tuple[str, Any]] = {
        "continue": ("num_tokens", num_tokens),
        "interpolate": ("num_texts", num_texts),
        "swap": ("swap_concepts", swap_concepts),
    }
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    for owner, (name, value) in belongs.items():
        if (value is not None) != (mode == owner):
            raise ValueError(f"{name} belongs to mode {owner}, which needs it; got mode {mode}")
    if rest_only and mode != "continue":
        raise ValueError(f"rest_only belongs to mode continue; got mode {mode}")
    if mode in ("interpolate", "swap") and len(texts) != 2:
        raise ValueError(f"mode {mode} needs two texts, got {len(texts)}")
    model, tokenizer = load_sampler(checkpoint, revision)
    sampling["generator"] = torch.Generator(model.device).manual_seed(seed)
    if mode == "reconstruct":
        return reconstruct(model, tokenizer, texts, **sampling)
    if mode == "infill":
        return infill(model, tokenizer, texts, **sampling)
    if num_tokens is not None:
        return continue_texts(model, tokenizer, texts, num_tokens, rest_only, **sampling)
    first, second = texts
    if num_texts is not None:
        return interpolate(model, tokenizer, first, second, num_texts, **sampling)
    assert swap_concepts is not None
    return swap(model, tokenizer, first, second, swap_concepts, **sampling)


def load_sampler(
    checkpoint: str | os.PathLike, revision: str | None = None
) -> tuple[ConceptEncoderForDiffusionMLM, PreTrainedTokenizerBase]:
    """Pretraining model and tokenizer of a run folder or Hub id, for sampling.

    Args:
        checkpoint: run folder, Hub id, or a checkpoint that is opened.
        revision: commit, branch or tag of a Hub id.

    Raises:
        ValueError: the checkpoint holds no diffusion decoder, or its tokenizer has another [MASK] than the model.
        FileNotFoundError: no such folder.
    """
    opened = Checkpoint.open(checkpoint, revision)
    model = opened.diffusion
    if model is None:
        raise ValueError(
            f"{opened.name} was saved by {opened.head.__name__}; only {ConceptEncoderForDiffusionMLM.__name__} has a "
            "decoder to sample from"
        )
    check_mask_token(opened.name, model, opened.tokenizer)
    return model, opened.tokenizer


def check_mask_token(
    checkpoint: str, model: ConceptEncoderForDiffusionMLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """ValueError where the tokenizer of `checkpoint` has another [MASK] than its model."""
    if tokenizer.mask_token_id != model.config.mask_token_id:
        raise ValueError(
            f"the tokenizer of {checkpoint} has mask_token_id {tokenizer.mask_token_id}, the model "
            f"{model.config.mask_token_id}; save the tokenizer that it was pretrained with there"
        )


def reconstruct(model, tokenizer, texts: Sequence[str], **sampling: Any) -> list[str]:
    """Each text rebuilt from its concepts alone, at its own number of tokens."""
    batch = encode_texts(model, tokenizer, texts, split_special_tokens=True)
    return _decode(tokenizer, model.generate(**batch, **sampling))


def infill(model, tokenizer, texts: Sequence[str], **sampling: Any) -> list[str]:
    """Each text with every [MASK] in it (`tokenizer.mask_token`) replaced by one token; the encoder sees the [MASK]s.

    Raises:
        ValueError: a text without any [MASK].
    """
    for text in texts:
        if tokenizer.mask_token not in text:
            raise ValueError(f"infilling needs {tokenizer.mask_token} in every text, got {text!r}")
    batch = encode_texts(model, tokenizer, texts)
    return _decode(tokenizer, model.generate(**batch, **sampling))


def continue_texts(
    model, tokenizer, prefixes: Sequence[str], num_tokens: int, rest_only: bool = False, **sampling: Any
) -> list[str]:
    """Each prefix with `num_tokens` more tokens.

    The encoder reads the prefix as a text of its own. The canvas is the prefix, the new positions and the last special
    token; with `rest_only` it begins behind the prefix, as for a model pretrained with the corruption "prefix", whose
    decoder counts positions from there. Without `decoder_context="latent"` the new tokens know the
    prefix through its concepts alone.

    Raises:
        ValueError: num_tokens below 1; canvas longer than the model's positions.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
    batch = encode_texts(model, tokenizer, prefixes, split_special_tokens=True)
    end = model.config.eos_token_id
    tail = [model.config.mask_token_id] * num_tokens + ([] if end is None else [end])
    starts = [ids[real.bool()].tolist() for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    starts = [ids[:-1] if ids[-1:] == [end] else ids for ids in starts]
    canvas, mask = _padded(model, [tail if rest_only else ids + tail for ids in starts])
    texts = model.generate(None, mask, _concepts(model, batch), canvas, **sampling)
    if rest_only:
        texts = [ids + rest for ids, rest in zip(starts, texts.tolist(), strict=True)]
    return _decode(tokenizer, texts)


def interpolate(model, tokenizer, first: str, second: str, num_texts: int, **sampling: Any) -> list[str]:
    """`num_texts` texts from the concepts of `first` to those of `second`, both included, in equal steps.

    The number of tokens goes over from that of one text to that of the other.

    Raises:
        ValueError: num_texts below 2.
    """
    if num_texts < 2:
        raise ValueError(f"num_texts must be at least 2, the two ends, got {num_texts}")
    batch = encode_texts(model, tokenizer, [first, second], split_special_tokens=True)
    a, b = _concepts(model, batch)
    start, end = batch["attention_mask"].sum(-1).tolist()
    shares = torch.linspace(0, 1, num_texts).tolist()
    canvas, mask = _blank_canvas(model, [round(start + share * (end - start)) for share in shares])
    concepts = torch.stack([slerp_concepts(a, b, share) for share in shares])
    return _decode(tokenizer, model.generate(None, mask, concepts, canvas, **sampling))


def swap(model, tokenizer, first: str, second: str, indices: Sequence[int], **sampling: Any) -> list[str]:
    """The two texts after the concepts of `indices` have changed places between them, each at its own length.

    Raises:
        ValueError: an index outside [0, C), or none.
    """
    batch = encode_texts(model, tokenizer, [first, second], split_special_tokens=True)
    a, b = _concepts(model, batch)
    concepts = torch.stack(swap_concepts(a, b, indices))
    canvas, mask = _blank_canvas(model, batch["attention_mask"].sum(-1).tolist())
    return _decode(tokenizer, model.generate(None, mask, concepts, canvas, **sampling))


def slerp_concepts(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of concepts (C, D), each from a's to b's; share 0 gives a, 1 gives b.

    Spherical, because the encoder's last LayerNorm puts all concepts on one ellipsoid and the decoder has never met
    others: the straight mean of two unrelated concepts is shorter by a factor of 0.7. Where the two have one
    direction, or opposite ones, so that no arc is the shortest, the straight line is taken.

    Source: Shoemake 1985, Animating rotation with quaternion curves; for latent codes White 2016, arXiv:1609.04468.
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).unsqueeze(-1)  # (C, 1)
    angle, sine = cosine.acos(), (1 - cosine**2).sqrt()
    arc = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / sine.clamp_min(PARALLEL)
    return torch.where(sine < PARALLEL, (1 - share) * a + share * b, arc)


def swap_concepts(a: Tensor, b: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Copies of concepts a and b (C, D) with the rows of `indices` exchanged; ValueError for one outside [0, C)."""
    outside = [index for index in indices if not 0 <= index < len(a)]
    if outside or not len(indices):
        raise ValueError(f"concepts to swap must be indices in [0, {len(a)}), got {outside or list(indices)}")
    rows = torch.tensor(list(indices), device=a.device)
    return a.index_copy(0, rows, b[rows]), b.index_copy(0, rows, a[rows])


def encode_texts(model, tokenizer, texts: Sequence[str], **options: Any) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (B, N) on the model's device; `options` are the tokenizer's."""
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt", **options)
    return {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _decode(tokenizer, ids: Tensor | list[list[int]]) -> list[str]:
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@torch.no_grad()
def _concepts(model, batch: dict[str, Tensor]) -> Tensor:
    return model.encoder(**batch).last_hidden_state  # (B, C, D)


def _blank_canvas(model, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[MASK]s between the first and the last special token, `lengths` tokens in all."""
    config = model.config
    start = [] if config.bos_token_id is None else [config.bos_token_id]
    end = [] if config.eos_token_id is None else [config.eos_token_id]
    inner = [[config.mask_token_id] * (length - len(start) - len(end)) for length in lengths]
    return _padded(model, [start + row + end for row in inner])


def _padded(model, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, N), padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [model.config.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids.to(model.device), mask.to(model.device)
