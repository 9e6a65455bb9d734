import pytest
import torch

from concept_encoder.eval.concepts.monitor import monitor_concepts


def test_noise_has_the_rank_of_its_null_and_all_content():
    concepts = torch.randn(64, 16, 64, generator=torch.Generator().manual_seed(1))
    figures, warning = monitor_concepts(concepts)
    assert figures["concepts_rankme_share"] == pytest.approx(1, abs=0.02)
    assert figures["concepts_content_share"] == pytest.approx(1 - 1 / 8, abs=0.03)  # 8 texts, so 7/8 of the variance
    assert figures["concepts_similarity"] == pytest.approx((2 / torch.pi / 64) ** 0.5, rel=0.1)
    assert warning is None


def test_orthonormal_concepts_have_rank_c():
    concepts = torch.linalg.qr(torch.randn(3, 32, 8))[0].mT
    figures, _ = monitor_concepts(concepts)
    assert figures["concepts_rankme"] == pytest.approx(8, rel=1e-4)
    assert figures["concepts_similarity"] == pytest.approx(0, abs=1e-6)


def test_collapsed_concepts_are_named_in_words():
    concepts = torch.randn(8, 1, 64) + 1e-3 * torch.randn(8, 32, 64)  # near copies, apart in all directions
    figures, warning = monitor_concepts(concepts)
    assert figures["concepts_rankme"] < 1.3 and figures["concepts_similarity"] > 0.999
    assert warning is not None and warning.startswith("concepts collapsed: the 32 concepts of a text span 1.")


def test_a_template_has_no_content():
    figures, warning = monitor_concepts(torch.randn(1, 16, 32).expand(8, -1, -1))
    assert figures["concepts_content_share"] == pytest.approx(0, abs=1e-6)
    assert warning == "concepts collapsed: only 0.0% of their variance depends on the text, the rest is a template"


def test_one_concept_and_half_precision_give_finite_numbers():
    for concepts in (torch.randn(4, 1, 8), torch.randn(4, 6, 8, dtype=torch.bfloat16)):
        figures, _ = monitor_concepts(concepts)
        assert all(value == value for value in figures.values())
