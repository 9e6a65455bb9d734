"""The reference's geometry figures: recorded values, closed forms, the `evaluate` interface and every message."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from concept_encoder.eval.metrics import concept_geometry as module
from concept_encoder.eval.metrics.concept_geometry import (
    ConceptGeometry,
    dimension_std,
    geometry_metrics,
    similarity_matrix,
    template_spectrum,
)

PARITY = Path(__file__).parents[3] / "shared" / "parity" / "geometry" / "arrays.npz"
MODULE_FOLDER = str(Path(module.__file__).resolve().parent)
FIXTURE_NAMES = {"top1_dominance": "top_1_dominance_ratio"}  # recorded name -> name in the published figures
METRIC_NAMES = [
    "effective_rank",
    "effective_rank_normalized",
    "dimensions_for_95_variance",
    "top_1_variance_ratio",
    "top_5_variance_ratio",
    "max_concept_similarity",
    "mean_concept_similarity",
    "std_concept_similarity",
    "uniformity_loss",
    "isotropy",
    "participation_ratio",
    "participation_ratio_normalized",
    "mean_dimension_std",
    "min_dimension_std",
    "max_dimension_std",
    "collapsed_dimensions",
    "collapsed_dimensions_ratio",
    "mean_concept_norm",
    "std_concept_norm",
    "min_concept_norm",
    "max_concept_norm",
    "global_effective_rank",
    "global_effective_rank_normalized",
    "top_1_dominance_ratio",
]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.skipif(not PARITY.exists(), reason="../shared/parity/geometry is absent")
@pytest.mark.parametrize("name", ["random", "structured", "dead_dims", "wide", "tiny_c"])
def test_equals_recorded_reference(name: str) -> None:
    recorded = np.load(PARITY)
    concepts = recorded[f"x_{name}"]
    metrics = geometry_metrics(concepts, batch_size=len(concepts))
    keys = [key.split("/")[1] for key in recorded.files if key.startswith(f"{name}/")]
    assert {FIXTURE_NAMES.get(key, key) for key in keys} - {"singular_values"} == set(metrics)
    for key in keys:
        value = recorded[f"{name}/{key}"]
        if key == "singular_values":
            np.testing.assert_allclose(template_spectrum(concepts), value, rtol=1e-4)
        else:  # one tolerance for all, isotropy included: its float32 noise stays below 4e-5
            np.testing.assert_allclose(metrics[FIXTURE_NAMES.get(key, key)], value, rtol=1e-4, atol=1e-12, err_msg=key)


def test_names_are_the_reference_names() -> None:
    assert list(geometry_metrics(gaussian(4, 6, 8), 2)) == METRIC_NAMES


def test_orthonormal_concepts() -> None:
    concepts = np.broadcast_to(np.eye(8), (4, 8, 8))
    metrics = geometry_metrics(concepts, 4)
    assert metrics["effective_rank"] == pytest.approx(8)
    assert metrics["effective_rank_normalized"] == metrics["global_effective_rank_normalized"] == pytest.approx(1)
    assert metrics["dimensions_for_95_variance"] == 8
    assert metrics["top_1_variance_ratio"] == metrics["top_1_dominance_ratio"] == pytest.approx(1 / 8)
    assert metrics["top_5_variance_ratio"] == pytest.approx(5 / 8)
    for name in ("mean_concept_similarity", "max_concept_similarity", "std_concept_similarity"):
        assert metrics[name] == pytest.approx(0, abs=1e-12)
    assert metrics["uniformity_loss"] == pytest.approx(np.exp(-4))
    assert metrics["mean_concept_norm"] == metrics["max_concept_norm"] == pytest.approx(1)
    # 32 one-hot vectors, each axis with probability 1/8: variance p(1-p), Bessel factor 32/31
    assert metrics["mean_dimension_std"] == metrics["min_dimension_std"] == pytest.approx(np.sqrt(7 / 64 * 32 / 31))
    # seven equal eigenvalues and the null direction of the ones vector, clamped
    assert metrics["participation_ratio"] == pytest.approx(7, rel=1e-4)
    assert metrics["isotropy"] == pytest.approx(1e-8 / (1 / 8 * 32 / 31))


def test_collapsed_concepts() -> None:
    concepts = np.broadcast_to(np.array([3.0, 4.0, 0.0, 0.0]), (6, 5, 4))
    metrics = geometry_metrics(concepts, 3)
    assert metrics["effective_rank"] == metrics["global_effective_rank"] == pytest.approx(1)
    assert metrics["effective_rank_normalized"] == pytest.approx(1 / 4)
    assert metrics["dimensions_for_95_variance"] == 1
    assert metrics["top_1_variance_ratio"] == metrics["top_1_dominance_ratio"] == pytest.approx(1)
    assert metrics["mean_concept_similarity"] == metrics["max_concept_similarity"] == pytest.approx(1)
    assert metrics["uniformity_loss"] == pytest.approx(1)
    assert metrics["collapsed_dimensions"] == 4
    assert metrics["collapsed_dimensions_ratio"] == 1
    assert metrics["mean_concept_norm"] == pytest.approx(5)
    assert metrics["std_concept_norm"] == pytest.approx(0)
    # these two are the clamp's doing
    assert metrics["isotropy"] == 1
    assert metrics["participation_ratio"] == pytest.approx(4)


def test_rank_one_concepts_of_both_signs() -> None:
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    concepts = np.broadcast_to(signs[:, None] * np.array([2.0, 0.0, 0.0]), (3, 4, 3))
    metrics = geometry_metrics(concepts, 3)
    assert metrics["effective_rank"] == pytest.approx(1)
    assert metrics["mean_concept_similarity"] == pytest.approx(1)  # absolute cosine
    assert metrics["max_concept_similarity"] == pytest.approx(1)
    assert metrics["std_concept_similarity"] > 0.9  # signed cosine: 1/3 are +1, 2/3 are -1
    assert metrics["uniformity_loss"] == pytest.approx((4 + 8 * np.exp(-8)) / 12)
    assert metrics["collapsed_dimensions"] == 2
    assert metrics["participation_ratio"] == pytest.approx(1, abs=1e-6)


def test_random_concepts_reach_the_known_null() -> None:
    """Nuclear over spectral norm of a 128 x 512 Gaussian is 83, not 128 (random matrix theory)."""
    metrics = geometry_metrics(gaussian(1, 128, 512), 1)
    assert metrics["global_effective_rank"] == pytest.approx(83, abs=1)
    assert metrics["mean_concept_similarity"] == pytest.approx(np.sqrt(2 / np.pi / 512), rel=0.02)
    assert metrics["mean_concept_norm"] == pytest.approx(np.sqrt(512), rel=0.01)
    assert metrics["collapsed_dimensions"] == 0


def test_layer_norm_output_has_isotropy_at_the_clamp() -> None:
    concepts = torch.nn.functional.layer_norm(torch.from_numpy(gaussian(8, 16, 32)), (32,)).numpy()
    assert geometry_metrics(concepts, 8)["isotropy"] < 1e-7


def test_batches_are_averaged_and_global_figures_are_not() -> None:
    concepts = gaussian(6, 4, 8)
    whole, halves = geometry_metrics(concepts, 6), geometry_metrics(concepts, 3)
    first, second = geometry_metrics(concepts[:3], 3), geometry_metrics(concepts[3:], 3)
    for name in METRIC_NAMES:
        if name.startswith("global_") or name == "top_1_dominance_ratio":
            assert halves[name] == whole[name]
        else:
            assert halves[name] == pytest.approx((first[name] + second[name]) / 2)
    assert halves["max_concept_similarity"] < whole["max_concept_similarity"]
    assert whole["top_1_dominance_ratio"] == pytest.approx(1 / whole["global_effective_rank"])


def test_last_batch_may_be_smaller() -> None:
    concepts = gaussian(5, 4, 8)
    parts = [geometry_metrics(concepts[start : start + 2], 2)["effective_rank"] for start in (0, 2, 4)]
    assert geometry_metrics(concepts, 2)["effective_rank"] == pytest.approx(np.mean(parts))


def test_similarity_matrix_and_dimension_std() -> None:
    concepts = gaussian(5, 4, 8)
    unit = concepts / np.linalg.norm(concepts, axis=-1, keepdims=True)
    np.testing.assert_allclose(similarity_matrix(concepts), np.einsum("scd,sed->ce", unit, unit) / 5, atol=1e-6)
    np.testing.assert_allclose(dimension_std(concepts), concepts.reshape(20, 8).std(0, ddof=1), rtol=1e-5)


def test_zero_vectors_have_cosine_zero() -> None:
    concepts = gaussian(2, 3, 8)
    concepts[:, 0] = 0
    assert np.abs(similarity_matrix(concepts)[0]).max() == 0


def test_measurement_equals_the_functions_by_path_and_by_import() -> None:
    concepts = gaussian(6, 5, 8)
    expected = geometry_metrics(concepts, 2)
    imported = ConceptGeometry(keep_in_memory=True).compute(concepts=concepts, batch_size=2)
    loaded = evaluate.load(MODULE_FOLDER, keep_in_memory=True)
    assert loaded.name == "concept_geometry"
    from_lists = loaded.compute(concepts=concepts.tolist(), batch_size=2)
    assert from_lists == imported
    assert imported.pop("top5_singular_values") == list(template_spectrum(concepts)[:5])
    assert imported == expected


def test_measurement_collects_batches_of_tensors() -> None:
    concepts = gaussian(6, 5, 8)
    measurement = ConceptGeometry(keep_in_memory=True)
    for start in range(0, 6, 3):
        measurement.add_batch(concepts=torch.from_numpy(concepts[start : start + 3]))
    result = measurement.compute(batch_size=3)
    assert {name: result[name] for name in METRIC_NAMES} == geometry_metrics(concepts, 3)


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (gaussian(4, 8), r"shape \(samples, concepts, hidden size\).*got \(4, 8\)"),
        (gaussian(4, 1, 8), r"2 concepts, got \(4, 1, 8\)"),
        (np.zeros((0, 4, 8)), r"at least 1 sample.*got \(0, 4, 8\)"),
        (np.full((2, 3, 4), np.nan), "NaN or infinity in 2 of 2 samples"),
        (np.zeros((2, 3, 4)), "average to an all-zero matrix"),
    ],
)
def test_bad_concepts(concepts: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometry_metrics(concepts, 2)


def test_bad_batch_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        geometry_metrics(gaussian(2, 3, 4), 0)


def test_ragged_samples() -> None:
    measurement = ConceptGeometry(keep_in_memory=True)
    with pytest.raises(ValueError, match="same number of concepts"):
        measurement.compute(concepts=[np.ones((2, 3)).tolist(), np.ones((4, 3)).tolist()], batch_size=2)
