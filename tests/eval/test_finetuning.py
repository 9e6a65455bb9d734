"""Fine-tuning of small checkpoints: what is written, what it is compared with, what is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from huggingface_hub import HfApi
from small_tasks import WORDS, files, pair_table, small_task
from transformers import BertConfig, BertModel

from concept_encoder.eval.benchmarks import finetuning, tuning
from concept_encoder.eval.benchmarks.finetuning import at_chance, finetune_task
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS, Protocol
from concept_encoder.eval.benchmarks.registry import BENCHMARKS, Task
from concept_encoder.eval.metrics.intervals import bootstrap_intervals
from concept_encoder.modeling_concept import ConceptEncoderForSequenceClassificationPerceiver
from concept_encoder.scripts.finetune import main
from concept_encoder.trainers.data.corpora import in_memory_name
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.utils.results import FinetuneResult, PredictionsResult

pytestmark = pytest.mark.filterwarnings("ignore:.* resamples leave:RuntimeWarning")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(finetuning, "RESAMPLES", 200)


@pytest.fixture
def checkpoint(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


@pytest.fixture
def protocol() -> Protocol:
    return PROTOCOLS["quick"].override(epochs=2, batch_sizes=(32,))


@pytest.fixture
def small_tasks(tmp_path, monkeypatch):
    """MRPC and STS-B of the registry on small tables, for the command line."""
    for name in ("mrpc", "stsb"):
        monkeypatch.setitem(BENCHMARKS, name, small_task(name, tmp_path))


@pytest.mark.slow
def test_pairs_are_tokenised_as_pairs_and_truncated(pretrained, tmp_path, protocol, monkeypatch):
    """What the model is fed: [CLS] a [SEP] b [SEP], never longer than max_length."""
    seen = []
    forward = ConceptEncoderForSequenceClassificationPerceiver.forward

    def spy(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        seen.append(input_ids)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    monkeypatch.setattr(ConceptEncoderForSequenceClassificationPerceiver, "forward", spy)
    row = small_task("mrpc", tmp_path)
    finetune_task(str(pretrained), row, protocol, tmp_path / "long")
    tokenizer = microworld_tokenizer(64)
    first = tokenizer.decode(seen[0][0]).split()
    assert first[0] == "[CLS]"
    assert first[2] == first[4] == "[SEP]"
    assert {first[1], first[3]} <= set(WORDS)
    seen.clear()
    result = finetune_task(str(pretrained), row, protocol.override(max_length=4), tmp_path / "short")
    assert max(batch.shape[1] for batch in seen) == result.max_length == 4


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_result(task, checkpoint, tmp_path, protocol):
    row = small_task(task, tmp_path)
    before = files(checkpoint)
    result = finetune_task(str(checkpoint), row, protocol, checkpoint)
    name = f"{task}.quick+batch_sizes=32+epochs=2"
    cells = [f"finetune/{name}/{cell}.json" for cell in ("run.seed=42", "bag_of_tokens", "random_init.seed=42")]
    new = {path for path in files(checkpoint) - before if not path.startswith("random_init")}
    folders = {"finetune", f"finetune/{name}", "finetune/predictions"}
    assert new == {*folders, f"finetune/{name}.json", f"finetune/predictions/{name}.json", *cells}  # no scratch
    path = checkpoint / "finetune" / f"{name}.json"
    assert FinetuneResult.load(path) == result
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == result.as_dict()
    assert os.fspath(result) == str(checkpoint)
    assert result.kind == "finetune"
    assert result.split == "validation"
    assert list(result.scores) == list(row.metrics)
    assert result.primary_metric == row.metrics[0]
    assert result.chance_rule == row.chance_rule
    assert (result.train_examples, result.validation_examples, result.steps) == (96, 40, 6)
    assert result.max_length == 64  # the encoder's positions, fewer than the protocol's 128
    assert vars(result.selected) == {"learning_rate": 1e-3, "batch_size": 32, "epochs": 2}
    assert result.seeds == [42] and result.sweep == []
    assert result.head == row.head
    assert result.newly_initialized[0] == "classifier.bias"
    assert any("loss" in entry for entry in result.log_history)
    if task == "mrpc":
        labels = pair_table(40, seed=40, similarity=False)["label"][:]
        assert result.scores["accuracy"].chance == max(np.mean(labels), 1 - np.mean(labels))


@pytest.mark.slow
def test_controls_stand_beside_the_score(checkpoint, tmp_path, protocol):
    row = small_task("mrpc", tmp_path)
    result = finetune_task(str(checkpoint), row, protocol, checkpoint)
    path = checkpoint / "finetune" / "predictions" / f"mrpc.{protocol.name}.json"
    kept = PredictionsResult.load(path)
    labels, own = kept.references, kept.run["42"]
    bag, twin = kept.bag_of_tokens, kept.random_init["42"]
    assert labels == pair_table(40, seed=40, similarity=False)["label"][:]
    accuracies = {name: np.mean(np.equal(values, labels)) for name, values in (("bag", bag), ("twin", twin))}
    score = result.scores["accuracy"]
    assert score.value == np.mean(np.equal(own, labels))
    intervals = bootstrap_intervals("mrpc", [own], labels, resamples=200)
    assert {name: each.interval for name, each in result.scores.items()} == intervals
    assert set(result.controls) == set(score.controls) == {"bag_of_tokens", "random_init"}
    for name, key in (("bag_of_tokens", "bag"), ("random_init", "twin")):
        control = score.controls[name]
        assert control.value == accuracies[key]
        assert control.difference == pytest.approx(score.value - accuracies[key])
        low, high = control.difference_interval
        assert low <= control.difference <= high
    for line in result.published:
        assert line.comparable == (line.split == "validation")


@pytest.mark.slow
def test_a_score_is_paired_with_the_constant_prediction():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.7).astype(int)
    systems = {
        "above": np.where(rng.random(400) < 0.95, labels, 1 - labels),
        "cannot be told from": np.ones(400, dtype=int),
        "below": np.where(rng.random(400) < 0.95, 1 - labels, labels),
    }
    for verdict, predictions in systems.items():
        flags = at_chance(BENCHMARKS["mrpc"], [predictions], labels)
        assert flags == dict.fromkeys(("f1", "accuracy"), verdict != "above")
    assert at_chance(BENCHMARKS["stsb"], [rng.normal(size=400)], labels) == {}  # judged by its own interval


@pytest.mark.slow
def test_metrics_are_those_of_the_saved_model(checkpoint, tmp_path, protocol):
    """The kept model, loaded again, predicts what was scored."""
    row = small_task("mrpc", tmp_path)
    result = finetune_task(str(checkpoint), row, protocol, checkpoint, save_model=True)
    folder = checkpoint / "finetune" / "mrpc.quick+batch_sizes=32+epochs=2" / "model"
    model = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(folder).eval()
    table = pair_table(40, seed=40, similarity=False)
    tokenizer = microworld_tokenizer(64)
    batch = tokenizer(table["sentence1"][:], table["sentence2"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        predictions = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1).numpy()
    assert result.scores["accuracy"].value == np.mean(predictions == np.asarray(table["label"]))
    assert (folder / "tokenizer.json").is_file()
    assert not list((checkpoint / "finetune").glob(".*"))


@pytest.mark.slow
def test_same_seed_same_result(pretrained, tmp_path, protocol):
    row = small_task("stsb", tmp_path)
    runs = [finetune_task(str(pretrained), row, protocol, tmp_path / name) for name in ("a", "b")]
    other = finetune_task(str(pretrained), row, protocol.override(seeds=(7,)), tmp_path / "c")
    losses = [[entry["loss"] for entry in run.log_history if "loss" in entry] for run in (*runs, other)]
    assert losses[0] == losses[1] != losses[2]
    assert runs[0].scores == runs[1].scores


@pytest.mark.slow
def test_training_lowers_the_loss(pretrained, tmp_path):
    row = small_task("stsb", tmp_path)
    protocol = PROTOCOLS["quick"].override(epochs=30, batch_sizes=(16,), learning_rates=(3e-3,))
    result = finetune_task(str(pretrained), row, protocol, tmp_path / "run")
    losses = [entry["loss"] for entry in result.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_divergence_is_an_error_and_leaves_nothing(checkpoint, tmp_path):
    before = files(checkpoint)
    protocol = PROTOCOLS["quick"].override(learning_rates=(1e30,), epochs=1)
    with pytest.raises(
        ValueError, match="Training on mrpc diverged: predictions are not finite; lower learning_rates"
    ):
        finetune_task(str(checkpoint), small_task("mrpc", tmp_path), protocol, checkpoint)
    assert files(checkpoint) == before


@pytest.mark.slow
def test_several_devices_are_refused(pretrained, tmp_path, protocol, monkeypatch):
    monkeypatch.setattr(tuning.TrainingArguments, "train_batch_size", property(lambda self: 64))
    with pytest.raises(ValueError, match=r"Fine-tuning uses one device.* batch_size \(32\); set CUDA_VISIBLE_DEVICES"):
        finetune_task(str(pretrained), small_task("mrpc", tmp_path), protocol, tmp_path / "run")


@pytest.mark.slow
def test_command_line(checkpoint, small_tasks, capsys):
    arguments = [str(checkpoint), "--tasks", "mrpc", "stsb", "--protocol", "quick"]
    main([*arguments, "--epochs", "1", "--learning_rates", "0.002"])
    printed, said = capsys.readouterr()
    assert "[2/2] stsb, protocol quick+learning_rates=0.002+epochs=1" in said
    for line in ("mrpc  f1 ", "mrpc  accuracy ", "stsb  pearson ", "stsb  spearman "):
        assert f"\n{line}" in printed
    assert "; accuracy 0." in printed  # the verdict in words
    assert said.rstrip().endswith(f"concept-encoder report {checkpoint}")
    written = checkpoint / "finetune" / "stsb.quick+learning_rates=0.002+epochs=1.json"
    result = FinetuneResult.load(written)
    assert (result.selected.learning_rate, result.selected.epochs) == (0.002, 1)

    written.write_text("{}")
    fails([*arguments, "--epochs", "1", "--learning_rates", "0.002"], r"mrpc\.quick.*exists; give --overwrite", capsys)
    main([*arguments, "--epochs", "1", "--learning_rates", "0.002", "--overwrite"])
    assert FinetuneResult.load(written).scores == result.scores
    main([str(checkpoint), "--tasks", "stsb", "--protocol", "quick", "--epochs", "1", "--comparison", "bi_encoder"])
    apart = FinetuneResult.load(checkpoint / "finetune" / "stsb.quick+epochs=1+comparison=bi_encoder.json")
    assert apart.head == "ConceptEncoderForSentencePairClassification"
    assert (apart.settings["comparison"], result.settings["comparison"]) == ("bi_encoder", "cross_encoder")


def fails(arguments: list[str], message: str, capsys) -> None:
    """One clean line on stderr and exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last), last


