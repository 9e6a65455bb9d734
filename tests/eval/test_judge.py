"""The judge: any encoder, and scores that others wrote, with controls, checks, gates and a verdict."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from judged import WordVectors, word_task
from transformers import BertConfig, BertModel

import concept_encoder as ce
from concept_encoder.eval.judging.checks import CHECKS, Case, looks_drawn, pair_key, participation_ratio
from concept_encoder.eval.judging.judge import failed, gate_sets, judged_table, load_pairs, plain_texts
from concept_encoder.eval.judging.records import RECORD_CHECKS, judge_record, read_records
from concept_encoder.eval.judging.subjects import OfConcepts, Subject, open_subject, randomise, unread_and_missing
from concept_encoder.scripts.judge import main
from concept_encoder.utils.results import JudgeResult


@pytest.fixture(scope="module")
def judged():
    return ce.judge(WordVectors(), tasks=[word_task()])


@pytest.mark.slow
def test_an_object_with_encode_is_judged(judged):
    assert not failed(judged), judged.verdict.findings
    assert judged.verdict.overall == "INCONCLUSIVE"  # a bag of words is no better and no worse than one
    assert judged.model.dimensions == 64 and judged.model.parameters is None and judged.model.revision is None
    assert judged.model.words_read == 512  # the most that is tried
    assert judged.model.name == "judged.WordVectors"
    (task,) = judged.tasks
    spearman = task.scores["spearman"]
    low, high = spearman.interval
    assert 0.7 < low < spearman.value < high < 1 and spearman.chance == 0
    assert set(spearman.controls) == {"bag_of_tokens", "shuffled_words"}  # no weights are known
    assert spearman.controls["shuffled_words"].difference == pytest.approx(0, abs=5e-3)
    assert {"random_layers", "known_words", "float16", "beats_twin"} <= set(judged.skipped)
    assert not set(judged.skipped) & set(judged.checks)
    assert judged.checks["crowding"].value > 0.1  # "the" is in each
    assert judged.nulls["crowding"].gaussian == pytest.approx(0, abs=0.01)
    assert judged.nulls["crowding"].random_encoder is None


@pytest.mark.slow
def test_vectors_of_a_text_are_compared_by_maxsim():
    result = ce.judge(WordVectors(late=True), tasks=[word_task(60)])
    assert result.model.compared_by == "MaxSim"
    assert result.tasks[0].scores["spearman"].value > 0.8
    assert result.checks["same_inside"].value == pytest.approx(1 / 28, abs=5e-3)  # "the" stands twice among 8 words


@pytest.mark.slow
def test_two_side_by_side():
    class Lengths(WordVectors):
        def encode(self, texts):
            return np.array([[len(text), len(text.split()), 1.0] for text in texts], np.float32)

    result = ce.judge(WordVectors(), Lengths(), tasks=[word_task()])
    assert not failed(result) and result.other.verdict.overall == "FAIL"
    assert {"crowding", "length_bias", "duplicates", "strongest_dimension"} <= set(failed(result.other))
    spearman = next(row for row in result.against if row.metric == "spearman")
    assert spearman.interval[0] > 0 and spearman.p_value < 0.01
    assert any(f"On words it beats {result.other.name}: +" in line for line in result.verdict.findings)
    assert not result.other.against and result.other.other is None


@pytest.mark.slow
def test_files_are_written_and_read_back(judged, tmp_path):
    from concept_encoder.eval.judging.judge import write_judged

    written = dataclasses.replace(judged)
    write_judged(written, tmp_path)
    assert JudgeResult.load(tmp_path / "judge.json") == judged
    page = (tmp_path / "judge.html").read_text(encoding="utf-8")
    assert "<h1>judged.WordVectors</h1>" in page and "An encoder, judged" in page and "http" not in page
    text = (tmp_path / "judge.md").read_text(encoding="utf-8")
    assert text.startswith("# judged.WordVectors\n\n**INCONCLUSIVE.** Any encoder: 1 of 16 gates")
    assert "| spearman | **the model** |" in text and "bag of tokens" in text and "Gaussian noise" in text
    assert "not collapsed  " in judged_table(judged)


@pytest.mark.slow
def test_a_checkpoint_of_this_package(pretrained):
    result = ce.judge(pretrained, tasks=[word_task(60)])
    controls = result.tasks[0].scores["spearman"].controls
    assert set(controls) == {"bag_of_tokens", "random_init", "static_table", "shuffled_words"}
    assert result.model.digest and result.model.parameters > 0 and result.model.name == "run"
    assert "repeated" not in failed(result) and "batch" not in failed(result) and "order" not in failed(result)
    assert result.checks["same_inside"].value >= 0


def test_a_twin_is_random_and_the_subject_stays(pretrained):
    subject = open_subject(pretrained)
    assert isinstance(subject, OfConcepts)
    before = subject.encode(["the cat"])
    twin = subject.changed(randomise)
    assert np.abs(twin.encode(["the cat"]) - before).max() > 1e-3
    np.testing.assert_array_equal(subject.encode(["the cat"]), before)
    assert [each.shape for each in subject.inside(["the cat", "a dog sleeps"])] == [(4, 32)] * 2


def test_a_bare_model_of_transformers_is_read_with_the_mean_over_its_tokens(tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(
        tmp_path / "bert"
    )
    tokenizer.save_pretrained(tmp_path / "bert")
    subject = open_subject(tmp_path / "bert")
    vectors, (inside,) = subject.encode(["the cat sleeps"]), subject.inside(["the cat sleeps"])
    np.testing.assert_allclose(vectors[0], inside.mean(0), atol=1e-6)
    assert (subject.name, subject.revision, len(subject.digest)) == ("bert", None, 16)
    assert subject.module.config.hidden_size == 32 and unread_and_missing(subject) == ([], [])
    del subject.module.encoder.layer[1]
    unread, missing = unread_and_missing(subject)
    assert len(unread) == 16 and all(name.startswith("encoder.layer.1.") for name in unread) and not missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give a model to judge"),
        ({"other": WordVectors(), "scores": ["a.json"]}, "give a model to judge"),
        ({"model": 3}, "int has no encode"),
        ({"model": WordVectors(), "revision": "main"}, "an object in memory has no revision 'main'"),
        ({"model": WordVectors(), "tasks": []}, "at least one similarity task"),
        ({"model": WordVectors(), "max_examples": 10}, "max_examples must be at least 50"),
        ({"model": WordVectors(), "tasks": ["mrpc"]}, "Unknown similarity task 'mrpc'"),
    ],
)
def test_what_cannot_be_judged(arguments, message):
    with pytest.raises(ValueError, match=message):
        ce.judge(**arguments)


@pytest.mark.parametrize("found", [np.zeros(3), np.zeros((1, 4)), None, [np.zeros((0, 4))] * 2, "vectors"])
def test_an_encode_that_gives_something_else(found):
    class Odd:
        def encode(self, texts):
            return found

    with pytest.raises(ValueError, match=r"encode of .*Odd must give a vector, or a matrix of vectors, for each of 2"):
        Subject(Odd()).encode(["a", "b"])


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="holds no model: neither config"):
        open_subject(tmp_path)
    with pytest.raises(FileNotFoundError, match="No checkpoint folder"):
        open_subject(tmp_path / "none" / "at" / "all")


# -------------------------------------------------------------------------------------------------------------- checks


def test_every_check_has_a_gate_or_is_told():
    gated = {gate.metrics[0].removeprefix("checks/") for gates in gate_sets().values() for gate in gates.gates}
    assert gated == {name for name, check in CHECKS.items() if check.fault} | set(RECORD_CHECKS)


def test_drawn_and_trained_weights_look_different():
    import torch

    torch.manual_seed(0)
    drawn = torch.randn(256, 128)
    assert (
        looks_drawn(drawn) and looks_drawn(torch.nn.Linear(64, 64).weight.detach()) and looks_drawn(torch.ones(64, 64))
    )
    assert not looks_drawn(drawn + 2 * torch.outer(torch.randn(256), torch.randn(128)))


def test_participation_ratio_of_known_rows():
    assert participation_ratio(np.concatenate([np.eye(8), -np.eye(8)])) == pytest.approx(8)
    assert participation_ratio(np.outer(np.arange(5.0), np.ones(3))) == pytest.approx(1)
    assert participation_ratio(np.ones((4, 3))) == 0


def test_how_much_is_read_is_found():
    class First(WordVectors):
        def encode(self, texts):
            return super().encode([" ".join(text.split()[:40]) for text in texts])

    pairs = load_pairs(word_task(60), 60, 0)
    case = Case(Subject(First()), [pairs], plain_texts([pairs], 0))
    assert 36 <= case.words_read <= 40  # to an eighth


def test_a_pair_is_the_same_without_case_and_order():
    assert pair_key("A cat  sleeps", "a dog") == pair_key("A DOG", "a cat sleeps")


# ------------------------------------------------------------------------------------------------------------- records


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def mteb_result(task="STSBenchmark", **scores):
    return {"task_name": task, "mteb_version": "2.0", "scores": {"test": [{"hf_subset": "default", **scores}]}}


def test_a_result_of_mteb_without_predictions(tmp_path):
    path = write(tmp_path / "a.json", mteb_result(main_score=0.82, cosine_spearman=0.82, cosine_pearson=0.83))
    result = ce.judge(scores=[path], output_dir=tmp_path / "out")
    (record,) = result.records
    assert result.verdict.overall == "PASS" and result.model is None and result.name == "handed-in scores"
    assert record.id == "STSBenchmark, test" and record.metric == "cosine_spearman" and not record.notes
    low, high = record.interval
    assert (round(low, 3), round(high, 3)) == (0.801, 0.837) and "1379 examples" in record.interval_rule
    assert record.verdict == "above chance" and record.recomputed is None
    assert "Scores, judged" in (tmp_path / "out" / "judge.html").read_text(encoding="utf-8")


def test_a_result_of_mteb_at_chance(tmp_path):
    path = write(tmp_path / "a.json", mteb_result("BIOSSES", main_score=0.12, cosine_spearman=0.12))
    result = ce.judge(scores=[path])
    assert result.verdict.overall == "FAIL" and failed(result) == ["at_chance"]
    assert result.verdict.findings == ["BIOSSES, test: cosine_spearman cannot be told from chance."]


def test_a_result_of_mteb_with_predictions(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 200).tolist()
    cosines = [label / 5 + 0.3 * rng.standard_normal() for label in labels]
    path = write(tmp_path / "a.json", mteb_result(main_score=0.5, cosine_spearman=0.5))
    write(tmp_path / "STSBenchmark_predictions.json", {"default": {"test": {"cosine_scores": cosines}}})
    write(tmp_path / "STSBenchmark_labels.json", labels)
    record = judge_record(read_records(path)[0])
    assert record.recomputed > 0.6 and record.interval_rule == "as measured"
    assert (
        list(record.notes) == ["as_said"]
        and "not 0.5000; and no other metric has that score" in record.notes["as_said"]
    )


def test_predictions_of_finetune_have_their_controls(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).tolist()
    content = {
        "kind": "predictions",
        "schema": 1,
        "references": labels,
        "run": {"42": labels},
        "bag_of_tokens": rng.integers(0, 2, 200).tolist(),
        "random_init": {"42": rng.integers(0, 2, 200).tolist()},
    }
    (record,) = map(judge_record, read_records(write(tmp_path / "rte.tuned.json", content)))
    assert record.id == "rte, seed 42" and record.recomputed == 1
    assert set(record.against) == {"bag_of_tokens", "random_init"}
    assert record.against["bag_of_tokens"].interval[0] > 0.3


def test_a_state_of_the_trainer_is_a_history(tmp_path):
    rows = [{"eval_accuracy": score, "epoch": epoch} for epoch, score in enumerate((0.7, 0.9, 0.8))]
    path = write(tmp_path / "trainer_state.json", {"best_metric": 0.9, "log_history": rows})
    (record,) = read_records(path)
    assert (record.metric, record.score, record.history) == ("accuracy", 0.9, [0.7, 0.9, 0.8])
    assert "the best of 3 looks at the split" in judge_record(record).notes["selected"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"task": "a"}, "lacks metric, score"),
        ({"task": "a", "metric": "f1", "score": 1, "label": []}, "unknown field 'label'"),
        ({"task": "a", "metric": "f1", "score": "high"}, "score must be a finite number, got 'high'"),
        ({"task": "a", "metric": "f1", "score": 1, "labels": [0, 1]}, "labels and predictions go together"),
        (
            {"task": "a", "metric": "f1", "score": 1, "labels": [0, 1], "predictions": [0, 1, 1]},
            "predictions must be as many as the labels, got 3",
        ),
        ({"task": "a", "metric": "f1", "score": 1, "controls": [1]}, "controls must be lists"),
        ({"task": "a", "metric": "f1", "score": 1, "labels": [0], "predictions": [0]}, "at least 2 numbers"),
        ({"task_name": "a", "scores": {"test": [{"main_score": None}]}}, "finite main_score"),
        ({"task_name": "a", "scores": {}}, "holds no scores"),
        ({"log_history": []}, "names no best_metric"),
        ({"log_history": [{"eval_f1": 0.5}], "best_metric": 0.7}, "no evaluation of log_history"),
    ],
)
def test_files_that_hold_no_score(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_records(write(tmp_path / "a.json", content))


# ------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(("score", "code", "said"), [(0.82, 0, "PASS: "), (0.01, 1, "FAIL: ")])
def test_the_exit_code_is_the_verdict(score, code, said, tmp_path, capsys):
    path = write(tmp_path / "a.json", mteb_result(main_score=score, cosine_spearman=score))
    with pytest.raises(SystemExit) as stopped:
        main(["--scores", str(path), "--output_dir", str(tmp_path / "out")])
    assert stopped.value.code == code
    printed = capsys.readouterr()
    assert printed.out.startswith(said) and "judge.html" in printed.err


def test_bad_input_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------- gate


def hook() -> str:
    """The script of the page on the judge."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "judge.md").read_text(encoding="utf-8")
    return next(block.partition("```")[0] for block in page.split("```text\n") if block.startswith("#!/bin/sh"))


