"""Geometry of concepts: grades, encoding, the fields of geometry.json and the spectrum next to its nulls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config

from concept_encoder import ConceptEncoderModel
from concept_encoder.eval.concepts.geometry import GRADES, collect_concepts, geometry, grade, spectrum_section
from concept_encoder.eval.metrics.concept_geometry import geometry_metrics
from concept_encoder.eval.metrics.concept_spectrum import bootstrap_intervals, gaussian_null, spectrum_metrics

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "diffusion_l2.json"
NUM_CONCEPTS, HIDDEN_SIZE = 6, 16


def make_config(**changes):
    return tiny_config(**{"hidden_size": HIDDEN_SIZE, "num_attention_heads": 2, **changes})


def layer_normed(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    vectors -= vectors.mean(axis=-1, keepdims=True)
    return (vectors / vectors.std(axis=-1, keepdims=True)).astype(np.float32)


# --- grades ---


def graded(name: str, value: float, num_concepts: int = 128, hidden_size: int = 512) -> str:
    metrics = dict.fromkeys(GRADES, 0.0) | {name: value}
    return grade(metrics, num_concepts, hidden_size)[name]


@pytest.mark.parametrize(
    ("name", "good", "ok", "poor"),
    [
        ("global_effective_rank", 90.1, 90, 40),
        ("global_effective_rank_normalized", 0.71, 0.7, 0.3),
        ("effective_rank_normalized", 0.71, 0.7, 0.3),
        ("participation_ratio_normalized", 0.31, 0.3, 0.1),
        ("dimensions_for_95_variance", 51, 50, 10),
        ("collapsed_dimensions_ratio", 0.009, 0.01, 0.1),
        ("isotropy", 0.011, 0.01, 0.001),
        ("mean_concept_similarity", 0.29, 0.3, 0.5),
        ("max_concept_similarity", 0.59, 0.6, 0.8),
        ("uniformity_loss", 0.29, 0.3, 0.6),
        ("mean_dimension_std", 0.81, 0.8, 0.3),
        ("min_dimension_std", 0.11, 0.1, 0.01),
        ("top_1_dominance_ratio", 0.29, 0.3, 0.5),
    ],
)
def test_reference_thresholds(name: str, good: float, ok: float, poor: float) -> None:
    assert [graded(name, value) for value in (good, ok, poor)] == ["GOOD", "OK", "POOR"]


def test_every_rule_is_tested_above() -> None:
    assert len(GRADES) == 13


def test_rank_thresholds_scale_with_the_rank_bound() -> None:
    assert graded("global_effective_rank", 11.3, num_concepts=16, hidden_size=64) == "GOOD"  # 90 * 16 / 128 = 11.25
    assert graded("global_effective_rank", 11.2, num_concepts=16, hidden_size=64) == "OK"
    assert graded("dimensions_for_95_variance", 1, num_concepts=16, hidden_size=64) == "POOR"  # 10 * 16 / 128 = 1.25
    assert graded("global_effective_rank", 11.3, num_concepts=128, hidden_size=16) == "GOOD"
    assert graded("mean_dimension_std", 0.5, num_concepts=16, hidden_size=64) == "OK"


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/reference is absent")
def test_grades_of_the_reference_run() -> None:
    figures = json.loads(REFERENCE.read_text())["geometry"]
    grades = grade(figures, 128, 512)
    for name in ("global_effective_rank", "isotropy", "max_concept_similarity", "participation_ratio_normalized"):
        assert grades[name] == "POOR"
    assert grades["dimensions_for_95_variance"] == "OK"
    assert grades["mean_concept_similarity"] == grades["mean_dimension_std"] == "GOOD"


def test_grade_names_missing_metrics() -> None:
    with pytest.raises(ValueError, match=r"lack global_effective_rank, .*geometry_metrics"):
        grade({}, 128, 512)


# --- encoding ---


def test_collect_concepts_is_deterministic_and_restores_the_mode() -> None:
    torch.manual_seed(0)
    model = ConceptEncoderModel(make_config(hidden_dropout_prob=0.5)).train()
    ids = torch.randint(5, 19, (5, 7))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(2)]
    concepts = collect_concepts(model, batches, "cpu")
    assert concepts.shape == (5, NUM_CONCEPTS, HIDDEN_SIZE)
    assert concepts.dtype == np.float32
    assert model.training
    np.testing.assert_array_equal(concepts, collect_concepts(model, batches, "cpu"))
    with torch.no_grad():
        expected = model.eval()(ids).last_hidden_state.numpy()
    np.testing.assert_allclose(concepts, expected, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_collect_concepts_restores_the_mode_after_an_error() -> None:
    model = ConceptEncoderModel(make_config()).train()
    bad = {"input_ids": torch.full((1, 3), 10_000), "attention_mask": torch.ones(1, 3)}
    with pytest.raises(ValueError, match="token ids must be in"):
        collect_concepts(model, [bad], "cpu")
    assert model.training


def test_collect_concepts_without_batches() -> None:
    with pytest.raises(ValueError, match="no batches"):
        collect_concepts(ConceptEncoderModel(make_config()), [], "cpu")


# --- fields ---


@pytest.mark.slow
def test_geometry_holds_what_the_functions_give() -> None:
    concepts, random_concepts = layer_normed(12, 5, 16), layer_normed(12, 5, 16, seed=1)
    result = geometry(concepts, random_concepts, batch_size=5)
    assert (result.num_samples, result.num_batches, result.batch_size) == (12, 3, 5)
    assert (result.num_concepts, result.hidden_size) == (5, 16)
    assert result.metrics == geometry_metrics(concepts, 5)
    assert set(result.grades) == set(GRADES)
    assert len(result.singular_values) == 5
    assert len(result.dimension_std) == 16
    assert np.array(result.similarity_matrix).shape == (5, 5)
    assert np.diag(result.similarity_matrix) == pytest.approx(1)
    assert result.spectrum == spectrum_section(concepts, random_concepts)
    json.dumps(result.as_dict(), allow_nan=False)


@pytest.mark.slow
def test_what_a_layer_norm_fixes_is_marked() -> None:
    """For any vectors the marked figures say the same after a LayerNorm."""
    fixed = geometry(layer_normed(12, 5, 16), layer_normed(12, 5, 16), batch_size=12).by_construction
    assert fixed == [
        "collapsed_dimensions_ratio",
        "isotropy",
        "collapsed_dimensions",
        "mean_concept_norm",
        "std_concept_norm",
        "min_concept_norm",
        "max_concept_norm",
    ]
    noise = geometry_metrics(layer_normed(40, 5, 16), 40)
    collapsed = geometry_metrics(layer_normed(40, 1, 16).repeat(5, axis=1), 40)
    assert [noise[name] for name in fixed] == pytest.approx([collapsed[name] for name in fixed], abs=1e-5)
    assert abs(noise["mean_concept_similarity"] - collapsed["mean_concept_similarity"]) > 0.5


@pytest.mark.slow
def test_spectrum_figures_stand_beside_their_nulls() -> None:
    concepts, random_concepts = layer_normed(10, 5, 16), layer_normed(10, 5, 16, seed=1)
    normal = np.linspace(1, 2, 16)
    section = spectrum_section(concepts, random_concepts, normal)
    assert list(section.views) == ["template", "within_raw", "within_centred", "across"]
    assert section.num_documents == 10
    assert section.num_resamples == 200
    values, gaussian = spectrum_metrics(concepts, normal), gaussian_null(10, 5, 16, seed=0)
    random = spectrum_metrics(random_concepts)
    intervals = bootstrap_intervals(concepts, seed=0, num_resamples=200, normal=normal)
    figures = {f"{view}_{name}": row for view, table in section.views.items() for name, row in table.items()}
    figures["content_share"] = section.content_share
    assert list(figures) == list(values)
    for name, row in figures.items():
        assert row.value == values[name]
        assert row.interval == intervals[name]
        assert row.nulls.gaussian == gaussian[name]
        assert row.nulls.random_encoder == random[name]
        assert row.by_construction is False
    assert figures["content_share"].nulls.static_slots == 0
    assert {row.nulls.static_slots for row in section.views["across"].values()} == {None}
    for row in section.views["template"].values():
        assert row.nulls.static_slots == pytest.approx(row.value, abs=1e-9)


def test_too_few_documents() -> None:
    with pytest.raises(ValueError, match="need at least 8 of them, got 7"):
        spectrum_section(layer_normed(7, 5, 16), layer_normed(7, 5, 16))