def bert(folder: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    shutil.rmtree(folder)
    BertModel(config).save_pretrained(folder)


def without_pad_token(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bert, "holds a model of type 'bert'; only type 'concept_encoder'"),
        (lambda folder: (folder / "config.json").unlink(), "is not a checkpoint: it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"it has no model\.safetensors"),
        (lambda folder: [p.unlink() for p in folder.glob("tokenizer*")], "has no tokenizer; save the one it was"),
        (without_pad_token, "has no padding token; set pad_token"),
        (lambda folder: shutil.rmtree(folder), "No checkpoint folder|is not a folder to write results to"),
    ],
)
def test_bad_checkpoint(spoil, message, checkpoint, small_tasks, capsys):
    spoil(checkpoint)
    before = files(checkpoint)
    fails([str(checkpoint), "--tasks", "mrpc", "--protocol", "quick"], message, capsys)
    assert files(checkpoint) == before


def test_a_vocabulary_that_does_not_fit(checkpoint, small_tasks, capsys):
    tokenizer = microworld_tokenizer(64)
    tokenizer.add_tokens(["zyx"])
    tokenizer.save_pretrained(checkpoint)
    fails([str(checkpoint), "--tasks", "mrpc", "--protocol", "quick"], "tokens, the model only", capsys)


def test_bad_arguments(checkpoint, capsys):
    before = files(checkpoint)
    fails(
        [str(checkpoint), "--tasks", "mrcp", "--protocol", "quick"], r"Unknown task 'mrcp'\. Available: mrpc", capsys
    )
    fails([str(checkpoint), "--tasks", "mrpc", "--protocol", "slow"], "Unknown protocol 'slow'", capsys)
    arguments = [str(checkpoint), "--tasks", "mrpc", "--protocol", "quick", "--learning_rates", "-1"]
    fails(arguments, "learning_rates must be positive, got -1.0", capsys)
    assert files(checkpoint) == before


