"""Geometry of concept vectors as the reference run defined it (arrays in, named floats out).

Letters: S samples, C concepts, D hidden size, b samples of one batch. The names are the reference's and so are the
formulas, which differ from the literature in places: "effective rank" is nuclear over spectral norm of an uncentred
mean matrix, "uniformity" has no logarithm, and isotropy is 0 for any LayerNorm output.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "Collapse, diversity and spread of the concept vectors of a concept encoder, by the reference's formulas."
)

_INPUTS_DESCRIPTION = """
Args:
    concepts: list of samples, each the (C, D) concept vectors of one text (nested lists or an array of floats).
    batch_size (int): samples per batch, in the order given. Figures 'per batch' are averaged over batches.
Returns:
    dict of floats under the reference's names, and top5_singular_values, a list of at most five floats.
"""

EIGENVALUE_FLOOR = 1e-8  # the reference clamps covariance eigenvalues here
COLLAPSED_STD = 1e-4  # a hidden dimension with a smaller standard deviation counts as collapsed


def geometry_metrics(concepts: np.ndarray, batch_size: int) -> dict[str, float]:
    """Every scalar geometry figure of the reference, computed in float64.

    Figures per batch are the mean over consecutive batches of `batch_size` samples (the last may be smaller);
    `global_*` and `top_1_dominance_ratio` come from the matrix averaged over all samples. `max_*` and `min_*` are thus
    averages of batch extremes. A covariance whose eigenvalues are all below the floor (identical vectors) has isotropy
    1 and participation ratio D: a property of the reference's clamp, not of the vectors.

    Args:
        concepts: (S, C, D) float, concept vectors; C at least 2.
        batch_size: samples per batch, at least 1.

    Returns:
        Metric name -> value; counts (`dimensions_for_95_variance`, `collapsed_dimensions`) are averages too.

    Raises:
        ValueError: wrong shape, fewer than two concepts, no samples, values that are not finite, batch_size below 1,
            or a mean matrix that is all zero.
    """
    concepts = _checked(concepts)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batches = [_batch_metrics(concepts[start : start + batch_size]) for start in range(0, len(concepts), batch_size)]
    metrics = {name: float(np.mean([batch[name] for batch in batches])) for name in batches[0]}
    spectrum = template_spectrum(concepts)
    metrics["global_effective_rank"] = float(spectrum.sum() / spectrum[0])
    metrics["global_effective_rank_normalized"] = metrics["global_effective_rank"] / len(spectrum)
    metrics["top_1_dominance_ratio"] = float(spectrum[0] / spectrum.sum())
    return metrics


def template_spectrum(concepts: np.ndarray) -> np.ndarray:
    """Singular values, largest first, of the uncentred (C, D) matrix averaged over samples.

    Args:
        concepts: (S, C, D) float.

    Returns:
        (min(C, D),) float64.

    Raises:
        ValueError: as `geometry_metrics`.
    """
    values = np.linalg.svd(_checked(concepts).mean(axis=0, dtype=np.float64), compute_uv=False)
    if values[0] == 0:
        raise ValueError("concepts average to an all-zero matrix, whose ranks are undefined; is the encoder dead?")
    return values


def similarity_matrix(concepts: np.ndarray) -> np.ndarray:
    """Cosine between every two concepts of a sample, averaged over samples.

    Args:
        concepts: (S, C, D) float.

    Returns:
        (C, C) float64 in [-1, 1].

    Raises:
        ValueError: as `geometry_metrics`.
    """
    concepts = _checked(concepts)
    total = np.zeros((concepts.shape[1], concepts.shape[1]))
    for sample in concepts:  # one sample at a time: (S, C, C) at once is 80 MB at the reference's size
        unit = _unit(sample.astype(np.float64))
        total += unit @ unit.T
    return total / len(concepts)


def dimension_std(concepts: np.ndarray) -> np.ndarray:
    """Sample standard deviation of each hidden dimension over all S * C vectors.

    Args:
        concepts: (S, C, D) float.

    Returns:
        (D,) float64.

    Raises:
        ValueError: as `geometry_metrics`.
    """
    concepts = _checked(concepts)
    return concepts.reshape(-1, concepts.shape[-1]).std(axis=0, ddof=1, dtype=np.float64)


def _batch_metrics(batch: np.ndarray) -> dict[str, float]:
    batch = batch.astype(np.float64)  # (b, C, D)
    return {**_rank_metrics(batch), **_similarity_metrics(batch), **_spread_metrics(batch)}


def _rank_metrics(batch: np.ndarray) -> dict[str, float]:
    values = template_spectrum(batch)  # (min(C, D),)
    energy = np.cumsum(values**2) / np.sum(values**2)
    rank = values.sum() / values[0]
    return {
        "effective_rank": rank,
        "effective_rank_normalized": rank / len(values),
        "dimensions_for_95_variance": np.count_nonzero(energy < 0.95) + 1,
        "top_1_variance_ratio": energy[0],
        "top_5_variance_ratio": energy[min(5, len(energy)) - 1],
    }


def _similarity_metrics(batch: np.ndarray) -> dict[str, float]:
    unit = _unit(batch)
    cosines = unit @ unit.transpose(0, 2, 1)  # (b, C, C)
    cosines = cosines[:, ~np.eye(batch.shape[1], dtype=bool)]  # (b, C * (C - 1)), ordered pairs
    return {
        "max_concept_similarity": cosines.max(),
        "mean_concept_similarity": np.abs(cosines).mean(),
        "std_concept_similarity": cosines.std(ddof=1),
        "uniformity_loss": np.exp(-4 * (1 - cosines)).mean(),  # |u - v|^2 = 2 - 2 cos for unit vectors
    }


def _spread_metrics(batch: np.ndarray) -> dict[str, float]:
    vectors = batch.reshape(-1, batch.shape[-1])  # (b * C, D)
    centred = vectors - vectors.mean(axis=0)
    covariance = centred.T @ centred / (len(vectors) - 1)  # (D, D)
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance), EIGENVALUE_FLOOR)
    participation = eigenvalues.sum() ** 2 / np.sum(eigenvalues**2)
    std = np.sqrt(np.diag(covariance))
    collapsed = np.count_nonzero(std < COLLAPSED_STD)
    norms = np.linalg.norm(vectors, axis=-1)
    return {
        "isotropy": eigenvalues[0] / eigenvalues[-1],
        "participation_ratio": participation,
        "participation_ratio_normalized": participation / len(eigenvalues),
        "mean_dimension_std": std.mean(),
        "min_dimension_std": std.min(),
        "max_dimension_std": std.max(),
        "collapsed_dimensions": collapsed,
        "collapsed_dimensions_ratio": collapsed / len(std),
        "mean_concept_norm": norms.mean(),
        "std_concept_norm": norms.std(ddof=1),
        "min_concept_norm": norms.min(),
        "max_concept_norm": norms.max(),
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    # a zero vector keeps cosine 0 with everything, as in the reference
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _checked(concepts: np.ndarray) -> np.ndarray:
    concepts = np.asarray(concepts)
    if concepts.ndim != 3 or concepts.shape[0] < 1 or concepts.shape[1] < 2 or concepts.shape[2] < 1:
        raise ValueError(
            f"concepts must have shape (samples, concepts, hidden size) with at least 1 sample and 2 concepts, "
            f"got {concepts.shape}"
        )
    finite = np.isfinite(concepts).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"concepts must be finite, got NaN or infinity in {np.sum(~finite)} of {len(finite)} samples")
    return concepts


class ConceptGeometry(evaluate.Measurement):
    """The reference's concept geometry as a measurement: `compute(concepts=..., batch_size=16)`.

    Loadable with `evaluate.load(<absolute path of this folder>)`; `add_batch(concepts=...)` collects samples first.
    """

    def _info(self) -> evaluate.MeasurementInfo:
        # Array2D would be about as fast but fixes D in advance; `evaluate` allows the numpy format for scalars only
        vectors = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MeasurementInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"concepts": vectors}),
        )

    def compute(self, **inputs):
        """As `evaluate.EvaluationModule.compute`; ValueError that names what is missing."""
        if self.writer is None and inputs.get("concepts") is None:  # nor were any added before
            raise ValueError("compute needs concepts=, a list of samples of C vectors each")
        return super().compute(**inputs)

    def _compute(self, concepts: list, batch_size: int | None = None) -> dict[str, float | list[float]]:
        if batch_size is None:
            raise ValueError("compute needs batch_size=, the samples of a batch, as the reference averages over them")
        if len({(len(sample), *{len(vector) for vector in sample}) for sample in concepts}) > 1:
            raise ValueError("every sample must have the same number of concepts and the same hidden size")
        arrays = np.asarray(concepts, dtype=np.float32)
        top5 = [float(value) for value in template_spectrum(arrays)[:5]]
        return {**geometry_metrics(arrays, batch_size), "top5_singular_values": top5}
