"""Scores of rankings: nDCG@10, recall@100 and MRR@10 of each query by trec_eval, their chance levels, and intervals
and paired tests over queries."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...utils.results import ControlScore, Figure
from .intervals import percentile_interval, two_sided_p_value

METRICS = {"ndcg_at_10": ("ndcg_cut_10", 10), "recall_at_100": ("recall_100", 100), "mrr_at_10": ("recip_rank", 10)}
PRIMARY = "ndcg_at_10"
DEEPEST = 100
RESAMPLES = 10_000
CHUNK = 2**22  # numbers of resampled means at a time


def best(scores: np.ndarray, k: int = DEEPEST) -> np.ndarray:
    """(Q, k) columns of the highest of (Q, N) scores, best first; equal ones in a fixed random order.

    In the order of the corpus, a ranker that knows nothing would profit from how the corpus was put together.

    Raises:
        ValueError: a score that is not a number, which would come first wherever it stands.
    """
    if not np.isfinite(scores).all():
        query, document = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"the score of document {document} for query {query} is {scores[query, document]}")
    order = np.random.default_rng(0).permutation(scores.shape[1])
    return order[np.argsort(-scores[:, order], axis=1, kind="stable")[:, :k]]


def ranking_scores(ranked: np.ndarray, relevant: Sequence[Mapping[int, int]]) -> dict[str, np.ndarray]:
    """Every metric of each query.

    Args:
        ranked: (Q, k) documents, best first.
        relevant: of each query, document -> grade above 0. The gain of nDCG is the grade.

    Returns:
        Metric -> (Q,) scores. recall@100 only where the ranking has 100 documents.

    Source: trec_eval (NIST), by pytrec_eval (Van Gysel & de Rijke 2018, arXiv:1805.01597).
    """
    evaluator_class = _trec_eval().RelevanceEvaluator
    judged = {str(i): {str(d): int(grade) for d, grade in found.items()} for i, found in enumerate(relevant)}
    depth = ranked.shape[1]
    run = {
        str(i): {str(d): float(depth - rank) for rank, d in enumerate(row)} for i, row in enumerate(ranked.tolist())
    }
    found = evaluator_class(judged, {"ndcg_cut.10", "recall.100", "recip_rank"}).evaluate(run)
    scores = {
        metric: np.array([found[str(i)][name] for i in range(len(relevant))])
        for metric, (name, cutoff) in METRICS.items()
        if depth >= cutoff
    }
    reciprocal = scores["mrr_at_10"]
    scores["mrr_at_10"] = np.where(reciprocal > 1 / 10.5, reciprocal, 0.0)  # from rank 11 on nothing
    return scores


def chance_scores(documents: int, relevant: Sequence[Mapping[int, int]]) -> dict[str, float]:
    """Expected scores of a random order of N documents, by their formulas.

    nDCG: every place holds the mean grade. recall: 100 of N. MRR: the first of R relevant ones is at rank r with the
    probability of r - 1 misses and a hit, drawn without replacement.
    """
    discounts = 1 / np.log2(np.arange(2, 12))
    ndcg, reciprocal = [], []
    for found in relevant:
        grades = np.sort(np.array(list(found.values()), float))[::-1]
        ndcg.append(grades.sum() / documents * discounts.sum() / (grades[:10] @ discounts[: len(grades[:10])]))
        missed, expected = 1.0, 0.0
        for rank in range(1, 11):
            hit = min(1.0, len(grades) / (documents - rank + 1))
            expected += missed * hit / rank
            missed *= 1 - hit
        reciprocal.append(expected)
    levels = {"ndcg_at_10": float(np.mean(ndcg)), "mrr_at_10": float(np.mean(reciprocal))}
    return levels | ({"recall_at_100": 100 / documents} if documents > DEEPEST else {})


def mean_figure(scores: np.ndarray) -> Figure:
    """Mean of (Q,) scores and its 95 % percentile interval over resampled queries (Efron & Tibshirani 1993, 13.3)."""
    return Figure(
        value=float(scores.mean()), interval=percentile_interval("the score", _resampled_means(scores), 0.0, 1.0)
    )


def control_score(scores: np.ndarray, control: np.ndarray) -> ControlScore:
    """The control's mean, and what (Q,) scores have more than the control's on the same queries.

    The p-value is two-sided and says the same as the interval: twice the share of resampled differences on the wrong
    side of 0, as in `paired_bootstrap`.
    """
    own = mean_figure(control)
    differences = _resampled_means(scores - control)
    return ControlScore(
        value=own.value,
        interval=own.interval,
        difference=float((scores - control).mean()),
        difference_interval=percentile_interval("the difference", differences, -1.0, 1.0),
        p_value=two_sided_p_value(differences),
    )


def _resampled_means(scores: np.ndarray) -> np.ndarray:
    """(RESAMPLES,) means of as many queries, drawn with replacement; the same queries at every call."""
    rng, count = np.random.default_rng(0), len(scores)
    step = max(1, CHUNK // count)
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    return np.concatenate([scores[rng.integers(count, size=(size, count))].mean(1) for size in sizes])


def _trec_eval():
    try:
        import pytrec_eval
    except ImportError as error:
        raise ValueError("retrieval is scored by trec_eval: pip install 'concept-encoder[retrieval]'") from error
    return pytrec_eval