@pytest.mark.slow
def test_a_table_of_ones_own(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, size in (("train", 200), ("validation", 60)):
        table = pair_table(size, seed=size, similarity=True)
        table = table.rename_columns({"sentence1": "left", "sentence2": "right", "label": "grade"})
        table.to_csv(tmp_path / "grades" / f"{split}.csv")
    own = "like: stsb\ndataset_id: grades\nsentence_columns: [left, right]\nlabel_column: grade\n"
    (tmp_path / "my_grades.yaml").write_text(own)
    main([str(checkpoint), "--tasks", "my_grades.yaml", "--protocol", "quick", "--epochs", "1"])
    assert "my_grades  pearson" in capsys.readouterr().out
    result = FinetuneResult.load(checkpoint / "finetune" / "my_grades.quick+epochs=1.json")
    assert list(result.scores) == ["pearson", "spearman"] and result.published == []
    assert (result.train_examples, result.validation_examples) == (200, 60)
    assert result.id == "my_grades.quick+epochs=1"
    fails([str(checkpoint), "--tasks", "no_file.yaml", "--protocol", "quick"], "No such file .*no_file.yaml", capsys)


@pytest.mark.slow
def test_from_the_hub(hub, pretrained, tmp_path, small_tasks, capsys):
    HfApi().create_repo("me/pretrained", exist_ok=True)
    HfApi().upload_folder(folder_path=pretrained, repo_id="me/pretrained")
    arguments = ["me/pretrained", "--tasks", "mrpc", "--protocol", "quick", "--epochs", "1"]
    fails(arguments, "me/pretrained is not a folder to write results to; give --output_dir", capsys)
    main([*arguments, "--output_dir", str(tmp_path / "out")])
    written = {"finetune/mrpc.quick+epochs=1.json", "finetune/predictions/mrpc.quick+epochs=1.json"}
    assert written <= files(tmp_path / "out")


@pytest.mark.slow
def test_a_task_in_memory_is_fine_tuned_and_recorded_by_its_digest(checkpoint, protocol):
    data = DatasetDict(
        {split: pair_table(rows, seed=rows, similarity=False) for split, rows in (("train", 96), ("validation", 40))}
    )
    task = Task(name="alike", data=data, like="rte")
    (result,) = finetuning.finetune(str(checkpoint), [task, task], protocol)
    assert result.task == "alike" and result.train_examples == 96
    assert result.dataset == {"id": task.dataset_id, "config": None, "licence": "not stated"}
    assert task.dataset_id == in_memory_name(data)
