"""Spectrum and diversity of concept vectors by the literature's definitions, in four views.

Letters: S documents, C concepts, D hidden size, n rows of one matrix. A view says which matrices are measured:

    template         one (C, D) matrix: the mean over documents, what the concepts say for every input
    within_raw       one (C, D) matrix per document, averaged over documents
    within_centred   the same less the document's mean concept
    across           one (S, D) matrix per concept, averaged over concepts: what a concept says about its input;
                     its spectrum is taken about the concept's mean, its pairs are of uncentred vectors

Each has `{view}_{metric}`:

    rankme               exp of the entropy of the singular values over their sum (Garrido et al. 2023,
                         arXiv:2210.02885)
    participation_ratio  (sum l)^2 / sum l^2 of the squared singular values l
    energy_rank          number of leading l that hold 95 % of their sum
    isoscore             IsoScore of the rows (Rudman et al. 2022, arXiv:2108.07344) in the D - 1 dimensions that the
                         output LayerNorm leaves; centres the rows by definition
    uniformity           log of the mean of exp(-2 |u - v|^2) over pairs of unit vectors (Wang and Isola 2020,
                         arXiv:2005.10242)
    duplicate_pairs      share of pairs with cosine above 0.95

A matrix of zeros, such as centred copies of one vector, has ranks and isoscore 0; a zero vector has cosine 0 with all.
"""

from collections.abc import Iterator

import datasets
import evaluate
import numpy as np

VIEWS = ("template", "within_raw", "within_centred", "across")
SPECTRAL = ("rankme", "participation_ratio", "energy_rank", "isoscore")
PAIRWISE = ("uniformity", "duplicate_pairs")
METRICS = (*SPECTRAL, *PAIRWISE)

ENERGY = 0.95
DUPLICATE_COSINE = 0.95
RELATIVE_ZERO = 1e-12  # share of the uncentred energy below which a squared length is float32 noise
PAIR_DOCUMENTS = 256  # pairs across documents are those among the first so many: all pairs would be S^2
INTERVAL_CONCEPTS = 8  # across view: concepts, evenly spaced, whose mean shows the spread over resamples
CHUNK = 16  # documents at work at a time

_DESCRIPTION = (
    "Standard rank, isotropy and diversity figures of the concept vectors of a concept encoder, in four views."
)

_INPUTS_DESCRIPTION = """
Args:
    concepts: list of documents, each the (C, D) concept vectors of one text (nested lists or an array of floats).
Returns:
    dict of floats: {template, within_raw, within_centred, across}_{rankme, participation_ratio, energy_rank, isoscore,
    uniformity, duplicate_pairs} and content_share.
"""