@pytest.mark.slow
@pytest.mark.hub
def test_a_checkpoint_that_fails_is_not_pushed(pretrained, seeded_hub, tmp_path):
    """The example of the page, with the Hub; then with a judge that cannot decide, which lets it through."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    ours = f'concept-encoder() {{ {shlex.quote(sys.executable)} -m concept_encoder "$@"; }}\n'
    options = "--tasks stsb --max_examples 60"
    environment = {**os.environ, "RUN": str(run), "REPO": "judge/refused", "JUDGE_OPTIONS": options}
    command = ["sh", "-c", ours.replace("concept-encoder()", "judged()") + hook().replace("concept-encoder", "judged")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("FAIL: ") and "the judge says FAIL" in done.stderr
    assert JudgeResult.load(run / "judged" / "judge.json").verdict.overall == "FAIL"
    assert not HfApi().repo_exists("judge/refused")
    undecided = 'judged() { case "$1" in judge) return 2;; *) echo "$@"; esac; }\n'
    command[2] = undecided + hook().replace("concept-encoder", "judged")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == f"push {run} --repo_id judge/refused\n"


@pytest.mark.hub
def test_a_revision_that_is_not_there(seeded_hub):
    with pytest.raises((ValueError, OSError)):
        open_subject("sentence-transformers/all-MiniLM-L6-v2", "0" * 40)
