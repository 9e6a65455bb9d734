"""Standard spectrum figures: a plain second implementation, closed forms, streaming, intervals and every message."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

from concept_encoder.eval.metrics import concept_spectrum as module
from concept_encoder.eval.metrics.concept_spectrum import (
    ConceptSpectrum,
    SpectrumAccumulator,
    bootstrap_intervals,
    gaussian_null,
    spectrum_metrics,
    static_slots_null,
)
from concept_encoder.eval.metrics.concept_spectrum.concept_spectrum import _resampled_across, _resampled_template

MODULE_FOLDER = str(Path(module.__file__).resolve().parent)
NAMES = [
    *(
        f"{view}_{metric}"
        for view in ("template", "within_raw", "within_centred", "across")
        for metric in (
            "rankme",
            "participation_ratio",
            "energy_rank",
            "isoscore",
            "uniformity",
            "duplicate_pairs",
        )
    ),
    "content_share",
]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def structured(documents: int, seed: int = 0) -> np.ndarray:
    """Concepts with a template, a decaying spectrum and an offset: (documents, 5, 12)."""
    scale = 0.8 ** np.arange(12)
    return gaussian(5, 12, seed=seed + 1) + gaussian(documents, 5, 12, seed=seed) * scale + 0.5


def plain_isoscore(points: np.ndarray) -> float:
    """The published steps, one by one, in the complement of the ones direction; points (n, D)."""
    hidden_size = points.shape[1]
    complement = np.linalg.svd(np.ones((1, hidden_size)))[2][1:]  # (D - 1, D), orthonormal
    covariance = np.cov((points @ complement.T).T)
    axes = np.linalg.eigvalsh(covariance)  # the covariance of the points in their principal axes is diagonal
    d = hidden_size - 1
    normalised = np.sqrt(d) * axes / np.linalg.norm(axes)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (d - np.sqrt(d)))
    share = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    return (d * share - 1) / (d - 1)


def plain_matrix(spectral: np.ndarray, paired: np.ndarray) -> list[float]:
    """Figures of one matrix with loops; ranks of `spectral`, pairs of `paired`, both (n, D)."""
    singular = np.linalg.svd(spectral, compute_uv=False)
    shares = singular / singular.sum()
    rankme = np.exp(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
    energy = singular**2 / np.sum(singular**2)
    energy_rank = next(k for k in range(1, len(energy) + 1) if energy[:k].sum() >= 0.95)
    unit = paired / np.linalg.norm(paired, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(len(unit)) for j in range(i)]
    kernel = [np.exp(-2 * np.sum((unit[i] - unit[j]) ** 2)) for i, j in pairs]
    near = [unit[i] @ unit[j] > 0.95 for i, j in pairs]
    return [
        rankme,
        1 / np.sum(energy**2),
        energy_rank,
        plain_isoscore(spectral),
        np.log(np.mean(kernel)),
        np.mean(near),
    ]


def plain_spectrum(concepts: np.ndarray) -> dict[str, float]:
    template = concepts.mean(axis=0)
    centred = [document - document.mean(axis=0) for document in concepts]
    rows = [
        plain_matrix(template, template),
        np.mean([plain_matrix(document, document) for document in concepts], axis=0),
        np.mean([plain_matrix(document, document) for document in centred], axis=0),
        np.mean([plain_matrix(c - c.mean(axis=0), c) for c in concepts.swapaxes(0, 1)], axis=0),
    ]
    within = np.mean([np.trace(np.cov(c.T, ddof=0)) for c in concepts.swapaxes(0, 1)])
    share = within / np.trace(np.cov(concepts.reshape(-1, concepts.shape[-1]).T, ddof=0))
    return dict(zip(NAMES, [*np.concatenate(rows), share], strict=True))


@pytest.mark.parametrize("documents", [7, 40], ids=["fewer documents than dimensions", "more"])
def test_equals_a_plain_implementation(documents: int) -> None:
    concepts = structured(documents)
    assert spectrum_metrics(concepts) == pytest.approx(plain_spectrum(concepts), rel=1e-6, abs=1e-9)


def test_streaming_equals_all_at_once() -> None:
    concepts = structured(41) + 30  # a large offset, which naive sums of squares would lose
    accumulator = SpectrumAccumulator()
    for part in np.split(concepts, [1, 2, 19, 20]):
        accumulator.update(part)
    assert accumulator.result() == pytest.approx(spectrum_metrics(concepts), rel=1e-9)
    assert accumulator.result() == pytest.approx(plain_spectrum(concepts), rel=1e-6, abs=1e-9)


def test_documents_beyond_the_buffer_are_folded_exactly() -> None:
    concepts = structured(700) + 30  # the buffer holds 256, so three folds
    accumulator = SpectrumAccumulator()
    for part in np.split(concepts, [3, 250, 251, 600]):
        accumulator.update(part)
    figures, template = accumulator.result(), concepts.mean(axis=0)
    across = np.mean([plain_matrix(c - c.mean(axis=0), c[:9])[:4] for c in concepts.swapaxes(0, 1)], axis=0)
    assert [figures[name] for name in NAMES[:6]] == pytest.approx(plain_matrix(template, template), rel=1e-6)
    assert [figures[name] for name in NAMES[18:22]] == pytest.approx(across, rel=1e-6)
    assert accumulator._folded == 700
    accumulator.update(concepts[:5])  # a result does not end the stream
    assert accumulator.result() == pytest.approx(spectrum_metrics(np.concatenate([concepts, concepts[:5]])), rel=1e-9)


def test_more_dimensions_than_documents_needs_no_scatter() -> None:
    concepts = gaussian(20, 3, 64)
    accumulator = SpectrumAccumulator()
    accumulator.update(concepts)
    before = accumulator.result()
    assert accumulator._scatter is None
    accumulator._fold()
    assert accumulator.result() == pytest.approx(before, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_100_000_documents_in_bounded_memory() -> None:
    """Nothing held grows but twelve figures per document; a part of the stream has the figures it has alone."""
    accumulator, part, kept = SpectrumAccumulator(), None, []
    for seed in range(400):
        batch = (gaussian(8, 32) + gaussian(250, 8, 32, seed=seed) * 0.9 ** np.arange(32)).astype(np.float32)
        accumulator.update(batch)
        if seed < 8:
            kept.append(batch)
        if seed == 7:
            part = accumulator.result()
    assert part == pytest.approx(spectrum_metrics(np.concatenate(kept)), rel=1e-9)
    assert accumulator._count == 100_000
    assert sum(len(block) for block in accumulator._block) <= 256
    assert sum(len(block) for block in accumulator._kept) == 256
    assert accumulator._scatter.shape == (8, 32, 32)
    assert sum(part.nbytes for part in accumulator._within) == 100_000 * 12 * 8
    assert accumulator.result()["content_share"] == pytest.approx(part["content_share"], rel=0.02)


def test_memory_does_not_grow_with_the_documents() -> None:
    accumulator = SpectrumAccumulator()
    for seed in range(4):
        accumulator.update(gaussian(100, 3, 6, seed=seed))
    assert sum(part.nbytes for part in accumulator._kept) == 256 * 3 * 6 * 4
    assert sum(part.nbytes for part in accumulator._within) == 400 * 12 * 8
    assert accumulator._scatter.shape == (3, 6, 6)


def test_pairs_across_documents_are_those_of_the_first_256() -> None:
    concepts = structured(300)
    pairs = ["across_uniformity", "across_duplicate_pairs"]
    whole, first = spectrum_metrics(concepts), spectrum_metrics(concepts[:256])
    assert [whole[name] for name in pairs] == pytest.approx([first[name] for name in pairs], rel=1e-6)
    assert whole["across_rankme"] != first["across_rankme"]


def test_orthonormal_concepts_the_same_for_every_document() -> None:
    figures = spectrum_metrics(np.broadcast_to(np.eye(8), (4, 8, 8)))
    for view in ("template", "within_raw"):
        assert figures[f"{view}_rankme"] == pytest.approx(8)
        assert figures[f"{view}_participation_ratio"] == pytest.approx(8)
        assert figures[f"{view}_energy_rank"] == 8  # 7 of 8 hold 87.5 %
        assert figures[f"{view}_uniformity"] == pytest.approx(-4)
        assert figures[f"{view}_duplicate_pairs"] == 0
        # about their mean the rows fill the complement of the ones direction evenly
        assert figures[f"{view}_isoscore"] == pytest.approx(1)
    assert figures["within_centred_rankme"] == pytest.approx(7)
    assert figures["content_share"] == 0


def test_static_slots_say_nothing_about_the_document() -> None:
    figures = spectrum_metrics(np.broadcast_to(gaussian(6, 16).astype(np.float32), (10, 6, 16)))
    assert [figures[f"across_{metric}"] for metric in ("rankme", "participation_ratio", "energy_rank")] == [0, 0, 0]
    assert figures["across_isoscore"] == 0
    assert figures["across_duplicate_pairs"] == 1
    assert figures["across_uniformity"] == pytest.approx(0)
    assert figures["content_share"] == pytest.approx(0, abs=1e-12)


def test_static_slots_null_is_the_template_for_every_document() -> None:
    concepts, normal = structured(9), np.linspace(1, 2, 12)
    null = static_slots_null(concepts, normal)
    repeated = spectrum_metrics(np.broadcast_to(concepts.mean(axis=0), concepts.shape), normal)
    assert list(null) == NAMES
    assert null["content_share"] == 0
    for name in NAMES[:18]:
        assert null[name] == pytest.approx(repeated[name], rel=1e-6, abs=1e-9)
    assert {null[name] for name in NAMES[18:24]} == {None}


def test_the_sum_over_concepts_would_be_c_times_the_share() -> None:
    """Cov_bc averages over concepts, so the sum of the concepts' own covariances reaches C, not 1."""
    concepts = np.repeat(gaussian(300, 1, 8), 4, axis=1)  # all of the variance is content
    total = np.trace(np.cov(concepts.reshape(-1, 8).T, ddof=0))
    summed = sum(np.trace(np.cov(concepts[:, c].T, ddof=0)) for c in range(4))
    assert summed / total == pytest.approx(4)
    assert spectrum_metrics(concepts)["content_share"] == pytest.approx(summed / total / 4)