class SpectrumAccumulator:
    """All figures over a stream of documents, in memory that does not grow with their vectors.

    Exact: running means and scatter matrices (Chan et al. 1979) for the template and across views, one value per
    document for the within views. Holds at most C * D^2 doubles, C * D floats of the latest max(D, 256) documents and
    of the first 256, and 12 doubles per document.

    Args:
        normal: (D,) direction that the output LayerNorm removes: 1 / weight of that LayerNorm. `None`: the ones
            direction, right as long as the weights are equal.
    """

    def __init__(self, normal: np.ndarray | None = None):
        self._normal = normal
        self._count = 0
        self._within: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._block: list[np.ndarray] = []
        self._scatter: np.ndarray | None = None

    def update(self, concepts: np.ndarray) -> None:
        """Add documents, (b, C, D) float.

        Raises:
            ValueError: wrong shape, other C or D than before, values that are not finite, a `normal` of another size.
        """
        concepts = _checked(concepts)
        if self._count == 0:
            _, num_concepts, hidden_size = concepts.shape
            self._unit_normal = _unit_normal(self._normal, hidden_size)
            self._mean = np.zeros((num_concepts, hidden_size))
            self._energy = np.zeros(num_concepts)
            self._folded = 0
        elif concepts.shape[1:] != self._mean.shape:
            raise ValueError(
                f"every batch must hold {self._mean.shape} (concepts, hidden size), got {concepts.shape[1:]}"
            )
        for batch in _chunks(concepts):
            # Folded just before a document too many: up to D documents, their own Gram matrix is the smaller one.
            if sum(map(len, self._block)) + len(batch) > max(concepts.shape[-1], PAIR_DOCUMENTS):
                self._fold()
            kept = sum(map(len, self._kept))
            if kept < PAIR_DOCUMENTS:
                self._kept.append(batch[: PAIR_DOCUMENTS - kept].astype(np.float32))
            self._block.append(np.array(batch))
            self._within.append(_within_values(batch, self._unit_normal))
            self._count += len(batch)

    def _fold(self) -> None:
        """Move the waiting documents into running mean and scatter."""
        if not self._block:
            return
        block = np.concatenate(self._block)
        self._block = []
        if self._scatter is None:
            num_concepts, hidden_size = self._mean.shape
            self._scatter = np.zeros((num_concepts, hidden_size, hidden_size))
        size, total = len(block), self._folded + len(block)
        for c, scatter in enumerate(self._scatter):
            rows = block[:, c].astype(np.float64)
            mean = rows.mean(axis=0)
            shift = mean - self._mean[c]
            # one more row makes the scatter about the old and the new mean add up
            rows = np.concatenate([rows - mean, shift[None] * np.sqrt(self._folded * size / total)])
            scatter += rows.T @ rows
            self._energy[c] += np.square(block[:, c], dtype=np.float64).sum()
            self._mean[c] += shift * (size / total)
        self._folded = total

    def result(self) -> dict[str, float]:
        """The figures so far: `{view}_{metric}` and `content_share`.

        `content_share` is the share in [0, 1] of the variance of all S * C vectors that depends on the document, the
        mean over concepts of tr Cov_b(Z_bc) over tr Cov_bc(Z); the rest is the template.

        Differs: the sum over concepts in place of the mean, as the share is sometimes written, is C times as large,
        because Cov_bc already averages over the C concepts; it would reach C.

        Raises:
            ValueError: fewer than two documents.
        """
        if self._count < 2:
            raise ValueError(f"figures across documents need at least 2 of them, got {self._count}")
        if self._scatter is None and self._count <= self._mean.shape[1]:
            block = np.concatenate(self._block)
            mean = block.mean(axis=0, dtype=np.float64)
            across, content = self._across_block(block)
        else:
            self._fold()
            mean = self._mean
            across, content = self._across_scatter()
        within = np.concatenate(self._within).mean(axis=0)
        values = [_matrix_values(mean[None], self._unit_normal)[0, : len(METRICS)], *np.split(within, 2), across]
        figures = {
            f"{view}_{metric}": float(value)
            for view, row in zip(VIEWS, values, strict=True)
            for metric, value in zip(METRICS, row, strict=True)
        }
        between = np.square(mean - mean.mean(axis=0)).sum()
        return {**figures, "content_share": _share(content / self._count, between)}

    def _across_block(self, block: np.ndarray) -> tuple[np.ndarray, float]:
        """Across figures and the sum of squares about the means, of documents that are all at hand."""
        kept = np.concatenate(self._kept)
        rows, content = [], 0.0
        for c in range(block.shape[1]):
            spectral, trace = _weighted_spectral(block[:, c].astype(np.float64), None, self._unit_normal)
            rows.append(np.hstack([spectral, _pair_values(_cosines(kept[:, c].astype(np.float64)))]))
            content += trace
        return np.mean(rows, axis=0), content

    def _across_scatter(self) -> tuple[np.ndarray, float]:
        assert self._scatter is not None
        kept = np.concatenate(self._kept)
        rows = []
        for c, scatter in enumerate(self._scatter):
            projected = _project(_project(scatter, self._unit_normal).T, self._unit_normal)
            spectral = _spectral_values(np.linalg.eigvalsh(scatter), self._energy[c])
            isoscore = _isoscore(np.trace(projected), np.square(projected).sum(), self._energy[c], len(scatter))
            rows.append(np.hstack([spectral, isoscore, _pair_values(_cosines(kept[:, c].astype(np.float64)))]))
        return np.mean(rows, axis=0), float(np.trace(self._scatter, axis1=1, axis2=2).sum())


def spectrum_metrics(concepts: np.ndarray, normal: np.ndarray | None = None) -> dict[str, float]:
    """All figures of documents at hand; equal to any division of them over `SpectrumAccumulator.update`.

    Args:
        concepts: (S, C, D) float, at least 2 documents of at least 2 concepts.
        normal: as for `SpectrumAccumulator`.

    Raises:
        ValueError: as `SpectrumAccumulator`.
    """
    accumulator = SpectrumAccumulator(normal)
    accumulator.update(concepts)
    return accumulator.result()


