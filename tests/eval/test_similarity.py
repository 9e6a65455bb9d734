"""Frozen similarity: each method against its definition, what is fitted on what, the file, what is refused."""

import json
import os
import re

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from small_tasks import pair_table, small_task

from concept_encoder.eval.benchmarks import similarity as module
from concept_encoder.eval.benchmarks.registry import BENCHMARKS, load_benchmark
from concept_encoder.eval.benchmarks.similarity import (
    METHODS,
    cosine,
    max_sim,
    pair_features,
    score_frozen,
    similarity,
)
from concept_encoder.eval.concepts.whitening import whitening
from concept_encoder.eval.loading.checkpoints import load, random_twin
from concept_encoder.scripts.similarity import main
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.utils.results import SimilarityResult

pytestmark = pytest.mark.filterwarnings("ignore:.* resamples leave:RuntimeWarning")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 200)


@pytest.fixture
def stsb(tmp_path, monkeypatch):
    """STS-B of the registry on a small table."""
    row = small_task("stsb", tmp_path)
    monkeypatch.setitem(BENCHMARKS, "stsb", row)
    return row


def test_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7))
    expected = [a[i] @ b[i] / np.sqrt((a[i] @ a[i]) * (b[i] @ b[i])) for i in range(5)]
    assert cosine(a, b) == pytest.approx(expected)
    assert cosine(np.zeros((1, 7)), b[:1]) == 0


def test_max_sim():
    a, b = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    for row, value in enumerate(max_sim(a, b)):
        table = [[float(torch.cosine_similarity(x, y, dim=0)) for y in b[row]] for x in a[row]]
        forward = np.mean([max(line) for line in table])
        backward = np.mean([max(column) for column in zip(*table, strict=True)])
        assert value == pytest.approx((forward + backward) / 2, abs=1e-6)
    assert max_sim(a, b) == pytest.approx(max_sim(b, a))
    assert max_sim(a, a[:, [2, 0, 3, 1]]) == pytest.approx(np.ones(3))  # the order of the concepts is no matter


def test_pair_features_are_symmetric():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    assert (pair_features(a, b) == pair_features(b, a)).all()
    assert (pair_features(a, a)[:, :3] == 0).all()


def test_running_variance_equals_all_at_once():
    z = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None]
    z = z + 1000
    running = module._RunningVariance()
    for part in z.split(7):
        running.add(part)
    expected = z.double().var(0).sum(-1)
    assert torch.allclose(running.shares(), expected / expected.sum(), atol=1e-9)
    assert running.shares()[0] == 0  # a concept that is the same for every text
    constant = module._RunningVariance()
    constant.add(torch.ones(5, 4, 6))
    assert constant.shares().tolist() == [0.25] * 4


@pytest.mark.slow
def test_scores_are_those_of_the_definitions(pretrained, stsb):
    """One pair at a time, without padding, from the checkpoint: the same numbers."""
    encoder, tokenizer = load(pretrained).encoder, microworld_tokenizer(64)
    data = load_benchmark(stsb)
    scored = score_frozen(encoder, tokenizer, data, stsb, 64, "run")

    def concepts(split: str) -> list[torch.Tensor]:
        names = ("sentence1", "sentence2")
        with torch.no_grad():
            rows = [
                [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in data[split][name]]
                for name in names
            ]
        return [torch.stack(side) for side in rows]

    train, (a, b) = concepts("train"), concepts("validation")
    variance = torch.cat(train).double().var(0).sum(-1)
    weights = (variance / variance.sum()).float()
    mean, matrix = whitening(torch.cat(train).mean(1).double().numpy())
    expected = {
        "cosine, mean": cosine(a.mean(1).numpy(), b.mean(1).numpy()),
        "cosine, weighted": cosine(*(torch.einsum("c,bcd->bd", weights, z).numpy() for z in (a, b))),
        "cosine, max sim": max_sim(a, b),
        "cosine, mean whitened": cosine(*((z.mean(1).numpy() - mean) @ matrix for z in (a, b))),
    }
    for name, scores in expected.items():
        assert scored.predictions[name] == pytest.approx(scores, abs=1e-3), name


