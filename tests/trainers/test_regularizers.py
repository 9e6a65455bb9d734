"""Regularizers on closed forms, and equal to what was recorded from the original implementation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from concept_encoder.trainers.objectives import regularizers
from concept_encoder.trainers.objectives.regularizers import REGULARIZERS

# Recorded name -> our function, and the recorded custom parameters.
RECORDED = {
    "orthogonality": ("orthogonality", {}),
    "soft_orthogonality": ("soft_orthogonality", {"threshold": 0.3}),
    "uniformity": ("gaussian_potential", {"temperature": 3.0}),
    "variance": ("variance", {"target_std": 0.5}),
    "covariance": ("covariance", {}),
    "vicreg": ("vicreg", {"variance_weight": 0.5, "covariance_weight": 2.0}),
    "combined": ("variance_and_potential", {"variance_weight": 0.5, "uniformity_weight": 2.0, "temperature": 1.0}),
    "t_regs_mst": ("nearest_neighbor_spread", {}),
}


def orthonormal(texts=3, concepts=6, size=16):
    return torch.linalg.qr(torch.randn(texts, size, size, dtype=torch.float64))[0][:, :concepts]


def collapsed(texts=3, concepts=6, size=16):
    return torch.randn(texts, 1, size, dtype=torch.float64).expand(-1, concepts, -1).clone()


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("inputs", ["random", "collapsed", "lowrank", "scaled"])
def test_equals_the_original(shared, inputs, name):
    recorded = np.load(shared / "parity" / "losses" / "arrays.npz")
    concepts = torch.from_numpy(recorded[f"x_{inputs}"]).requires_grad_()
    own, custom = RECORDED[name]
    value = REGULARIZERS[own](concepts)
    (gradient,) = torch.autograd.grad(value, concepts)
    assert value.item() == pytest.approx(recorded[f"{inputs}/{name}"].item(), rel=1e-4, abs=1e-6)
    assert gradient.norm().item() == pytest.approx(recorded[f"{inputs}/{name}/gradnorm"].item(), rel=1e-3, abs=1e-6)
    if custom:
        value = REGULARIZERS[own](concepts, **custom)
        assert value.item() == pytest.approx(recorded[f"{inputs}/{name}/custom"].item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "at_orthonormal", "at_collapsed"),
    [
        ("orthogonality", 0, 1),
        ("soft_orthogonality", 0, 0.81),
        ("gaussian_potential", math.exp(-4), 1),
        ("variance_and_potential", None, None),
        ("nearest_neighbor_spread", -math.sqrt(2), 0),
        ("coding_rate_hinge", None, None),
    ],
)
def test_closed_forms(name, at_orthonormal, at_collapsed):
    torch.manual_seed(0)
    good, bad = REGULARIZERS[name](orthonormal()), REGULARIZERS[name](collapsed())
    if at_orthonormal is not None:
        assert good.item() == pytest.approx(at_orthonormal, abs=1e-6)
        assert bad.item() == pytest.approx(at_collapsed, abs=1e-6)
    assert bad > good


def test_coding_rate_of_orthonormal_and_of_collapsed_concepts():
    concepts, size, epsilon = 6, 16, 0.5
    torch.manual_seed(0)
    scale = size / (concepts * epsilon**2)
    spread = regularizers.coding_rate(orthonormal(), epsilon)
    assert spread.item() == pytest.approx(concepts * math.log1p(scale) / 2)
    single = regularizers.coding_rate(collapsed(), epsilon)
    assert single.item() == pytest.approx(math.log1p(concepts * scale) / 2)


def test_coding_rate_hinge_rests_once_the_share_is_reached():
    torch.manual_seed(0)
    assert regularizers.coding_rate_hinge(orthonormal(), share=1.0).item() == pytest.approx(0, abs=1e-9)
    assert regularizers.coding_rate_hinge(orthonormal(), share=0.8).item() == 0
    ratio = (regularizers.coding_rate(collapsed()) / regularizers.coding_rate(orthonormal())).item()
    assert regularizers.coding_rate_hinge(collapsed(), share=1.0).item() == pytest.approx(1 - ratio)


def test_only_slot_vicreg_sees_a_template():
    """Spread concepts that are the same for every text satisfy all but the one that compares texts."""
    torch.manual_seed(0)
    template = 4 * torch.randn(1, 64, 16, dtype=torch.float64).expand(8, -1, -1)
    content = 4 * torch.randn(8, 64, 16, dtype=torch.float64)
    assert regularizers.variance(template) == regularizers.variance(content) == 0
    assert regularizers.slot_vicreg(template, covariance_weight=0).item() == pytest.approx(25 * (1 - 0.01))
    assert regularizers.slot_vicreg(content, covariance_weight=0) < 1


def test_slot_vicreg_is_vicreg_of_each_slot():
    torch.manual_seed(0)
    concepts = torch.randn(5, 3, 8, dtype=torch.float64)
    each = [regularizers.vicreg(concepts[:, c : c + 1], 25.0, 1.0) for c in range(3)]
    torch.testing.assert_close(regularizers.slot_vicreg(concepts), torch.stack(each).mean())


@pytest.mark.parametrize("name", REGULARIZERS)
def test_gradients_are_right(name):
    torch.manual_seed(0)
    concepts = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(REGULARIZERS[name], (concepts,))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_step_down_the_gradient_spreads_near_copies(name):
    """All of them push in the direction that they promise, and none is stuck at nearly equal concepts."""
    torch.manual_seed(0)
    concepts = (0.5 * collapsed() + 0.05 * torch.randn(3, 6, 16, dtype=torch.float64)).requires_grad_()
    before = REGULARIZERS[name](concepts)
    (gradient,) = torch.autograd.grad(before, concepts)
    after = REGULARIZERS[name](concepts - 1e-3 * gradient / gradient.norm())
    assert torch.isfinite(gradient).all()
    assert after < before


@pytest.mark.parametrize("name", ["orthogonality", "gaussian_potential"])
def test_a_single_concept_has_no_pairs(name):
    with pytest.raises(ValueError, match="pairs of concepts need at least 2 concepts per text, got 1"):
        REGULARIZERS[name](torch.randn(2, 1, 4))


@pytest.mark.parametrize(("name", "kind"), [("slot_vicreg", "variance"), ("covariance", "covariance")])
def test_a_single_vector_has_no_variance(name, kind):
    with pytest.raises(ValueError, match=f"a {kind} needs at least 2 vectors, got 1; enlarge the batch"):
        REGULARIZERS[name](torch.randn(1, 1, 4))


def test_what_is_kept_is_used_or_recorded():
    """No term without a use: a recipe, a comparison or gate 1; or the records of the original."""
    files = [path.read_text() for path in (Path(__file__).parents[2] / "scripts").rglob("*.yaml")]
    assert all(any(f"{function.__name__}:" in text for text in files) for function in regularizers.OWN)
    assert {function.__name__ for function in regularizers.PUBLISHED} == {own for own, _ in RECORDED.values()}