def gaussian_null(num_documents: int, num_concepts: int, hidden_size: int, seed: int) -> dict[str, float]:
    """The figures of independent standard normal vectors of the same size, what no structure at all would give.

    Args:
        num_documents, num_concepts, hidden_size: S, C, D.
        seed: of the generator.

    Raises:
        ValueError: fewer than 2 documents or concepts, or no dimension.
    """
    accumulator, generator = SpectrumAccumulator(), np.random.default_rng(seed)
    for start in range(0, num_documents, CHUNK):
        size = min(CHUNK, num_documents - start)
        accumulator.update(generator.standard_normal((size, num_concepts, hidden_size)))
    return accumulator.result()


def static_slots_null(concepts: np.ndarray, normal: np.ndarray | None = None) -> dict[str, float | None]:
    """The figures of concepts that do not depend on the input: every document gets the mean matrix, the template.

    What remains of a figure when nothing is said about the document. The template view equals its own null by
    definition, so it cannot tell a live encoder from a dead one. The across view has none (`None`): without any
    spread over documents there is no spectrum. The content share is 0.

    Args:
        concepts: (S, C, D) float.
        normal: as for `SpectrumAccumulator`.

    Raises:
        ValueError: as `SpectrumAccumulator.update`.
    """
    template = _checked(concepts).mean(axis=0, dtype=np.float64)
    raw, centred = np.split(_matrix_values(template[None], _unit_normal(normal, template.shape[1]))[0], 2)
    figures: dict[str, float | None] = {f"{view}_{metric}": None for view in VIEWS for metric in METRICS}
    for view, row in (("template", raw), ("within_raw", raw), ("within_centred", centred)):
        figures |= {f"{view}_{metric}": float(value) for metric, value in zip(METRICS, row, strict=True)}
    return {**figures, "content_share": 0.0}