@pytest.mark.slow
def test_result(pretrained, stsb, tmp_path):
    (result,) = similarity(str(pretrained), ["stsb"], tmp_path)
    path = tmp_path / "similarity" / "stsb.json"
    assert SimilarityResult.load(path) == result
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == result.as_dict()
    assert os.fspath(result) == str(tmp_path)
    assert (result.train_examples, result.validation_examples) == (96, 40)
    names = ["cosine, mean", "cosine, weighted", "cosine, max sim", "cosine, mean whitened", "linear probe"]
    assert list(result.methods) == list(METHODS) == names
    assert [row.id for row in result.rows] == [f"{name}, {metric}" for name in names for metric in stsb.metrics]
    labels = pair_table(40, seed=40, similarity=True)["label"][:]
    data = load_benchmark(stsb)
    checkpoints = {"run": load(pretrained), "twin": random_twin(load(pretrained), tmp_path)}
    run, twin = (
        score_frozen(checkpoint.encoder, microworld_tokenizer(64), data, stsb, 64, name)
        for name, checkpoint in checkpoints.items()
    )
    for method in names:
        row = result.primary(method)
        assert row.value == pytest.approx(pearsonr(run.predictions[method], labels).statistic)
        assert row.random_init.value == pytest.approx(pearsonr(twin.predictions[method], labels).statistic)
        for value, (low, high) in ((row.value, row.interval), (row.random_init.value, row.random_init.interval)):
            assert low <= value <= high
        assert row.random_init.difference == pytest.approx(row.value - row.random_init.value)
    assert (result.alpha, result.alpha_of_twin) == (run.alpha, twin.alpha)
    assert "ridge" in result.methods["linear probe"]
    with pytest.raises(ValueError, match="the similarity result of stsb has no row magic, pearson"):
        result.primary("magic")


@pytest.mark.slow
def test_nothing_is_fitted_on_validation(pretrained, stsb):
    """Other validation pairs leave the scores of a kept pair as they are."""
    encoder, tokenizer = load(pretrained).encoder, microworld_tokenizer(64)
    data = load_benchmark(stsb)
    whole = score_frozen(encoder, tokenizer, data, stsb, 64, "run")
    data["validation"] = data["validation"].select(range(10))
    part = score_frozen(encoder, tokenizer, data, stsb, 64, "run")
    for name in METHODS:
        assert part.predictions[name] == pytest.approx(whole.predictions[name][:10], abs=1e-3)
    assert part.alpha == whole.alpha


@pytest.mark.slow
def test_a_task_of_ones_own(pretrained, stsb, tmp_path, capsys):
    own = tmp_path / "my_grades.yaml"
    own.write_text(f"like: stsb\ndataset_id: {stsb.dataset_id}\nsentence_columns: [sentence1, sentence2]\n")
    main([str(pretrained), "--tasks", str(own), "--output_dir", str(tmp_path / "out"), "--max_train_examples", "50"])
    assert re.search(r"\nmy_grades +linear probe +pearson ", capsys.readouterr().out)
    own.write_text(own.read_text().replace("stsb", "mrpc", 1))
    with pytest.raises(SystemExit):
        main([str(pretrained), "--tasks", str(own), "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "my_grades.yaml: like must be one of stsb, sick_relatedness, microworld_similarity, got 'mrpc'" in said


@pytest.mark.slow
def test_command_line(pretrained, stsb, tmp_path, capsys):
    arguments = [str(pretrained), "--tasks", "stsb", "--output_dir", str(tmp_path / "out")]
    main([*arguments, "--max_train_examples", "50"])
    printed = capsys.readouterr().out
    for method in METHODS:
        assert re.search(rf"\nstsb +{method} ", printed)
    assert SimilarityResult.load(tmp_path / "out" / "similarity" / "stsb.json").train_examples == 50
    for extra, message in (
        ([], "stsb.json exists; give --overwrite to replace it"),
        (
            ["--tasks", "mrpc"],
            "Unknown similarity task 'mrpc'. Available: stsb, sick_relatedness, microworld_similarity",
        ),
        (["--max_length", "2"], "max_length must be at least 3, got 2"),
        (["--max_train_examples", "5"], "max_train_examples must be at least 20, got 5"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *extra])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_sizes_are_scored_timed_and_drawn(pretrained, stsb, tmp_path, capsys):
    config = load(pretrained).config
    most, whole = config.num_concepts, config.hidden_size
    arguments = [str(pretrained), "--tasks", "stsb", "--output_dir", str(tmp_path)]
    main([*arguments, "--num_concepts", "2", str(most), "--dims", "8", str(whole)])
    printed = capsys.readouterr().out
    result = SimilarityResult.load(tmp_path / "similarity" / "stsb.json")
    sizes = [(row.num_concepts, row.dim, row.bytes) for row in result.sizes]
    assert sizes == [(k, d, 4 * d) for k in (2, most) for d in (8, whole)]
    assert result.sizes[-1].value == pytest.approx(result.primary("cosine, mean").value, abs=1e-6)
    assert result.sizes[0].value != result.sizes[-1].value and all(row.seconds > 0 for row in result.sizes)
    assert re.search(rf"\nstsb +{most} +8 +32 ", printed)
    assert (tmp_path / "similarity" / "stsb_sizes.png").stat().st_size > 1000
    for extra, message in (
        (["--num_concepts", str(most + 1)], rf"num_concepts must be in \[1, {most}\], got {most + 1}"),
        (["--dims", "0"], rf"dims must be in \[1, {whole}\], got 0"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--overwrite", *extra])
        assert re.search(message, capsys.readouterr().err)
