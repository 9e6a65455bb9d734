"""Triton's interpreter runs the kernels on a processor: slowly, but the numbers are theirs."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from small_runs import tiny_recipe

from concept_encoder.trainers.pretraining import pretrain

COMPARE = """
import torch
from concept_encoder.trainers.training.kernels import LinearCrossEntropy, liger_linear_cross_entropy

for smoothing, autocast in ((0.0, False), (0.1, False), (0.1, True)):
    torch.manual_seed(0)
    labels, row_weights = torch.randint(0, 300, (40,)), torch.rand(40) * 5
    results = []
    for kernel in (LinearCrossEntropy.apply, liger_linear_cross_entropy):
        generator = torch.Generator().manual_seed(1)
        states, weight = (torch.randn(n, 64, generator=generator).requires_grad_() for n in (40, 300))
        precision = torch.bfloat16 if autocast else torch.float32
        total, losses = kernel(states.to(precision), weight.to(precision), labels, row_weights, smoothing)
        total.backward()
        assert not losses.requires_grad and states.grad.dtype == weight.grad.dtype == torch.float32
        results.append([total.detach(), losses, states.grad, weight.grad])
    close = {"rtol": 2e-2, "atol": 1e-1} if autocast else {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(*(tuple(each) for each in results), check_dtype=False, **close)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("liger_kernel") is None or find_spec("triton") is None,
    reason="the extra cuda is not installed: pip install 'concept-encoder[cuda]'",
)
def test_liger_gives_the_same_loss_and_gradients():
    run = subprocess.run(
        [sys.executable, "-c", COMPARE], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1:] == ["equal"], run.stderr


def test_liger_is_refused_where_there_is_no_card(tmp_path, monkeypatch):
    # What transformers asks first; the extra need not be installed to be refused.
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    with pytest.raises(ValueError, match="use_liger_kernel=True needs a CUDA device, and training runs on cpu"):
        pretrain(tiny_recipe(tmp_path / "run", "--use_liger_kernel", "true", "--use_cpu", "true"))