def bootstrap_intervals(
    concepts: np.ndarray,
    seed: int,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    normal: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """Interval of every figure over resampled documents, about the value of `spectrum_metrics`.

    Percentiles of the resampled figures, moved so that their mean is the value: resamples repeat documents, which
    lowers ranks across documents by itself, so only the spread is taken. A document is never paired with its own copy.
    The across view's spread is that of the mean over 8 concepts, or all if fewer; its pairs are of the first 256
    documents. Deterministic for a seed.

    Args:
        concepts: (S, C, D) float, in memory.
        seed: of the resampling.
        num_resamples: R.
        confidence: share in (0, 1) of the resamples between the bounds.
        normal: as for `SpectrumAccumulator`.

    Returns:
        Figure -> (low, high), with the names of `spectrum_metrics`.

    Raises:
        ValueError: num_resamples below 2, confidence outside (0, 1), or as `spectrum_metrics`.
    """
    if num_resamples < 2:
        raise ValueError(f"num_resamples must be at least 2, got {num_resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    concepts = _checked(concepts)
    center = spectrum_metrics(concepts, normal)
    unit_normal = _unit_normal(normal, concepts.shape[-1])
    count = len(concepts)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(count, np.full(count, 1 / count), size=num_resamples)  # (R, S)
    within = np.concatenate([_within_values(batch, unit_normal) for batch in _chunks(concepts)])  # (S, 12)
    template, share = _resampled_template(concepts, counts, unit_normal)
    columns = np.hstack([template, counts @ within / count, _resampled_across(concepts, counts, unit_normal), share])
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(columns, tails, axis=0) - columns.mean(axis=0)
    return {name: (value + float(low[i]), value + float(high[i])) for i, (name, value) in enumerate(center.items())}


def _resampled_template(
    concepts: np.ndarray, counts: np.ndarray, unit_normal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Template figures (R, 6) and content share (R, 1) of every resample."""
    flat = concepts.reshape(len(concepts), -1).astype(np.float64)
    energy = np.square(flat).sum(axis=1)  # (S,)
    template, share = [], []
    for part in _chunks(counts):
        means = (part @ flat / len(flat)).reshape(len(part), *concepts.shape[1:])  # (r, C, D)
        template.append(_matrix_values(means, unit_normal)[:, : len(METRICS)])
        content = part @ energy / len(flat) - np.square(means).sum(axis=(1, 2))
        between = np.square(means - means.mean(axis=1, keepdims=True)).sum(axis=(1, 2))
        share += [_share(*pair) for pair in zip(content, between, strict=True)]
    return np.concatenate(template), np.array(share)[:, None]


def _resampled_across(concepts: np.ndarray, counts: np.ndarray, unit_normal: np.ndarray) -> np.ndarray:
    """Across figures (R, 6) of every resample, mean over evenly spaced concepts."""
    num_concepts = concepts.shape[1]
    chosen = np.unique(np.linspace(0, num_concepts - 1, min(INTERVAL_CONCEPTS, num_concepts)).round().astype(int))
    pair_counts = counts[:, :PAIR_DOCUMENTS].astype(np.float64)
    total = np.zeros((len(counts), len(METRICS)))
    for c in chosen:
        rows = concepts[:, c].astype(np.float64)  # (S, D)
        spectral = np.stack([_weighted_spectral(rows, drawn, unit_normal)[0] for drawn in counts])
        total += np.hstack([spectral, _weighted_pairs(_cosines(rows[:PAIR_DOCUMENTS]), pair_counts)])
    return total / len(chosen)


def _weighted_spectral(
    rows: np.ndarray, counts: np.ndarray | None, unit_normal: np.ndarray
) -> tuple[np.ndarray, float]:
    """Spectral figures (4,) of rows (S, D) repeated by counts (S,), about their mean; sum of squares about it."""
    if counts is None:
        centred = rows - rows.mean(axis=0)
        energy = np.square(rows).sum()
    else:
        drawn = counts > 0  # about 63 % of the documents: a quarter of the work
        rows, counts = rows[drawn], counts[drawn]
        centred = (rows - counts @ rows / counts.sum()) * np.sqrt(counts)[:, None]  # scatter = centred' centred
        energy = counts @ np.square(rows).sum(axis=1)
    gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    along = centred @ unit_normal  # what projecting the normal out takes from trace and Frobenius norm
    trace = np.trace(gram) - along @ along
    squared_norm = np.square(gram).sum() - 2 * np.square(along @ centred).sum() + (along @ along) ** 2
    isoscore = _isoscore(trace, squared_norm, energy, rows.shape[1])
    return np.hstack([_spectral_values(np.linalg.eigvalsh(gram), energy), isoscore]), float(np.trace(gram))


def _weighted_pairs(cosines: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pair figures (R, 2) of documents repeated by counts (R, n); a document and its copy are no pair."""
    off_diagonal = ~np.eye(len(cosines), dtype=bool)
    kernel, near = np.exp(-4 * (1 - cosines)) * off_diagonal, (cosines > DUPLICATE_COSINE) & off_diagonal
    sums = [
        np.einsum("rn,rn->r", counts @ matrix.astype(np.float64), counts) for matrix in (off_diagonal, kernel, near)
    ]
    if not sums[0].all():
        raise ValueError(f"{len(cosines)} documents are too few to resample pairs of them; give more")
    return np.stack([np.log(sums[1] / sums[0]), sums[2] / sums[0]], axis=1)


def _within_values(batch: np.ndarray, unit_normal: np.ndarray) -> np.ndarray:
    """Figures (b, 12) of each document: six raw, six centred."""
    return _matrix_values(batch.astype(np.float64), unit_normal)


def _matrix_values(matrices: np.ndarray, unit_normal: np.ndarray) -> np.ndarray:
    """Figures (b, 12) of matrices (b, n, D): six as they are, six less their mean row; one product gives them all."""
    hidden_size = matrices.shape[-1]
    gram = matrices @ np.swapaxes(matrices, -1, -2)  # (b, n, n)
    centred = _centred(_centred(gram).swapaxes(-1, -2))
    energy = np.trace(gram, axis1=-2, axis2=-1)
    along = _centred((matrices @ unit_normal)[..., None])[..., 0]  # (b, n)
    squared = np.square(along).sum(axis=-1)
    trace = np.trace(centred, axis1=-2, axis2=-1) - squared
    crossed = np.einsum("bn,bnm,bm->b", along, centred, along)
    squared_norm = np.square(centred).sum(axis=(1, 2)) - 2 * crossed + squared**2
    isoscore = _isoscore(trace, squared_norm, energy, hidden_size)[:, None]
    floor = RELATIVE_ZERO * energy / matrices.shape[1]
    columns = []
    for square in (gram, centred):
        eigenvalues = np.linalg.eigvalsh(square)
        columns += [_spectral_values(eigenvalues, energy), isoscore, _pair_values(_gram_cosines(square, floor))]
    return np.hstack(columns)


def _spectral_values(eigenvalues: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """rankme, participation ratio and energy rank (..., 3) of squared singular values (..., n), ascending."""
    energy = np.asarray(energy)[..., None]
    squared = np.where(eigenvalues > RELATIVE_ZERO * energy, eigenvalues, 0)[..., ::-1]
    total = squared.sum(axis=-1, keepdims=True)
    safe = np.where(total > 0, total, 1)
    singular = np.sqrt(squared)
    shares = singular / np.where(total > 0, singular.sum(axis=-1, keepdims=True), 1)
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=-1)
    cumulated = np.cumsum(squared / safe, axis=-1)
    ranks = np.stack(
        [
            np.exp(entropy),
            1 / np.where(total > 0, np.square(squared / safe).sum(axis=-1, keepdims=True), 1)[..., 0],
            # a rounding error below the mark must not cost a rank
            np.count_nonzero(cumulated < ENERGY - 1e-12, axis=-1) + 1.0,
        ],
        axis=-1,
    )
    return np.where(total > 0, ranks, 0)


def _isoscore(trace: np.ndarray, squared_norm: np.ndarray, energy: np.ndarray, hidden_size: int) -> np.ndarray:
    """IsoScore (...) in D - 1 dimensions of a scatter matrix with this trace and squared Frobenius norm.

    The published steps (principal axes, normalised spectrum, isotropy defect, rescaling) reduce to
    (participation ratio - 1) / (dimensions - 1).
    """
    nonzero = np.asarray(trace > RELATIVE_ZERO * energy)
    participation = np.square(trace) / np.where(nonzero, squared_norm, 1)
    return np.where(nonzero, (participation - 1) / (hidden_size - 2), 0)


def _pair_values(cosines: np.ndarray) -> np.ndarray:
    """uniformity and duplicate share (..., 2) of matrices of cosines (..., n, n), diagonal left out."""
    cosines = cosines[..., ~np.eye(cosines.shape[-1], dtype=bool)]
    uniformity = np.log(np.exp(-4 * (1 - cosines)).mean(axis=-1))  # |u - v|^2 = 2 - 2 cos
    return np.stack([uniformity, (cosines > DUPLICATE_COSINE).mean(axis=-1)], axis=-1)


def _cosines(rows: np.ndarray) -> np.ndarray:
    return _gram_cosines((rows @ rows.T)[None], np.zeros(1))[0]


def _gram_cosines(grams: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Cosines (b, n, n) from Gram matrices; vectors of squared length up to `floor` (b,) count as zero."""
    squared = np.diagonal(grams, axis1=-2, axis2=-1)
    inverse = np.where(squared > floor[:, None], 1 / np.sqrt(np.where(squared > floor[:, None], squared, 1)), 0)
    return grams * inverse[:, :, None] * inverse[:, None, :]


def _centred(matrices: np.ndarray) -> np.ndarray:
    return matrices - matrices.mean(axis=-2, keepdims=True)


def _share(content: float, between: float) -> float:
    return float(content / (content + between)) if content + between > 0 else 0.0


def _project(vectors: np.ndarray, unit_normal: np.ndarray) -> np.ndarray:
    return vectors - (vectors @ unit_normal)[..., None] * unit_normal


def _unit_normal(normal: np.ndarray | None, hidden_size: int) -> np.ndarray:
    direction = np.ones(hidden_size) if normal is None else np.asarray(normal, dtype=np.float64)
    if direction.shape != (hidden_size,) or not np.isfinite(direction).all() or not direction.any():
        raise ValueError(f"normal must be a finite, nonzero vector of hidden size {hidden_size}, got {direction}")
    return direction / np.linalg.norm(direction)


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK]


def _checked(concepts: np.ndarray) -> np.ndarray:
    concepts = np.asarray(concepts)
    if concepts.ndim != 3 or concepts.shape[0] < 1 or concepts.shape[1] < 2 or concepts.shape[2] < 3:
        raise ValueError(
            f"concepts must have shape (documents, concepts, hidden size) with at least 1 document, 2 concepts and "
            f"hidden size 3, got {concepts.shape}"
        )
    finite = np.isfinite(concepts).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(
            f"concepts must be finite, got NaN or infinity in {np.sum(~finite)} of {len(finite)} documents"
        )
    return concepts


class ConceptSpectrum(evaluate.Measurement):
    """The figures of `spectrum_metrics` as a measurement: `compute(concepts=...)`.

    Loadable with `evaluate.load(<absolute path of this folder>)`; `add_batch(concepts=...)` collects documents first.
    """

    def _info(self) -> evaluate.MeasurementInfo:
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

    def _compute(self, concepts: list) -> dict[str, float]:
        if len({(len(document), *{len(vector) for vector in document}) for document in concepts}) > 1:
            raise ValueError("every document must have the same number of concepts and the same hidden size")
        return spectrum_metrics(np.asarray(concepts, dtype=np.float32))
