"""What several test files need: a tiny configuration, weights that matter, a padded batch, random examples."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from concept_encoder import ConceptEncoderConfig

PAD, MASK, BOS, EOS = 0, 1, 2, 3


def tiny_config(**kwargs) -> ConceptEncoderConfig:
    defaults = {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_concepts": 6,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": PAD,
        "mask_token_id": MASK,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return ConceptEncoderConfig(**{**defaults, **kwargs})


def randomised(model: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """Weights far from their initial values, so that gates, biases and norms all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * std)
    return model.eval()


def token_batch(rows: int = 3, columns: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids without special tokens; row 1 padded on the right, row 2 on the left, in the middle and on the right."""
    ids = torch.randint(4, 120, (rows, columns), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, [0, 4, 10]] = 0
    return ids, mask


class Largest(TorchDispatchMode):
    """Numbers in the largest floating-point tensor that an operation makes."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.seen = max(self.seen, x.numel())
        return result


def random_examples(tokenizer, rows: int = 64, seed: int = 0, longest: int = 40) -> list[dict]:
    """Rows of 3 to `longest` random content tokens between [CLS] and [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    first = max(tokenizer.all_special_ids) + 1
    lengths = torch.randint(3, longest, (rows,), generator=generator).tolist()
    ids = [torch.randint(first, len(tokenizer), (n,), generator=generator).tolist() for n in lengths]
    return [{"input_ids": [tokenizer.cls_token_id, *row, tokenizer.sep_token_id]} for row in ids]


def run_without_package(script: str, folder: Path, *arguments: str) -> None:
    """Run `script`, which has to make the package unimportable, in `folder`, offline and with fresh remote code."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env={**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
