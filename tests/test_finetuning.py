"""Fine-tuning of small checkpoints: what is loaded, what is written, what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval import finetuning
from concept_encoder.eval.benchmarks import BENCHMARKS
from concept_encoder.eval.finetuning import (
    PROTOCOLS,
    Protocol,
    find_protocol,
    finetune,
    load_classifier,
    result_path,
)
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
)
from concept_encoder.scripts.finetune import main
from concept_encoder.trainers.microworld import microworld_tokenizer

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "diffusion_l2.json"
HEAD_KEYS = [
    "classifier.bias",
    "classifier.weight",
    "pooling.norm.bias",
    "pooling.norm.weight",
    "pooling.scorer.bias",
    "pooling.scorer.weight",
]
WORDS = ("cat", "dog", "horse", "boy", "girl", "doctor", "baker", "garden", "barn", "coat")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """A pretraining checkpoint, never trained; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    tokenizer = microworld_tokenizer(64)
    torch.manual_seed(0)
    config = ConceptEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_concepts=4,
        max_position_embeddings=64,
        decoder_num_hidden_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )
    ConceptEncoderForDiffusionMLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


@pytest.fixture
def protocol() -> Protocol:
    return PROTOCOLS["quick"].override(epochs=2, batch_size=32)


def pair_table(rows: int, seed: int, similarity: bool) -> Dataset:
    """Pairs of words: label 1 (or 5.0) when both are the same word."""
    rng = np.random.default_rng(seed)
    first = rng.choice(WORDS, rows)
    same = rng.random(rows) < 0.7
    second = np.where(same, first, rng.choice(WORDS, rows))
    labels = (first == second) * (5.0 if similarity else 1)
    return Dataset.from_dict({"sentence1": list(first), "sentence2": list(second), "label": labels.tolist()})


def small_task(name: str, tmp_path: Path):
    """The row of a GLUE pair task, on a table of our own."""
    folder = tmp_path / f"table-{name}"
    folder.mkdir()
    for split, rows in (("train", 96), ("validation", 40)):
        pair_table(rows, seed=rows, similarity=name == "stsb").to_parquet(folder / f"{split}.parquet")
    return dataclasses.replace(BENCHMARKS[name], dataset_id=str(folder), config=None)


@pytest.fixture
def small_tasks(tmp_path, monkeypatch):
    """MRPC and STS-B of the registry on small tables, for the command line."""
    for name in ("mrpc", "stsb"):
        monkeypatch.setitem(BENCHMARKS, name, small_task(name, tmp_path))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_reference_protocol_is_the_published_one():
    protocol = PROTOCOLS["reference"]
    assert (protocol.learning_rate, protocol.batch_size, protocol.seed) == (1e-5, 96, 42)
    tasks = ("mrpc", "stsb", "paws", "sick_relatedness", "sick_entailment")
    assert [protocol.epochs_for(task) for task in tasks] == [20, 20, 5, 10, 10]
    if not REFERENCE.is_file():
        pytest.skip("the record of the reference run is not here")
    published = json.loads(REFERENCE.read_text())["downstream"]
    for task in tasks:
        ours = {"epochs": protocol.epochs_for(task), "learning_rate": 1e-5, "batch_size": 96}
        assert {name: published[task][name] for name in ours} == ours


def test_overrides_become_part_of_the_name():
    protocol = PROTOCOLS["reference"].override(seed=1, learning_rate=3e-4)
    assert protocol.name == "reference+learning_rate=0.0003+seed=1"
    assert protocol.epochs_for("mrpc") == 20
    assert PROTOCOLS["reference"].override(epochs=2).epochs_for("mrpc") == 2
    assert PROTOCOLS["reference"].override() is PROTOCOLS["reference"]
    assert result_path("run", "mrpc", protocol).name == "mrpc.reference+learning_rate=0.0003+seed=1.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"warmup_steps": -0.1}, "warmup_steps must not be negative, got -0.1"),
        ({"lr_scheduler_type": "lineal"}, "lr_scheduler_type must be one of linear, .*, got 'lineal'"),
        ({"dropout": 0.1}, "Unknown protocol field 'dropout'. Available: learning_rate, batch_size"),
    ],
)
def test_bad_protocol(changes, message):
    with pytest.raises(ValueError, match=message):
        PROTOCOLS["quick"].override(**changes)


def test_unknown_protocol():
    with pytest.raises(ValueError, match=r"Unknown protocol 'tuend'\. Available: reference, quick"):
        find_protocol("tuend")


