"""The whitening head: what is fitted, what is saved, what stays as it was, what is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_examples, randomised, run_without_package, tiny_config
from killing import killed_at, visible
from transformers import PreTrainedTokenizerBase

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.configuration_concept import AUTO_MAP
from concept_encoder.eval.concepts.whitening import mean_concepts, whiten, whitening
from concept_encoder.eval.loading.checkpoints import load
from concept_encoder.scripts.whiten import main
from concept_encoder.trainers.data.corpora import DataArguments

TEXTS = 150
LOAD = """
import json, sys
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
pooled = model(torch.tensor(json.loads(sys.argv[2]))).pooler_output
assert torch.allclose(pooled, torch.tensor(json.loads(sys.argv[3])), atol=1e-3), pooled
"""
ENCODE = """
import json, sys
sys.modules["concept_encoder"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("white", trust_remote_code=True)
texts = json.load(open("texts.json"))
vectors = model.encode(texts, batch_size=8)
alone = np.stack([model.encode(text) for text in texts])
np.testing.assert_allclose(alone, vectors, atol=1e-5)
concepts = model.encode(texts, output_value="token_embeddings")
means = np.stack([np.asarray(each).mean(0) for each in concepts])
np.testing.assert_allclose(means / np.linalg.norm(means, axis=1, keepdims=True), vectors, atol=1e-5)
model.save_pretrained("again")
again = SentenceTransformer("again", trust_remote_code=True)
np.testing.assert_array_equal(again.encode(texts, batch_size=8), vectors)
np.save("vectors.npy", vectors)
"""


def test_whitening():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 3
    mean, matrix = whitening(vectors)
    assert np.cov((vectors - mean) @ matrix, rowvar=False) == pytest.approx(np.eye(6), abs=1e-8)
    flat = np.hstack([vectors, vectors.sum(1, keepdims=True)])  # a seventh direction without variance of its own
    mean, matrix = whitening(flat)
    assert matrix.shape == (7, 6)
    assert np.cov((flat - mean) @ matrix, rowvar=False) == pytest.approx(np.eye(6), abs=1e-6)


@pytest.fixture
def checkpoint(tmp_path, tokenizer) -> Path:
    config = tiny_config(vocab_size=len(tokenizer), mask_token_id=4)
    model = randomised(ConceptEncoderForDiffusionMLM(config))
    torch.nn.init.ones_(model.encoder.norm.weight)
    torch.nn.init.zeros_(model.encoder.norm.bias)  # one direction of the concepts is empty, as after training
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data(tmp_path, tokenizer) -> DataArguments:
    texts = [tokenizer.decode(row["input_ids"][1:-1]) for row in random_examples(tokenizer, rows=TEXTS, longest=30)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return DataArguments(str(path), validation_size=0.01, packing="truncated", max_length=40)


def texts_of(data: DataArguments) -> list[str]:
    return [json.loads(line)["text"] for line in Path(data.dataset_name).read_text().splitlines()]


@pytest.mark.slow
def test_the_pooled_output_is_white_and_the_concepts_are_the_same(checkpoint, data, tokenizer, tmp_path):
    fitted = whiten(str(checkpoint), tmp_path / "white", data)
    assert fitted["rank"] == 31 and TEXTS - 10 < fitted["texts"] <= TEXTS
    before, after = load(checkpoint).encoder, load(tmp_path / "white").encoder
    batch = tokenizer(texts_of(data)[:40], padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        old, new = before(**batch), after(**batch)
    assert torch.equal(old.last_hidden_state, new.last_hidden_state)
    assert (new.pooler_output[:, 31:].abs() < 1e-5).all()
    means = mean_concepts(before, tokenizer, texts_of(data), 40)
    weight, bias = (p.double().numpy() for p in (after.whitening.weight, after.whitening.bias))
    white = means @ weight.T + bias
    # A text or two of the validation part are among these.
    assert np.cov(white[:, :31], rowvar=False) == pytest.approx(np.eye(31), abs=0.2)
    assert np.abs(np.cov(means[:, :31], rowvar=False) - np.eye(31)).max() > 0.5


@pytest.mark.slow
def test_it_is_a_checkpoint_like_any_other(checkpoint, data, tokenizer, tmp_path):
    whiten(str(checkpoint), tmp_path / "white", data)
    head, info = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "white", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not list(head.encoder.whitening.parameters())
    ids = [[2, 9, 8, 7, 3]]
    pooled = head.encoder(torch.tensor(ids)).pooler_output.tolist()
    run_without_package(LOAD, tmp_path, str(tmp_path / "white"), json.dumps(ids), json.dumps(pooled))
    assert json.loads((tmp_path / "white" / "config.json").read_text())["auto_map"] == AUTO_MAP | {
        "AutoModelForMaskedLM": "modeling_concept.ConceptEncoderForDiffusionMLM"
    }
    assert (tmp_path / "white" / "modules.json").is_file()


def test_until_it_is_fitted_it_is_the_identity():
    plain, white = (ConceptEncoderModel(tiny_config(pooler_whitening=flag)).eval() for flag in (False, True))
    white.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.tensor([[2, 9, 8, 7, 3]])
    torch.testing.assert_close(white(ids).pooler_output, plain(ids).pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), [(PreTrainedTokenizerBase, "save_pretrained"), (os, "replace")])
def test_killed_while_it_writes_the_same_call_can_be_made_again(checkpoint, data, tmp_path, owner, name):
    before = visible(tmp_path)
    assert killed_at(lambda: whiten(str(checkpoint), tmp_path / "white", data), owner, name)
    assert visible(tmp_path) == before
    assert whiten(str(checkpoint), tmp_path / "white", data)["rank"] == 31
    assert {"model.safetensors", "tokenizer.json", "modules.json"} <= visible(tmp_path / "white")


@pytest.mark.slow
def test_texts_that_are_all_alike_are_refused(checkpoint, tmp_path):
    (tmp_path / "alike.jsonl").write_text('{"text": "a cat"}\n' * 60)
    data = DataArguments(str(tmp_path / "alike.jsonl"), validation_size=0.01, packing="truncated", max_length=40)
    with pytest.raises(ValueError, match="the 60 texts are all alike to the encoder: there is nothing to whiten by"):
        whiten(str(checkpoint), tmp_path / "white", data)
    assert not (tmp_path / "white").exists()


@pytest.mark.slow
def test_what_is_refused(checkpoint, data, tmp_path, capsys):
    corpus = ["--dataset_name", data.dataset_name, "--validation_size", "0.01", "--tokenizer_name", "unused"]
    main([str(checkpoint), "--output_dir", str(tmp_path / "white"), *corpus])
    assert "31 directions vary" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        whiten(str(checkpoint), tmp_path / "white", data)
    with pytest.raises(ValueError, match="is already whitened; give the checkpoint it was made from"):
        whiten(str(tmp_path / "white"), tmp_path / "twice", data)
    config = json.loads((checkpoint / "config.json").read_text())
    torn = shutil.copytree(checkpoint, tmp_path / "torn")
    (torn / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1 + config["num_hidden_layers"]}))
    with pytest.raises(ValueError, match=r"lacks weights of its .*: encoder\.layers\..*; they would be random"):
        whiten(str(torn), tmp_path / "other", data)
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "no"), "--output_dir", str(tmp_path / "other")])
    assert "No checkpoint folder" in capsys.readouterr().err


@pytest.mark.slow
def test_sentence_transformers_gives_the_white_vectors(checkpoint, data, tmp_path):
    pytest.importorskip("sentence_transformers")
    whiten(str(checkpoint), tmp_path / "white", data)
    texts = [text[:length] for text in texts_of(data)[:12] for length in (4, 12, 999)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    run_without_package(ENCODE, tmp_path)
    vectors = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(vectors, load(tmp_path / "white").encode(texts), atol=1e-5)
    assert abs(vectors - load(checkpoint).encode(texts)).max() > 0.1
