"""Scores of rankings: worked by hand, equal to a second library's, and their chance levels by simulation."""

import math

import numpy as np
import pytest

pytest.importorskip("pytrec_eval", reason="the extra retrieval is not installed")

from concept_encoder.eval.metrics.ranking import (
    best,
    chance_scores,
    control_score,
    mean_figure,
    ranking_scores,
)


def test_scores_worked_by_hand():
    ranked = np.array([[3, 7, *range(20, 118)], [*range(20, 30), 5, *range(30, 119)]])
    scores = ranking_scores(ranked, [{7: 1, 9: 2}, {5: 1}])
    ideal = 2 + 1 / math.log2(3)
    assert scores["ndcg_at_10"] == pytest.approx([1 / math.log2(3) / ideal, 0])
    assert scores["mrr_at_10"] == pytest.approx([1 / 2, 0])  # the second is found at rank 11
    assert scores["recall_at_100"] == pytest.approx([1 / 2, 1])
    assert set(ranking_scores(ranked[:, :50], [{7: 1}, {5: 1}])) == {"ndcg_at_10", "mrr_at_10"}


def test_the_same_as_a_second_library():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    rng = np.random.default_rng(0)
    scores = rng.random((40, 300)).astype(np.float32)
    relevant = [dict.fromkeys(rng.choice(300, rng.integers(1, 30), replace=False).tolist(), 1) for _ in range(40)]
    for query, found in enumerate(relevant):
        scores[query, list(found)] += 0.2
    mine = {name: values.mean() for name, values in ranking_scores(best(scores), relevant).items()}
    evaluator = evaluation.InformationRetrievalEvaluator(
        {str(i): "" for i in range(40)},
        {str(i): "" for i in range(300)},
        {str(i): set(map(str, found)) for i, found in enumerate(relevant)},
        precision_recall_at_k=[100],
    )
    results = [[{"corpus_id": str(i), "score": float(each)} for i, each in enumerate(row)] for row in scores]
    other = evaluator.compute_metrics(results)
    assert mine == pytest.approx(
        {"ndcg_at_10": other["ndcg@k"][10], "recall_at_100": other["recall@k"][100], "mrr_at_10": other["mrr@k"][10]},
        abs=1e-9,
    )


def test_the_best_come_first_and_equal_ones_in_an_order_that_is_not_the_corpus():
    scores = np.zeros((2, 200), np.float32)
    scores[0, [4, 9]] = 2, 3
    ranked = best(scores, 50)
    assert ranked.shape == (2, 50) and ranked[0, :2].tolist() == [9, 4]
    assert np.array_equal(ranked, best(scores, 50)) and sorted(ranked[1].tolist()) != list(range(50))
    assert np.abs(np.corrcoef(ranked[1], np.arange(50))[0, 1]) < 0.4


def test_a_score_that_is_no_number_is_refused():
    scores = np.zeros((2, 20), np.float32)
    scores[1, 3] = np.nan
    with pytest.raises(ValueError, match="the score of document 3 for query 1 is nan"):
        best(scores)


def test_chance_is_what_random_orders_have():
    relevant = [{1: 1, 2: 2, 3: 1}, {5: 1}]
    rng = np.random.default_rng(0)
    draws = [ranking_scores(best(rng.random((2, 120))), relevant) for _ in range(400)]
    expected = chance_scores(120, relevant)
    for metric, level in expected.items():
        values = np.array([draw[metric].mean() for draw in draws])
        assert abs(values.mean() - level) < 4 * values.std() / math.sqrt(len(values)), metric
    assert set(chance_scores(60, relevant)) == {"ndcg_at_10", "mrr_at_10"}


@pytest.mark.slow
def test_intervals_and_paired_tests_over_queries():
    rng = np.random.default_rng(1)
    scores = rng.random(400)
    figure = mean_figure(scores)
    half = 1.96 * scores.std() / 20
    assert figure.value == pytest.approx(scores.mean())
    assert figure.interval == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.004)
    better = control_score(scores + 0.05, scores + rng.normal(0, 0.01, 400))
    assert better.difference == pytest.approx(0.05, abs=0.002) and better.p_value < 0.001
    assert better.difference_interval[0] > 0.04 and better.value == pytest.approx(scores.mean(), abs=0.002)
    same = control_score(scores, scores)
    assert (same.difference, same.difference_interval, same.p_value) == (0, (0, 0), 1)