def test_only_the_head_is_new(pretrained):
    model, keys = load_classifier(pretrained, BENCHMARKS["sick_entailment"])
    assert isinstance(model, ConceptEncoderForSequenceClassificationPerceiver)
    assert keys["newly_initialized"] == HEAD_KEYS
    assert {key.split(".")[0] for key in keys["dropped"]} == {"decoder"}  # lm_head is tied and not in the file
    assert model.classifier.out_features == 3
    weights = load_file(pretrained / "model.safetensors")
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[f"encoder.{name}"])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_bare_encoder_is_a_checkpoint(pretrained, tmp_path):
    ConceptEncoderModel.from_pretrained(pretrained).save_pretrained(tmp_path / "bare")
    model, keys = load_classifier(tmp_path / "bare", BENCHMARKS["stsb"])
    assert keys == {"newly_initialized": HEAD_KEYS, "dropped": []}
    reference = ConceptEncoderModel.from_pretrained(pretrained).state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in model.encoder.state_dict().items())


def test_missing_encoder_weights_are_named(checkpoint):
    edit_weights(checkpoint, lambda weights: weights.pop("encoder.norm.weight"))
    with pytest.raises(ValueError, match=r"lacks weights of the encoder: encoder\.norm\.weight"):
        load_classifier(checkpoint, BENCHMARKS["mrpc"])


