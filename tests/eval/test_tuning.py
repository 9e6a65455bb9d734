"""Sweeps and seeds in resumable cells: what is selected on, what is kept, what a kill leaves."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_tasks import files, save_pretrained, small_task
from transformers import DataCollatorWithPadding, TrainingArguments

from concept_encoder.eval.benchmarks import finetuning, tuning
from concept_encoder.eval.benchmarks.finetuning import finetune_task
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS, Protocol
from concept_encoder.eval.benchmarks.registry import load_benchmark
from concept_encoder.eval.benchmarks.tuning import prepare_task
from concept_encoder.eval.loading.checkpoints import load
from concept_encoder.modeling_concept import (
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
)
from concept_encoder.utils.results import PredictionsResult, SweepCell

pytestmark = pytest.mark.filterwarnings("ignore:.* resamples leave:RuntimeWarning")
CHANGES = {"learning_rates": (3e-4, 3e-3), "seeds": (42, 43), "epochs": 3, "patience": 2}
CELLS = [
    "run.sweep.lr=0.0003.batch=32",
    "run.sweep.lr=0.003.batch=32",
    "run.seed=42",
    "run.seed=43",
    "bag_of_tokens",
    "random_init.sweep.lr=0.0003.batch=32",
    "random_init.sweep.lr=0.003.batch=32",
    "random_init.seed=42",
    "random_init.seed=43",
]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(finetuning, "RESAMPLES", 200)


def prepared(pretrained: Path, row, protocol: Protocol):
    opened = load(pretrained)
    return prepare_task(row, protocol, opened.tokenizer, opened.config)


def without_time(value):
    """`value` without what a clock has written."""
    if isinstance(value, dict):
        clock = ("seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second")
        return {key: without_time(item) for key, item in value.items() if key not in clock}
    return [without_time(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def straight(pretrained, tmp_path_factory):
    """A tuned run without interruption: its folder, result, and the trainings it took."""
    folder = tmp_path_factory.mktemp("straight")
    row = small_task("stsb", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "RESAMPLES", 200)
        calls = spy_on_training(patch)
        result = finetune_task(str(pretrained), row, PROTOCOLS["tuned"].override(**CHANGES), folder / "out")
    return folder, row, result, calls


def spy_on_training(patch) -> list[dict]:
    """What each training was given."""
    calls: list[dict] = []
    train = tuning._train

    def spy(folder, task, setting, seed, watch, data, select_on=None):
        calls.append({"folder": folder, "setting": setting, "seed": seed, "data": data, "select_on": select_on})
        return train(folder, task, setting, seed, watch, data, select_on)

    patch.setattr(tuning, "_train", spy)
    return calls


@pytest.mark.slow
def test_tuned_result(straight):
    folder, row, result, _ = straight
    name = f"stsb.{result.protocol}"
    assert {path.stem for path in (folder / "out" / "finetune" / name).iterdir()} == set(CELLS)
    assert [(row.learning_rate, row.batch_size) for row in result.sweep] == [(3e-4, 32), (3e-3, 32)]
    best = max(result.sweep, key=lambda row: row.metrics["pearson"])
    assert vars(result.selected) == {key: getattr(best, key) for key in ("learning_rate", "batch_size", "epochs")}
    assert result.seeds == [42, 43]
    for metric in row.metrics:
        score = result.scores[metric]
        assert score.value == pytest.approx(np.mean(score.per_seed))
    assert len(result.controls["random_init"].sweep) == 2  # as well tuned as the run
    assert result.primary.controls["random_init"].value != result.primary.value


def test_validation_is_never_seen_in_the_sweep(straight):
    """Every sweep trains and selects inside the training split; both parts are disjoint and make it up."""
    _, row, _, calls = straight
    data = load_benchmark(row)
    sweeps = [call for call in calls if call["select_on"] is not None]
    assert len(sweeps) == 4
    for call in sweeps:
        assert (len(call["data"]), len(call["select_on"])) == (86, 10)
        labels = call["data"]["label"][:] + call["select_on"]["label"][:]
        assert sorted(labels) == sorted(data["train"]["label"][:])
        assert call["seed"] == 42
    assert len({str(call["select_on"]["input_ids"][:]) for call in sweeps}) == 1  # the same for run and twin
    finals = [call for call in calls if call["select_on"] is None]
    assert [(len(call["data"]), call["seed"]) for call in finals] == [(96, 42), (96, 43)] * 2
    assert [call["folder"].name for call in finals] == ["run", "run", "random_init", "random_init"]


@pytest.mark.slow
def test_share_to_select_on_is_stratified(pretrained, tmp_path):
    task = prepared(pretrained, small_task("mrpc", tmp_path, train=400), PROTOCOLS["tuned"])
    fit_on, select_on = tuning._selection_split(task)
    rates = [np.mean(part["label"][:]) for part in (fit_on, select_on, task.encoded["train"])]
    assert len(select_on) == 40
    assert rates == pytest.approx([rates[2]] * 3, abs=1 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", [1, 6])
def test_a_killed_run_goes_on_where_it_was(killed_in, straight, pretrained, tmp_path, monkeypatch):
    _, row, result, calls = straight
    protocol = PROTOCOLS["tuned"].override(**CHANGES)
    train, count = tuning._train, []

    def killed(*arguments):
        count.append(1)
        if len(count) == killed_in + 1:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_train", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune_task(str(pretrained), row, protocol, tmp_path)
    cells = tmp_path / "finetune" / f"stsb.{protocol.name}"
    trained = [cell for cell in CELLS if cell != "bag_of_tokens"][:killed_in]
    assert {path.stem for path in cells.iterdir()} - {"bag_of_tokens"} == set(trained)
    assert not (tmp_path / "finetune" / f"stsb.{protocol.name}.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in cells.iterdir()}
    with monkeypatch.context() as patch:
        after = spy_on_training(patch)
        resumed = finetune_task(str(pretrained), row, protocol, tmp_path)
    assert len(after) == len(calls) - killed_in
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert without_time(resumed.as_dict()) == without_time(result.as_dict())


@pytest.mark.slow
def test_cells_of_other_settings_are_refused(straight, pretrained, tmp_path):
    folder, row, result, _ = straight
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    path = out / "finetune" / f"stsb.{result.protocol}.json"
    path.unlink()
    other = save_pretrained(tmp_path / "other")
    weights = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(other).encoder
    with torch.no_grad():
        weights.norm.weight.mul_(2)
    weights.save_pretrained(other)
    protocol = PROTOCOLS["tuned"].override(**CHANGES)
    with pytest.raises(ValueError, match=r"lr=0\.0003.*json has other settings \(weights '.*', now '.*give --overw"):
        finetune_task(str(other), row, protocol, out)
    redone = finetune_task(str(other), row, protocol, out, overwrite=True)
    assert redone.primary.per_seed != result.primary.per_seed
    twins = [each.primary.controls["random_init"].value for each in (redone, result)]
    assert twins[0] == twins[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "change", "message"),
    [
        (
            0,
            {"schema": 0},
            r"lr=0\.0003\.batch=32\.json: schema must be 1, got 0; remove it and run `concept-encoder fin",
        ),
        (0, {"row": None}, r"lr=0\.0003\.batch=32\.json: row must be an object, got None"),
        (2, {"predictions": ["x"]}, r"run\.seed=42\.json: predictions\[0\] must be a valid number, got 'x'"),
        (2, {"settings": 3}, r"run\.seed=42\.json: settings must be an object, got 3"),
    ],
)
def test_an_edited_cell_is_named(straight, pretrained, tmp_path, cell, change, message):
    folder, row, result, _ = straight
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    written = out / "finetune" / f"stsb.{result.protocol}.json"
    written.unlink()
    names = ("run.sweep.lr=0.0003.batch=32", "run.sweep.lr=0.003.batch=32", "run.seed=42")
    path = written.parent / written.stem / f"{names[cell]}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        finetune_task(str(pretrained), row, PROTOCOLS["tuned"].override(**CHANGES), out)
    assert not written.exists()


@pytest.mark.slow
def test_training_stops_at_the_best_epoch_and_when_nothing_improves(pretrained, tmp_path, monkeypatch):
    """Scores that fall from the second epoch on: patience 2 ends the sweep after epoch 4, the seeds after epoch 2."""
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    row = small_task("rte", tmp_path)
    protocol = PROTOCOLS["tuned"].override(learning_rates=(1e-3,), seeds=(7,), epochs=6, patience=2)
    task = prepared(pretrained, row, protocol)
    monkeypatch.setattr(tuning, "benchmark_score", lambda *arguments: {"accuracy": next(scores)})
    cells = tuning.Cells(tmp_path / "cells", tuning.tqdm(disable=True))
    own = tuning.run_protocol("run", load(pretrained), task, cells)
    sweep = SweepCell.load(tmp_path / "cells" / "run.sweep.lr=0.001.batch=32.json")
    assert [metrics["accuracy"] for metrics in sweep.metrics_by_epoch] == [0.1, 0.5, 0.4, 0.3]
    assert own.selected.epochs == 2
    assert own.runs[0].steps == 2 * 3  # 96 examples in batches of 32


@pytest.mark.slow
def test_a_diverging_setting_is_not_selected(pretrained, tmp_path):
    row = small_task("rte", tmp_path)
    protocol = PROTOCOLS["tuned"].override(learning_rates=(1e30, 1e-3), seeds=(7,), epochs=2)
    result = finetune_task(str(pretrained), row, protocol, tmp_path / "out")
    assert result.sweep[0].metrics == {"accuracy": None}
    assert result.selected.learning_rate == 1e-3


@pytest.mark.slow
def test_predictions_are_in_the_order_of_the_split(pretrained, tmp_path):
    """Scoring in order of length must not shuffle them."""
    row = small_task("stsb", tmp_path)
    protocol = PROTOCOLS["quick"].override(epochs=1)
    task = prepared(pretrained, row, protocol)
    long = [pair if i % 3 else f"{pair} in the garden" for i, pair in enumerate(task.texts["validation"]["sentence1"])]
    validation = task.texts["validation"].remove_columns("sentence1").add_column("sentence1", long)
    encoded = task.tokenizer(long, validation["sentence2"][:], return_token_type_ids=False)
    table = validation.remove_columns(["sentence1", "sentence2"])
    for name in ("input_ids", "attention_mask"):
        table = table.add_column(name, encoded[name])
    task.encoded["validation"] = table
    cells = tuning.Cells(tmp_path / "cells", tuning.tqdm(disable=True))
    cell = tuning.run_protocol("run", load(pretrained), task, cells, save_model=True).runs[0]
    model = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(tmp_path / "cells" / "model").eval()
    batch = task.tokenizer(long, validation["sentence2"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, 0].numpy()
    assert cell.predictions == pytest.approx(logits, abs=1e-5)
    assert np.ptp(logits) > 1e-3


@pytest.fixture
def uneven():
    """Two hundred examples in no order of length, each labelled with its length."""
    lengths = np.random.default_rng(0).permutation(200) // 4 + 3
    rows = [{"input_ids": [5] * n, "attention_mask": [1] * n, "label": n / 50} for n in lengths.tolist()]
    return Dataset.from_list(rows)


@pytest.mark.slow
def test_training_batches_are_grouped_and_predictions_stand_beside_their_labels(pretrained, uneven, tmp_path):
    model = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(pretrained, num_labels=1)
    tokenizer = load(pretrained).tokenizer
    options = {
        "num_train_epochs": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = tuning.LengthGroupedTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), per_device_train_batch_size=8, per_device_eval_batch_size=7, **options),
        train_dataset=uneven,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    batches, step = [], trainer.training_step

    def training_step(model, inputs, *args):
        batches.append(inputs["attention_mask"].sum(-1))
        return step(model, inputs, *args)

    trainer.training_step = training_step
    trainer.train()
    lengths = sorted(len(ids) for ids in uneven["input_ids"])
    for epoch in (batches[:25], batches[25:]):
        assert sorted(torch.cat(epoch).tolist()) == lengths  # each example once
        widths = [batch.max().item() for batch in epoch]
        assert widths != sorted(widths, reverse=True)
    positions = sum(len(batch) * batch.max().item() for batch in batches)
    assert trainer.padding_share == pytest.approx(1 - 2 * sum(lengths) / positions)
    assert trainer.padding_share < 0.25  # of random batches about 0.43

    prediction = trainer.predict(uneven)
    assert prediction.label_ids == pytest.approx(np.array(uneven["label"][:]))
    model.eval()
    for row in (0, 17, 199):
        with torch.no_grad():
            alone = model(torch.tensor([uneven[row]["input_ids"]])).logits[0]
        assert prediction.predictions[row] == pytest.approx(alone.numpy(), abs=1e-5)


@pytest.mark.slow
def test_cells_of_another_batching_are_refused(pretrained, tmp_path, monkeypatch):
    task = prepared(pretrained, small_task("rte", tmp_path), PROTOCOLS["quick"].override(epochs=1))
    cells = tuning.Cells(tmp_path / "cells", tuning.tqdm(disable=True))
    monkeypatch.setattr(tuning, "BATCHING", "random")
    cell = tuning.run_protocol("run", load(pretrained), task, cells).runs[0]
    assert 0 <= cell.padding_share < 1
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other settings \(batching 'random', now 'length-grouped'\); give --overwr"):
        tuning.run_protocol("run", load(pretrained), task, cells)


@pytest.mark.slow
def test_capped_training_examples(pretrained, tmp_path):
    row = small_task("mrpc", tmp_path)
    result = finetune_task(
        str(pretrained), row, PROTOCOLS["quick"].override(max_train_examples=48, epochs=1), tmp_path
    )
    assert (result.train_examples, result.steps) == (48, 1)
    assert "finetune/mrpc.quick+epochs=1+max_train_examples=48.json" in files(tmp_path)


@pytest.mark.slow
def test_a_share_too_small_to_select_on(pretrained, tmp_path):
    row = small_task("mrpc", tmp_path, train=10)
    message = r"selection_size \(0\.1\) of the 10 training examples of mrpc leaves fewer than 2 on one side"
    with pytest.raises(ValueError, match=message):
        finetune_task(str(pretrained), row, PROTOCOLS["tuned"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["stsb", "mrpc"])
def test_texts_of_a_pair_can_be_encoded_apart(task, pretrained, tmp_path, monkeypatch):
    """What the model is fed: [CLS] a [SEP] and [CLS] b [SEP]; a cosine learns labels in [0, 1]."""
    seen = []
    forward = ConceptEncoderForSentencePairClassification.forward

    @functools.wraps(forward)  # the Trainer drops columns that the signature does not name
    def spy(self, **batch):
        seen.append((self.config.pair_comparison, batch))
        return forward(self, **batch)

    monkeypatch.setattr(ConceptEncoderForSentencePairClassification, "forward", spy)
    row = small_task(task, tmp_path, train=512)
    result = finetune_task(
        str(pretrained), row, PROTOCOLS["quick"].override(comparison="bi_encoder"), tmp_path / "out"
    )
    assert result.protocol == "quick+comparison=bi_encoder"
    assert result.head == "ConceptEncoderForSentencePairClassification"
    comparison, first = seen[0]
    assert comparison == ("cosine" if task == "stsb" else "features")
    assert set(first) == {"input_ids_a", "attention_mask_a", "input_ids_b", "attention_mask_b", "labels"}
    tokenizer = load(pretrained).tokenizer
    for ids in (first["input_ids_a"], first["input_ids_b"]):
        assert (ids[:, 0] == tokenizer.cls_token_id).all()
        assert ((ids == tokenizer.sep_token_id).sum(1) == 1).all()
    assert set(first["labels"].tolist()) == {0, 1}
    kept = PredictionsResult.load(tmp_path / "out" / "finetune" / "predictions" / f"{task}.{result.protocol}.json")
    if task == "stsb":  # equal words have equal embeddings: with the right two side by side one can tell
        assert result.scores["pearson"].value > 0.6
        assert np.max(kept.run["42"]) > 2  # on the scale of the labels
    else:
        assert set(kept.run["42"]) <= {0, 1}


@pytest.mark.slow
def test_pairs_encoded_apart_are_sorted_by_both_lengths(pretrained, tmp_path):
    row = small_task("stsb", tmp_path)
    bi = prepared(pretrained, row, PROTOCOLS["bi_encoder"])
    cross = prepared(pretrained, row, PROTOCOLS["tuned"])
    assert bi.digest != cross.digest
    data = bi.encoded["train"]
    lengths = [len(a) + len(b) for a, b in zip(data["input_ids_a"], data["input_ids_b"], strict=True)]
    assert tuning._lengths(data) == lengths
    assert tuning._lengths(cross.encoded["train"]) == [length - 1 for length in lengths]  # [CLS] is there once


def test_single_sentences_are_encoded_as_ever(pretrained, tmp_path):
    row = dataclasses.replace(small_task("mrpc", tmp_path), sentence_columns=("sentence1",))
    task = prepared(pretrained, row, PROTOCOLS["bi_encoder"])
    assert task.head == "ConceptEncoderForSequenceClassificationPerceiver"
    assert task.encoded["train"].column_names == ["label", "input_ids", "attention_mask"]
