"""Export: the graphs compute what the model computes, at any batch size and length, or are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import randomised, tiny_config
from transformers.exporters import ExportedModel

from concept_encoder import (
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)
from concept_encoder.eval.hub import export as module
from concept_encoder.eval.hub.export import (
    CHECK_FILE,
    CHECKED_SHAPES,
    TOLERANCE,
    compare,
    export,
    random_texts,
)
from concept_encoder.scripts.export import main

OTHER = {"token_update": "bixt", "concept_attention": "slot", "position_embedding_type": "sinusoidal"}


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    """Function: save a head of a tiny configuration with a tokenizer, return model and folder."""

    def save(head, **config):
        folder = tmp_path / head.__name__
        model = randomised(head(tiny_config(**{"vocab_size": len(tokenizer), **config})))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model, folder

    return save


def batches(model):
    """Shapes that the export itself did not compare, with padding on both sides, one text without any token."""
    for seed, (rows, columns) in enumerate([(1, 2), (4, 1), (7, 40), (2, 17)]):
        batch = random_texts(model.config, rows, columns, seed=100 + seed)
        if rows == 7:
            batch["attention_mask"][3] = 0
        with torch.no_grad():
            yield batch, model(**batch)


def test_random_texts_are_padded_on_both_sides(tokenizer):
    batch = random_texts(tiny_config(), 3, 7)
    assert batch["input_ids"].shape == (3, 7)
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1, 1, 1], [1] * 7, [1, 1, 1, 1, 0, 0, 0]]
    assert random_texts(tiny_config(), 2, 1)["attention_mask"].all()


def test_compare_gives_the_largest_difference_and_refuses_more_than_the_tolerance():
    model = randomised(ConceptEncoderForSequenceClassificationPerceiver(tiny_config(num_labels=2)))

    def off_by(error):
        def exported(**batch):
            logits = model(**batch).logits
            logits[-1, 0] += error * logits.abs().max().clamp_min(1)
            return {"logits": logits}

        return exported

    check = compare(model, off_by(0.5 * TOLERANCE))
    assert 0.2 * TOLERANCE < check["largest_difference"] < TOLERANCE
    assert check["shapes"] == [(rows, min(columns, 40)) for rows, columns in CHECKED_SHAPES]
    for error in (2 * TOLERANCE, float("nan")):
        with pytest.raises(ValueError, match=r"differs from the model by .* in logits at 1 texts of 1 tokens"):
            compare(model, off_by(error))


def test_compare_keeps_to_the_longest_text():
    model = randomised(ConceptEncoderModel(tiny_config(max_position_embeddings=8)))
    assert max(columns for _, columns in compare(model, model)["shapes"]) == 8


def test_a_refused_export_leaves_nothing_behind(checkpoint, tmp_path, monkeypatch):
    _, folder = checkpoint(ConceptEncoderModel)
    before = set(tmp_path.rglob("*"))

    class Wrong:
        def export(self, model, sample, config):
            return self

        def save_pretrained(self, target):
            (target / "model.pt2").write_text("")

        def __call__(self, **batch):
            return {"last_hidden_state": torch.zeros(1), "pooler_output": torch.zeros(1)}

    monkeypatch.setitem(module.EXPORTERS, "pt2", (Wrong, dict))
    monkeypatch.setattr(module.ExportedModel, "from_pretrained", lambda folder: Wrong())
    with pytest.raises(ValueError, match="Nothing was written"):
        export(str(folder), tmp_path / "out", "pt2")
    assert set(tmp_path.rglob("*")) == before


def drop_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["latents.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


@pytest.mark.parametrize(
    ("head", "spoil", "message"),
    [
        (ConceptEncoderModel, drop_weight, "lacks weights of its ConceptEncoderModel: latents.weight"),
        (ConceptEncoderModel, other_model, "holds a model of type 'bert'; only type 'concept_encoder'"),
        (ConceptEncoderModel, lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (ConceptEncoderModel, lambda folder: [p.unlink() for p in folder.glob("tok*")], "has no tokenizer"),
        (ConceptEncoderForSentencePairClassification, lambda folder: None, "compares two texts"),
    ],
)
def test_unusable_checkpoints_are_named_in_one_line(checkpoint, tmp_path, capsys, head, spoil, message):
    _, folder = checkpoint(head)
    spoil(folder)
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), "--output_dir", str(tmp_path / "out"), "--format", "pt2"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_unusable_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Unknown format 'tf'. Available: onnx, pt2"):
        export("x", tmp_path / "out", "tf")
    with pytest.raises(FileExistsError, match="exists; name a new folder"):
        export("x", tmp_path, "pt2")
    with pytest.raises(FileNotFoundError, match="No checkpoint folder"):
        export(str(tmp_path / "nothing"), tmp_path / "out", "pt2")
    monkeypatch.setattr("concept_encoder.eval.hub.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ONNX needs onnx, onnxscript, onnxruntime: pip install .*\[onnx\]"):
        export("x", tmp_path / "out", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "config"),
    [
        (ConceptEncoderModel, {}),
        (ConceptEncoderForSequenceClassificationPerceiver, {"num_labels": 3, **OTHER}),
        (ConceptEncoderForSequenceClassificationViaDecoder, {"num_labels": 3}),
    ],
)
def test_onnx_runtime_agrees_with_the_model(checkpoint, tmp_path, capsys, head, config):
    import onnxruntime

    model, folder = checkpoint(head, **config)
    out = tmp_path / "out"
    main([str(folder), "--output_dir", str(out), "--format", "onnx"])
    assert f"{head.__name__} written to {out}" in capsys.readouterr().err
    assert json.loads((out / CHECK_FILE).read_text())["largest_difference"] <= TOLERANCE
    assert (out / "tokenizer.json").is_file()
    shutil.rmtree(folder)  # the export stands alone
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch, expected in batches(model):
        given = session.run(None, {name: value.numpy() for name, value in batch.items()})
        assert names == list(expected)
        for name, value in zip(names, given, strict=True):
            np.testing.assert_allclose(value, expected[name], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "config"),
    [(ConceptEncoderModel, OTHER), (ConceptEncoderForSequenceClassificationPerceiver, {"num_labels": 3})],
)
def test_torch_export_agrees_with_the_model(checkpoint, tmp_path, head, config):
    model, folder = checkpoint(head, **config)
    main([str(folder), "--output_dir", str(tmp_path / "out"), "--format", "pt2"])
    exported = ExportedModel.from_pretrained(tmp_path / "out")
    for batch, expected in batches(model):
        given = exported(**batch)
        for name, value in expected.items():
            torch.testing.assert_close(given[name], value, rtol=TOLERANCE, atol=TOLERANCE)