def test_unexpected_weights_are_named(checkpoint):
    edit_weights(checkpoint, lambda weights: weights.update({"loss_manager.scale": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"of neither encoder nor pretraining head: loss_manager\.scale"):
        load_classifier(checkpoint, BENCHMARKS["mrpc"])


def test_a_fine_tuned_checkpoint_is_refused(pretrained, tmp_path):
    model, _ = load_classifier(pretrained, BENCHMARKS["sick_entailment"])
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"already fine-tuned: it holds classifier\.bias, "):
        load_classifier(tmp_path / "tuned", BENCHMARKS["mrpc"])


def test_pairs_are_tokenised_as_pairs_and_truncated(pretrained, tmp_path, protocol, monkeypatch):
    """What the model is fed: [CLS] a [SEP] b [SEP], never longer than max_length."""
    seen = []
    forward = ConceptEncoderForSequenceClassificationPerceiver.forward

    def spy(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        seen.append(input_ids)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    monkeypatch.setattr(ConceptEncoderForSequenceClassificationPerceiver, "forward", spy)
    row = small_task("mrpc", tmp_path)
    finetune(str(pretrained), row, protocol, tmp_path / "long")
    tokenizer = microworld_tokenizer(64)
    first = tokenizer.decode(seen[0][0]).split()
    assert first[0] == "[CLS]"
    assert first[2] == first[4] == "[SEP]"
    assert {first[1], first[3]} <= set(WORDS)
    seen.clear()
    result = finetune(str(pretrained), row, protocol.override(max_length=4), tmp_path / "short")
    assert max(batch.shape[1] for batch in seen) == result["max_length"] == 4


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_result(task, checkpoint, tmp_path, protocol):
    row = small_task(task, tmp_path)
    before = files(checkpoint)
    result = finetune(str(checkpoint), row, protocol, checkpoint)
    path = checkpoint / "finetune" / f"{task}.quick+batch_size=32+epochs=2.json"
    assert files(checkpoint) - before == {"finetune", f"finetune/{path.name}"}  # no scratch, no model
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == json.loads(json.dumps(result))
    assert result["kind"] == "finetune"
    assert result["split"] == "validation"
    assert list(result["metrics"]) == list(result["chance"]) == list(row.metrics)
    assert result["primary_metric"] == row.metrics[0]
    assert result["chance_rule"] == row.chance_rule
    sizes = (result["train_examples"], result["validation_examples"], result["steps"], result["epochs"])
    assert sizes == (96, 40, 6, 2)
    assert result["max_length"] == 64  # the encoder's positions, fewer than the protocol's 128
    assert result["learning_rate"] == 1e-3
    assert result["head"] == row.head
    assert result["newly_initialized"] == HEAD_KEYS
    assert any("loss" in entry for entry in result["log_history"])
    if task == "mrpc":
        labels = pair_table(40, seed=40, similarity=False)["label"][:]
        assert result["chance"]["accuracy"] == max(np.mean(labels), 1 - np.mean(labels))


def test_metrics_are_those_of_the_saved_model(checkpoint, tmp_path, protocol):
    """The kept model, loaded anew, predicts what was scored."""
    row = small_task("mrpc", tmp_path)
    result = finetune(str(checkpoint), row, protocol, checkpoint, save_model=True)
    folder = checkpoint / "finetune" / "mrpc.quick+batch_size=32+epochs=2"
    model = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(folder).eval()
    table = pair_table(40, seed=40, similarity=False)
    tokenizer = microworld_tokenizer(64)
    batch = tokenizer(table["sentence1"][:], table["sentence2"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        predictions = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1).numpy()
    assert result["metrics"]["accuracy"] == np.mean(predictions == np.asarray(table["label"]))
    assert (folder / "tokenizer.json").is_file()
    assert not list((checkpoint / "finetune").glob(".*"))


def test_same_seed_same_result(pretrained, tmp_path, protocol):
    row = small_task("stsb", tmp_path)
    runs = [finetune(str(pretrained), row, protocol, tmp_path / name) for name in ("a", "b")]
    other = finetune(str(pretrained), row, protocol.override(seed=7), tmp_path / "c")
    losses = [[entry["loss"] for entry in run["log_history"] if "loss" in entry] for run in (*runs, other)]
    assert losses[0] == losses[1] != losses[2]
    assert runs[0]["metrics"] == runs[1]["metrics"]


def test_training_lowers_the_loss(pretrained, tmp_path):
    row = small_task("stsb", tmp_path)
    protocol = PROTOCOLS["quick"].override(epochs=30, batch_size=16, learning_rate=3e-3)
    result = finetune(str(pretrained), row, protocol, tmp_path / "run")
    losses = [entry["loss"] for entry in result["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0] / 2


def test_divergence_is_an_error_and_leaves_nothing(checkpoint, tmp_path):
    before = files(checkpoint)
    protocol = PROTOCOLS["quick"].override(learning_rate=1e30, epochs=1)
    with pytest.raises(ValueError, match="Training on mrpc diverged: predictions are not finite; lower learning_rate"):
        finetune(str(checkpoint), small_task("mrpc", tmp_path), protocol, checkpoint)
    assert files(checkpoint) == before


def test_several_devices_are_refused(pretrained, tmp_path, protocol, monkeypatch):
    monkeypatch.setattr(finetuning.TrainingArguments, "train_batch_size", property(lambda self: 64))
    with pytest.raises(ValueError, match=r"Fine-tuning uses one device.* batch_size \(32\); set CUDA_VISIBLE_DEVICES"):
        finetune(str(pretrained), small_task("mrpc", tmp_path), protocol, tmp_path / "run")


def test_command_line(checkpoint, small_tasks, capsys):
    arguments = [str(checkpoint), "--tasks", "mrpc", "stsb", "--protocol", "quick"]
    main([*arguments, "--epochs", "1", "--learning_rate", "0.002"])
    printed = capsys.readouterr().out
    assert "[2/2] stsb, protocol quick+learning_rate=0.002+epochs=1" in printed
    for line in ("mrpc  f1 ", "mrpc  accuracy ", "stsb  pearson ", "stsb  spearman "):
        assert f"\n{line}" in printed
    assert "all positive" in printed
    assert printed.rstrip().endswith(f"Next: python scripts/report.py {checkpoint}")
    written = checkpoint / "finetune" / "stsb.quick+learning_rate=0.002+epochs=1.json"
    result = json.loads(written.read_text())
    assert (result["learning_rate"], result["epochs"]) == (0.002, 1)

    written.write_text("{}")
    fails([*arguments, "--epochs", "1", "--learning_rate", "0.002"], r"mrpc\.quick.*exists; give --overwrite", capsys)
    main([*arguments, "--epochs", "1", "--learning_rate", "0.002", "--overwrite"])
    assert json.loads(written.read_text())["metrics"] == result["metrics"]


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
        (lambda folder: (folder / "model.safetensors").unlink(), r"it has no \.safetensors weights"),
        (lambda folder: [p.unlink() for p in folder.glob("tokenizer*")], "has no tokenizer; save the one it was"),
        (without_pad_token, "has no padding token; set pad_token"),
        (lambda folder: shutil.rmtree(folder), "No checkpoint folder|is no folder to write results to"),
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
    arguments = [str(checkpoint), "--tasks", "mrpc", "--protocol", "quick", "--learning_rate", "-1"]
    fails(arguments, "learning_rate must be positive, got -1.0", capsys)
    assert files(checkpoint) == before


@pytest.mark.hub
def test_from_the_hub(hub, pretrained, tmp_path, small_tasks, capsys):
    HfApi().create_repo("me/pretrained", exist_ok=True)
    HfApi().upload_folder(folder_path=pretrained, repo_id="me/pretrained")
    arguments = ["me/pretrained", "--tasks", "mrpc", "--protocol", "quick", "--epochs", "1"]
    fails(arguments, "me/pretrained is no folder to write results to; give --output_dir", capsys)
    main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert files(tmp_path / "out") == {"finetune", "finetune/mrpc.quick+epochs=1.json"}