def test_collapsed_concepts_that_differ_between_documents() -> None:
    figures = spectrum_metrics(np.repeat(gaussian(200, 1, 8), 4, axis=1))
    assert figures["within_raw_rankme"] == pytest.approx(1, abs=1e-5)
    assert figures["within_raw_duplicate_pairs"] == 1
    assert figures["within_raw_uniformity"] == pytest.approx(0, abs=1e-9)
    assert figures["within_centred_rankme"] == figures["within_centred_duplicate_pairs"] == 0
    assert figures["across_participation_ratio"] > 7
    assert figures["content_share"] == pytest.approx(1)


def test_rank_one_concepts() -> None:
    signs = np.where(gaussian(6, 5) > 0, 1.0, -1.0)
    figures = spectrum_metrics(signs[:, :, None] * np.arange(1.0, 9.0))
    assert figures["within_raw_rankme"] == pytest.approx(1, abs=1e-5)
    assert figures["within_raw_participation_ratio"] == pytest.approx(1)
    assert figures["within_raw_energy_rank"] == 1
    assert figures["within_raw_isoscore"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_content_share_is_the_planted_one() -> None:
    concepts = 2 * gaussian(1, 50, 40) + gaussian(400, 50, 40, seed=1)
    assert spectrum_metrics(concepts)["content_share"] == pytest.approx(1 / 5, rel=0.05)


@pytest.mark.slow
def test_isoscore_leaves_out_the_direction_a_layer_norm_removes() -> None:
    weight = np.exp(gaussian(24))
    raw = gaussian(2000, 2, 24)
    normalised = raw - raw.mean(axis=-1, keepdims=True)
    normalised /= normalised.std(axis=-1, keepdims=True)
    assert spectrum_metrics(normalised)["across_isoscore"] == pytest.approx(1, abs=0.02)
    scaled = normalised * weight
    projected = scaled - (scaled @ (1 / weight))[..., None] * (1 / weight) / np.square(1 / weight).sum()
    np.testing.assert_allclose(projected, scaled, atol=1e-9)  # 1 / weight is the direction without any spread
    assert spectrum_metrics(scaled, normal=1 / weight)["across_isoscore"] > spectrum_metrics(scaled)["across_isoscore"]


@pytest.mark.slow
def test_gaussian_null_reaches_the_known_values() -> None:
    """Entropy rank of a square-ish Gaussian is near its size, unlike nuclear over spectral norm (83 of 128)."""
    null = gaussian_null(300, 32, 128, seed=0)
    assert null == gaussian_null(300, 32, 128, seed=0)
    assert 30 < null["within_raw_rankme"] < 32
    assert null["within_raw_participation_ratio"] == pytest.approx(32 * 128 / (32 + 128), rel=0.05)  # Marchenko-Pastur
    assert null["across_participation_ratio"] == pytest.approx(300 * 128 / (300 + 128), rel=0.05)
    assert null["within_raw_uniformity"] == pytest.approx(-4 + 8 / 128, abs=0.02)
    assert null["content_share"] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_intervals_are_seeded_and_hold_the_value() -> None:
    concepts = structured(40)
    intervals = bootstrap_intervals(concepts, seed=1, num_resamples=200)
    assert intervals == bootstrap_intervals(concepts, seed=1, num_resamples=200)
    assert intervals != bootstrap_intervals(concepts, seed=2, num_resamples=200)
    figures = spectrum_metrics(concepts)
    assert list(intervals) == list(figures) == NAMES
    for name, (low, high) in intervals.items():
        assert low <= figures[name] <= high, name
    narrow = bootstrap_intervals(concepts, seed=1, num_resamples=200, confidence=0.5)
    for name in ("template_rankme", "across_rankme", "content_share", "within_raw_uniformity"):
        assert narrow[name][1] - narrow[name][0] < intervals[name][1] - intervals[name][0]


def test_resampled_figures_equal_figures_of_the_resampled_documents() -> None:
    """The weighted formulas against documents really repeated; pairs of copies aside, which only weights leave out."""
    concepts, counts = structured(12), np.array([[2, 0, 1, 1, 3, 0, 0, 1, 1, 1, 2, 0]])
    repeated = spectrum_metrics(np.repeat(concepts, counts[0], axis=0))
    normal = np.ones(12) / np.sqrt(12)
    template, share = _resampled_template(concepts, counts, normal)
    across = _resampled_across(concepts, counts, normal)
    assert template[0] == pytest.approx([repeated[name] for name in NAMES[:6]])
    assert across[0, :4] == pytest.approx([repeated[name] for name in NAMES[18:22]])
    assert share[0, 0] == pytest.approx(repeated["content_share"])


def test_pairs_of_copies_do_not_count() -> None:
    """Far-apart documents stay without duplicates however often each is drawn."""
    concepts = np.repeat(np.eye(6)[:, None], 2, axis=1)
    low, high = bootstrap_intervals(concepts, seed=0, num_resamples=100)["across_duplicate_pairs"]
    assert low == high == 0


@pytest.mark.slow
def test_interval_width_agrees_with_fresh_samples() -> None:
    """Spread over resamples of 100 documents against the spread over 60 draws of 100 new documents."""
    name = "within_raw_participation_ratio"
    fresh = [spectrum_metrics(gaussian(100, 5, 12, seed=seed))[name] for seed in range(60)]
    low, high = bootstrap_intervals(gaussian(100, 5, 12), seed=0)[name]
    assert high - low == pytest.approx(2 * 1.96 * np.std(fresh), rel=0.35)


def test_measurement_equals_the_function_by_path_and_by_import() -> None:
    concepts = gaussian(6, 5, 8).astype(np.float32)
    expected = spectrum_metrics(concepts)
    assert evaluate.load(MODULE_FOLDER, keep_in_memory=True).compute(concepts=concepts) == expected
    measurement = ConceptSpectrum(keep_in_memory=True)
    for part in np.split(concepts, 3):
        measurement.add_batch(concepts=part)
    assert measurement.compute() == expected


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (gaussian(4, 8), r"shape \(documents, concepts, hidden size\).*got \(4, 8\)"),
        (gaussian(4, 1, 8), r"2 concepts .*got \(4, 1, 8\)"),
        (gaussian(4, 3, 2), r"hidden size 3, got \(4, 3, 2\)"),
        (np.full((2, 3, 4), np.inf), "NaN or infinity in 2 of 2 documents"),
        (gaussian(1, 3, 4), "at least 2 of them, got 1"),
    ],
)
def test_bad_concepts(concepts: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectrum_metrics(concepts)


def test_batches_of_different_size() -> None:
    accumulator = SpectrumAccumulator()
    accumulator.update(gaussian(2, 3, 4))
    with pytest.raises(ValueError, match=r"must hold \(3, 4\) .*got \(3, 5\)"):
        accumulator.update(gaussian(2, 3, 5))


def test_result_before_any_document() -> None:
    with pytest.raises(ValueError, match="at least 2 of them, got 0"):
        SpectrumAccumulator().result()


def test_bad_normal() -> None:
    for normal in (np.ones(3), np.zeros(4), np.full(4, np.nan)):
        with pytest.raises(ValueError, match="normal must be a finite, nonzero vector of hidden size 4"):
            spectrum_metrics(gaussian(3, 3, 4), normal)


@pytest.mark.slow
def test_bad_resampling() -> None:
    with pytest.raises(ValueError, match="num_resamples must be at least 2, got 1"):
        bootstrap_intervals(gaussian(4, 3, 5), seed=0, num_resamples=1)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1"):
        bootstrap_intervals(gaussian(4, 3, 5), seed=0, confidence=1)
    with pytest.raises(ValueError, match="2 documents are too few to resample pairs"):
        bootstrap_intervals(gaussian(2, 3, 5), seed=0)


def test_ragged_documents() -> None:
    with pytest.raises(ValueError, match="same number of concepts"):
        ConceptSpectrum(keep_in_memory=True).compute(concepts=[np.ones((2, 3)).tolist(), np.ones((4, 3)).tolist()])
