"""Loading of pretrained checkpoints for the evaluations, and their random twin."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_tasks import files

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval.benchmarks.registry import BENCHMARKS
from concept_encoder.eval.loading.checkpoints import load_classifier, load_encoder, random_twin, weights_digest
from concept_encoder.modeling_concept import ConceptEncoderForSequenceClassificationPerceiver, ConceptEncoderModel

HEAD_KEYS = [
    "classifier.bias",
    "classifier.weight",
    "pooling.norm.bias",
    "pooling.norm.weight",
    "pooling.scorer.bias",
    "pooling.scorer.weight",
]


@pytest.fixture
def checkpoint(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_only_the_head_is_new(pretrained):
    model, keys = load_classifier(pretrained, BENCHMARKS["sick_entailment"].head, BENCHMARKS["sick_entailment"])
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
    model, keys = load_classifier(tmp_path / "bare", BENCHMARKS["stsb"].head, BENCHMARKS["stsb"])
    assert keys == {"newly_initialized": HEAD_KEYS, "dropped": []}
    reference = ConceptEncoderModel.from_pretrained(pretrained).state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in model.encoder.state_dict().items())
    for folder in (pretrained, tmp_path / "bare"):
        encoder = load_encoder(folder)
        assert not encoder.training
        assert all(torch.equal(tensor, reference[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    "load", [load_encoder, lambda folder: load_classifier(folder, BENCHMARKS["mrpc"].head, BENCHMARKS["mrpc"])]
)
def test_weights_that_do_not_fit_are_named(load, checkpoint):
    edit_weights(checkpoint, lambda weights: weights.update({"loss_manager.scale": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"of neither encoder nor pretraining head: loss_manager\.scale"):
        load(checkpoint)
    edit_weights(checkpoint, lambda weights: weights.pop("encoder.norm.weight"))
    with pytest.raises(ValueError, match=r"lacks weights of the encoder: (encoder\.)?norm\.weight"):
        load(checkpoint)


def test_a_fine_tuned_checkpoint_is_refused(pretrained, tmp_path):
    model, _ = load_classifier(pretrained, BENCHMARKS["sick_entailment"].head, BENCHMARKS["sick_entailment"])
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"already fine-tuned: it holds classifier\.bias, "):
        load_classifier(tmp_path / "tuned", BENCHMARKS["mrpc"].head, BENCHMARKS["mrpc"])


def test_twin_has_the_architecture_and_none_of_the_weights(checkpoint):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    twin = random_twin(checkpoint, checkpoint)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert twin == checkpoint / "random_init"
    own, other = (ConceptEncoderConfig.from_pretrained(folder).to_dict() for folder in (checkpoint, twin))
    for name in ("architectures", "transformers_version"):
        own.pop(name), other.pop(name)
    assert own == other
    trained, random = (load_encoder(folder).state_dict() for folder in (checkpoint, twin))
    assert trained.keys() == random.keys()
    for name, tensor in trained.items():
        assert tensor.shape == random[name].shape
        constant = bool((tensor == tensor.flatten()[0]).all())  # norms and biases start at 1 and 0
        assert constant or not torch.isclose(tensor, random[name]).all()
    assert weights_digest(twin) != weights_digest(checkpoint)


def test_twin_is_made_once_and_always_the_same(checkpoint, tmp_path):
    twin = random_twin(checkpoint, tmp_path / "a")
    stamp = (twin / "model.safetensors").stat().st_mtime_ns
    assert random_twin(checkpoint, tmp_path / "a") == twin
    assert (twin / "model.safetensors").stat().st_mtime_ns == stamp
    assert weights_digest(random_twin(checkpoint, tmp_path / "b")) == weights_digest(twin)
    assert not [name for name in files(tmp_path / "a") if name.startswith(".")]


def test_twin_of_another_architecture(checkpoint, tmp_path):
    twin = random_twin(checkpoint, tmp_path)
    config = ConceptEncoderConfig.from_pretrained(twin)
    config.num_concepts = 8
    config.save_pretrained(twin)
    with pytest.raises(ValueError, match=r"is the twin of another architecture \(num_concepts\); remove it"):
        random_twin(checkpoint, tmp_path)
