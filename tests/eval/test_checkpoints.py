"""Loading of pretrained checkpoints for the evaluations, and their random twin."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from small_tasks import files

from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.eval.benchmarks.bert_twin import BertTwinConfig, BertTwinModel
from concept_encoder.eval.loading.checkpoints import FAMILIES, Checkpoint, load, random_twin, results_folder
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
)

PERCEIVER = ConceptEncoderForSequenceClassificationPerceiver.__name__
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
    model, keys = load(pretrained).load_classifier(PERCEIVER, num_labels=3)
    assert isinstance(model, ConceptEncoderForSequenceClassificationPerceiver)
    assert keys["newly_initialized"] == HEAD_KEYS
    assert {key.split(".")[0] for key in keys["dropped"]} == {"decoder"}  # lm_head is tied and not in the file
    assert model.classifier.out_features == 3
    weights = load_file(pretrained / "model.safetensors")
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[f"encoder.{name}"])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.slow
def test_a_bare_encoder_is_a_checkpoint(pretrained, tmp_path):
    ConceptEncoderModel.from_pretrained(pretrained).save_pretrained(tmp_path / "bare")
    model, keys = load(tmp_path / "bare").load_classifier(PERCEIVER, num_labels=1)
    assert keys == {"newly_initialized": HEAD_KEYS, "dropped": []}
    reference = ConceptEncoderModel.from_pretrained(pretrained).state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in model.encoder.state_dict().items())
    for folder in (pretrained, tmp_path / "bare"):
        encoder = load(folder).encoder
        assert not encoder.training
        assert all(torch.equal(tensor, reference[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda weights: weights.pop("encoder.norm.weight"),
            "lacks weights of its .*DiffusionMLM: encoder.norm.weight;",
        ),
        (
            lambda weights: weights.pop("decoder.norm.weight"),
            "lacks weights of its .*: decoder.norm.weight; they would",
        ),
        (
            lambda weights: weights.update({"loss_manager.scale": torch.ones(1)}),
            "holds weights of no part of its ConceptEncoderForDiffusionMLM: loss_manager.scale$",
        ),
        (
            lambda weights: weights.update({"encoder.norm.weight": torch.ones(31)}),
            r"has other shapes than its config.json says: encoder.norm.weight is \[31\], not \[32\]",
        ),
        (
            lambda weights: weights.update({"encoder.norm.weight": torch.ones(32, dtype=torch.complex64)}),
            "holds weights that are not real numbers: encoder.norm.weight is C64",
        ),
        (
            lambda weights: weights.update({"encoder.norm.weight": torch.ones(32, dtype=torch.int64)}),
            "holds weights that are not real numbers: encoder.norm.weight is I64",
        ),
        (
            lambda weights: weights.update({"encoder.norm.weight": torch.ones(32, dtype=torch.bool)}),
            "holds weights that are not real numbers: encoder.norm.weight is BOOL",
        ),
        (
            lambda weights: weights["encoder.norm.weight"].fill_(float("nan")),
            "holds weights that are not finite: encoder.norm.weight; take another",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_named(checkpoint, edit, message):
    edit_weights(checkpoint, edit)
    opened = load(checkpoint)
    for use in (lambda: opened.model, lambda: opened.load_classifier(PERCEIVER), lambda: opened.encode(["cat"])):
        with pytest.raises(ValueError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


def test_a_file_that_is_cut_off_or_a_class_that_nobody_knows(checkpoint, pretrained):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": ["ConceptEncoderForX"]}))
    with pytest.raises(
        ValueError, match=r"architectures must name one of ConceptEncoderModel, .*, got 'ConceptEncoderForX'"
    ):
        _ = load(checkpoint).model
    (checkpoint / "config.json").write_text(json.dumps(config))
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is broken: .*; fetch or save it again"):
        load(checkpoint).encode(["cat"])


def test_names_that_are_no_checkpoint(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint folder nowhere"):
        load("nowhere")
    with pytest.raises(FileNotFoundError, match=r"No checkpoint folder .*/me"):
        load(tmp_path / "me")
    with pytest.raises(ValueError, match="is a folder, which has no revision 'main'; leave the revision out"):
        load(checkpoint, "main")
    BertTwinModel(BertTwinConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)).save_pretrained(
        tmp_path / "twin"
    )
    with pytest.raises(ValueError, match="holds a model of type 'bert_twin'; only type 'concept_encoder' can be read"):
        load(tmp_path / "twin")
    assert Checkpoint.open(tmp_path / "twin", families=FAMILIES).encoder.config.num_concepts == 1


def test_what_is_opened_is_read_once(checkpoint):
    opened = load(checkpoint)
    assert Checkpoint.open(opened) is opened
    assert os.fspath(opened) == str(checkpoint) and opened.name == "run" and repr(opened) == "Checkpoint('run')"
    digest, model, concepts = opened.digest, opened.model, opened.concepts(["cat"])
    (checkpoint / "model.safetensors").unlink()
    assert opened.digest == digest and opened.model is model
    np.testing.assert_array_equal(opened.concepts(["cat"]), concepts)


def test_embeddings_are_unit_mean_concepts_in_the_order_of_the_texts(pretrained):
    opened, texts = load(pretrained), ["the cat sleeps in the barn .", "cat", "the cat"]
    encoder = ConceptEncoderModel.from_pretrained(pretrained).eval()
    with torch.no_grad():
        alone = torch.cat([encoder(**opened.tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts])
    concepts = opened.concepts(texts, batch_size=2)
    assert concepts.shape == (3, 4, 32) and concepts.dtype == np.float32
    np.testing.assert_allclose(concepts, alone, atol=1e-5)
    vectors = opened.encode(texts, batch_size=2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(alone.mean(1), dim=-1), atol=1e-5)
    np.testing.assert_allclose(opened.encode(texts, normalize=False), alone.mean(1), atol=1e-5)
    assert opened.encode([]).shape == (0, 32) and opened.concepts([]).shape == (0, 4, 32)


def test_texts_beyond_the_positions_are_cut(pretrained):
    opened = load(pretrained)
    long = "cat " * 500
    np.testing.assert_array_equal(opened.encode([long]), opened.encode(["cat " * 62]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("cat", "texts must be a list of strings, got 'cat'; one text is a list of one"),
        (["cat", None], "texts must be a list of strings, got NoneType at 1"),
        (["cat", "\ud800"], "text 1 is no Unicode: it holds half of a surrogate pair"),
    ],
)
def test_what_cannot_be_encoded(pretrained, texts, message):
    with pytest.raises(ValueError, match=message):
        load(pretrained).encode(texts)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        load(pretrained).encode(["cat"], batch_size=0)


@pytest.mark.slow
@pytest.mark.hub
@pytest.mark.parametrize("shards", [False, True])
def test_a_hub_id_is_like_the_folder_whose_weights_lie_in_several_files(hub, checkpoint, shards):
    if shards:
        model = ConceptEncoderForDiffusionMLM.from_pretrained(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size="20KB")
        assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    api = HfApi()
    repo = api.create_repo(f"me/checkpoint-{shards}", exist_ok=True).repo_id
    first = api.upload_folder(repo_id=repo, folder_path=checkpoint).oid
    opened = load(repo)
    assert opened.name == repo
    np.testing.assert_array_equal(opened.encode(["cat"]), load(checkpoint).encode(["cat"]))
    assert opened.digest == load(checkpoint).digest
    assert load(opened.folder).digest == opened.digest  # the folder of the cache itself
    if not shards:
        edit_weights(checkpoint, lambda weights: weights["encoder.norm.weight"].add_(1))
        api.upload_folder(repo_id=repo, folder_path=checkpoint)
        assert load(repo).digest != opened.digest
    assert load(repo, revision=first).digest == opened.digest


def test_a_fine_tuned_checkpoint_is_refused(pretrained, tmp_path):
    model, _ = load(pretrained).load_classifier(PERCEIVER, num_labels=3)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"already fine-tuned: it holds classifier\.bias, "):
        load(tmp_path / "tuned").load_classifier(PERCEIVER)


@pytest.mark.slow
def test_twin_has_the_architecture_and_none_of_the_weights(checkpoint):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    twin = random_twin(load(checkpoint), checkpoint).folder
    assert torch.equal(torch.random.get_rng_state(), before)
    assert twin == checkpoint / "random_init"
    own, other = (ConceptEncoderConfig.from_pretrained(folder).to_dict() for folder in (checkpoint, twin))
    for name in ("architectures", "auto_map", "transformers_version"):
        own.pop(name), other.pop(name)
    assert own == other
    trained, random = (load(folder).encoder.state_dict() for folder in (checkpoint, twin))
    assert trained.keys() == random.keys()
    for name, tensor in trained.items():
        assert tensor.shape == random[name].shape
        constant = bool((tensor == tensor.flatten()[0]).all())  # norms and biases start at 1 and 0
        assert constant or not torch.isclose(tensor, random[name]).all()
    assert load(twin).digest != load(checkpoint).digest


def test_twin_is_made_once_and_always_the_same(checkpoint, tmp_path):
    twin = random_twin(load(checkpoint), tmp_path / "a").folder
    stamp = (twin / "model.safetensors").stat().st_mtime_ns
    assert random_twin(load(checkpoint), tmp_path / "a").folder == twin
    assert (twin / "model.safetensors").stat().st_mtime_ns == stamp
    assert random_twin(load(checkpoint), tmp_path / "b").digest == load(twin).digest
    assert not [name for name in files(tmp_path / "a") if name.startswith(".")]


def test_twin_of_another_architecture(checkpoint, tmp_path):
    twin = random_twin(load(checkpoint), tmp_path).folder
    config = ConceptEncoderConfig.from_pretrained(twin)
    config.num_concepts = 8
    config.save_pretrained(twin)
    with pytest.raises(ValueError, match=r"is the twin of another architecture \(num_concepts\); remove it"):
        random_twin(load(checkpoint), tmp_path)


def test_a_run_folder_that_is_not_there_is_named_before_results_are_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint folder '.*nope'; give the folder of a run"):
        results_folder(str(tmp_path / "nope"), None)
