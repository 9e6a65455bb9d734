"""Geometry of concepts: encode documents, measure and grade by the reference's definitions and the standard ones."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from ...modeling_concept import ConceptEncoderModel
from ...utils.progress import progress
from ...utils.results import DataFacts, GeometryResult, Nulls, Spectrum, SpectrumFigure
from ..metrics.concept_geometry import dimension_std, geometry_metrics, similarity_matrix, template_spectrum
from ..metrics.concept_spectrum import bootstrap_intervals, gaussian_null, spectrum_metrics, static_slots_null
from ..metrics.concept_spectrum.concept_spectrum import METRICS, VIEWS

MIN_DOCUMENTS = 8  # fewer give resamples of one document only, which has no pairs
INTERVAL_RESAMPLES = 200  # of the documents; a spectrum each
# The reference does not grade these; the output LayerNorm fixes them all the same.
ALSO_BY_CONSTRUCTION = (
    "collapsed_dimensions",
    "mean_concept_norm",
    "std_concept_norm",
    "min_concept_norm",
    "max_concept_norm",
)


class GradeRule(NamedTuple):
    """How the reference grades one metric.

    direction "higher": GOOD above `good`, OK above `ok`; "lower": GOOD below `good`, OK below `ok`; else POOR.
    per_rank: the thresholds were set for rank bound 128 and scale with min(C, D) / 128.
    by_construction: the encoder's output LayerNorm fixes the metric, so its grade says nothing about training.
    """

    direction: str
    good: float
    ok: float
    per_rank: bool = False
    by_construction: bool = False


GRADES = {
    "global_effective_rank": GradeRule("higher", 90, 40, per_rank=True),
    "global_effective_rank_normalized": GradeRule("higher", 0.7, 0.3),
    "effective_rank_normalized": GradeRule("higher", 0.7, 0.3),
    "participation_ratio_normalized": GradeRule("higher", 0.3, 0.1),
    "dimensions_for_95_variance": GradeRule("higher", 50, 10, per_rank=True),
    # the reference grades the active share, 0.99 / 0.9
    "collapsed_dimensions_ratio": GradeRule("lower", 0.01, 0.1, by_construction=True),
    "isotropy": GradeRule("higher", 0.01, 0.001, by_construction=True),
    "mean_concept_similarity": GradeRule("lower", 0.3, 0.5),
    "max_concept_similarity": GradeRule("lower", 0.6, 0.8),
    "uniformity_loss": GradeRule("lower", 0.3, 0.6),
    "mean_dimension_std": GradeRule("higher", 0.8, 0.3),
    "min_dimension_std": GradeRule("higher", 0.1, 0.01),
    "top_1_dominance_ratio": GradeRule("lower", 0.3, 0.5),
}
BY_CONSTRUCTION = (*(name for name, rule in GRADES.items() if rule.by_construction), *ALSO_BY_CONSTRUCTION)
REFERENCE_RANK = 128  # min(C, D) of the reference run


def grade(metrics: dict[str, float], num_concepts: int, hidden_size: int) -> dict[str, str]:
    """GOOD, OK or POOR for every metric the reference grades.

    The two thresholds in units of rank (global_effective_rank 90 / 40, dimensions_for_95_variance 50 / 10) are the
    reference's at min(C, D) = 128 and the same share of min(C, D) at other sizes. A value on a threshold gets the
    lower grade.

    Args:
        metrics: as from `geometry_metrics`.
        num_concepts, hidden_size: C and D of the concepts.

    Returns:
        Metric name -> grade, in the order of `GRADES`.

    Raises:
        ValueError: a graded metric is missing.
    """
    missing = [name for name in GRADES if name not in metrics]
    if missing:
        raise ValueError(f"metrics to grade lack {', '.join(missing)}; take them from geometry_metrics")
    scale = min(num_concepts, hidden_size) / REFERENCE_RANK
    return {name: _grade(metrics[name], rule, scale) for name, rule in GRADES.items()}


def _grade(value: float, rule: GradeRule, scale: float) -> str:
    scale = scale if rule.per_rank else 1
    sign = 1 if rule.direction == "higher" else -1
    if sign * value > sign * rule.good * scale:
        return "GOOD"
    return "OK" if sign * value > sign * rule.ok * scale else "POOR"


@torch.no_grad()
def collect_concepts(
    model: ConceptEncoderModel, batches: Iterable[dict[str, torch.Tensor]], device: torch.device | str
) -> np.ndarray:
    """Encode batches in evaluation mode, with a progress bar.

    The model is moved to `device`; its training mode is restored afterwards.

    Args:
        model: encoder whose output has `last_hidden_state` (B, C, D).
        batches: dicts with `input_ids` and `attention_mask`, both (B, N).
        device: where to run.

    Returns:
        (S, C, D) float32, samples in order.

    Raises:
        ValueError: no batches.
    """
    was_training = model.training
    model.to(device).eval()
    try:
        chunks = []
        for batch in progress(batches, desc="Encoding", unit="batch"):
            inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
            chunks.append(model(**inputs).last_hidden_state.float().cpu().numpy())
    finally:
        model.train(was_training)
    if not chunks:
        raise ValueError("there are no batches to encode; give at least one")
    return np.concatenate(chunks)


def geometry(
    concepts: np.ndarray,
    random_concepts: np.ndarray,
    batch_size: int,
    normal: np.ndarray | None = None,
    checkpoint: str | None = None,
    corpus: DataFacts | None = None,
) -> GeometryResult:
    """Everything that geometry.json says of a sample.

    Args:
        concepts: (S, C, D) float, of the checkpoint.
        random_concepts: (S, C, D) float, of the same documents by an encoder with random weights.
        batch_size: documents per batch of the reference's per-batch figures.
        normal: (D,) direction that the encoder's output LayerNorm removes, 1 / its weight; `None`: the ones direction.
        checkpoint, corpus: what was read, for the record.

    Raises:
        ValueError: fewer than 8 documents, or as `geometry_metrics`.
    """
    metrics = geometry_metrics(concepts, batch_size)
    num_concepts, hidden_size = concepts.shape[1:]
    return GeometryResult(
        checkpoint=checkpoint,
        corpus=corpus,
        num_samples=len(concepts),
        batch_size=batch_size,
        num_batches=-(-len(concepts) // batch_size),
        num_concepts=num_concepts,
        hidden_size=hidden_size,
        metrics=dict(metrics),
        grades=grade(metrics, num_concepts, hidden_size),
        by_construction=list(BY_CONSTRUCTION),
        singular_values=template_spectrum(concepts).tolist(),
        dimension_std=dimension_std(concepts).tolist(),
        similarity_matrix=similarity_matrix(concepts).round(3).tolist(),
        spectrum=spectrum_section(concepts, random_concepts, normal),
    )


def spectrum_section(concepts: np.ndarray, random_concepts: np.ndarray, normal: np.ndarray | None = None) -> Spectrum:
    """Standard figures in four views and the content share, each with its interval and next to its nulls.

    The nulls: `gaussian`, independent normal vectors of the same size; `random_encoder`, the same architecture with
    random weights on the same documents; `static_slots`, the template for every document (see `static_slots_null`),
    None in the view across documents. Intervals are 95 % over 200 resamples of documents. `by_construction` is false
    throughout: the LayerNorm takes one direction of D, which IsoScore leaves out and the ranks hardly feel.

    Args:
        concepts, random_concepts, normal: as for `geometry`.

    Raises:
        ValueError: fewer than 8 documents, or as `spectrum_metrics`.
    """
    if len(concepts) < MIN_DOCUMENTS:
        raise ValueError(f"figures across documents need at least {MIN_DOCUMENTS} of them, got {len(concepts)}")
    num_documents, num_concepts, hidden_size = concepts.shape
    values = spectrum_metrics(concepts, normal)
    intervals = bootstrap_intervals(concepts, seed=0, num_resamples=INTERVAL_RESAMPLES, normal=normal)
    nulls: dict[str, Mapping[str, float | None]] = {
        "gaussian": gaussian_null(num_documents, num_concepts, hidden_size, seed=0),
        "random_encoder": spectrum_metrics(random_concepts),
        "static_slots": static_slots_null(concepts, normal),
    }
    figures = {
        name: SpectrumFigure(
            value=value,
            interval=intervals[name],
            nulls=Nulls(**{null: table[name] for null, table in nulls.items()}),
            by_construction=False,
        )
        for name, value in values.items()
    }
    return Spectrum(
        views={view: {metric: figures[f"{view}_{metric}"] for metric in METRICS} for view in VIEWS},
        content_share=figures["content_share"],
        num_documents=len(concepts),
        num_resamples=INTERVAL_RESAMPLES,
    )
