"""Scores of the benchmark tasks; the module itself also loads by path with `evaluate.load`."""

from .benchmark_score import TASK_METRICS, BenchmarkScore, benchmark_score

__all__ = ["TASK_METRICS", "BenchmarkScore", "benchmark_score"]
