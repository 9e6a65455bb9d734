import pytest
import torch
from helpers import random_examples, randomised, tiny_config
from torch import nn

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.objectives.collators import DataCollatorForReconstruction
from concept_encoder.trainers.objectives.conflicts import forked_concepts, without_conflict
from concept_encoder.trainers.objectives.objective import ObjectiveArguments, ReconstructionObjective


def test_closed_form_in_two_dimensions():
    task = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]])
    regularizer = torch.tensor([[[-3.0, 1.0]], [[3.0, 1.0]], [[-3.0, 1.0]]])
    expected = torch.tensor([[[0.0, 1.0]], [[3.0, 1.0]], [[-3.0, 1.0]]])  # opposed, agreeing, no task
    torch.testing.assert_close(without_conflict(regularizer, task), expected)
    tiny = torch.tensor(1e-30)  # its square is 0 in float32
    torch.testing.assert_close(without_conflict(regularizer, task * tiny), expected)


def test_what_is_left_never_opposes_the_task():
    task, regularizer = torch.randn(2, 50, 6, 8, generator=torch.Generator().manual_seed(0)).double()
    left = without_conflict(regularizer, task)
    inner, before = ((each * task).sum((1, 2)) for each in (left, regularizer))
    assert (before < 0).any() and (before > 0).any()
    assert inner.min() > -1e-12
    assert torch.equal(left[before > 0], regularizer[before > 0])


@pytest.fixture
def model(tokenizer):
    return randomised(ConceptEncoderForDiffusionMLM(tiny_config(vocab_size=len(tokenizer), mask_token_id=4)))


def concept_gradients(model, batch, **objective):
    """Loss, and the gradient that arrives at the encoder's last LayerNorm, (B, C, D)."""
    seen = []
    handle = model.encoder.norm.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    model.zero_grad()
    result = ReconstructionObjective(**objective)(model, batch, batch["num_items"].sum())
    result.loss.backward()
    handle.remove()
    return result, seen[0]


def test_one_backward_pass_joins_the_gradients_at_the_concepts(model, tokenizer):
    batch = DataCollatorForReconstruction(tokenizer)(random_examples(tokenizer, rows=12, longest=20))
    regularizers = {"orthogonality": 30.0, "variance": 10.0}
    _, task = concept_gradients(model, batch)
    plain, both = concept_gradients(model, batch, regularizers=regularizers)
    safe, joined = concept_gradients(model, batch, regularizers=regularizers, conflict_safe=True)
    assert safe.loss.item() == pytest.approx(plain.loss.item()) and safe.parts.keys() == plain.parts.keys()
    torch.testing.assert_close(joined, task + without_conflict(both - task, task), rtol=1e-3, atol=1e-6)
    opposed = ((both - task) * task).sum((1, 2)) < 0
    assert 0 < opposed.sum() < 12
    torch.testing.assert_close(joined[~opposed], both[~opposed])
    assert not torch.allclose(joined[opposed], both[opposed])


def test_the_fork_is_gone_afterwards_and_needs_an_encoder(model, tokenizer):
    with forked_concepts(model):
        pass
    assert not model.encoder._forward_hooks
    message = "conflict_safe needs a model with a ConceptEncoderModel, got Linear"
    with pytest.raises(ValueError, match=message), forked_concepts(nn.Linear(1, 1)):
        pass
    with pytest.raises(ValueError, match="conflict_safe=True protects the task from regularizers; name at least one"):
        ObjectiveArguments(conflict_safe=True)
