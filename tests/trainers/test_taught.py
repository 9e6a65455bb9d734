"""The warm start `taught`: the teacher's vectors of word pieces, by clusters; the same again; what it refuses."""

import hashlib

import numpy as np
import pytest
import torch

from concept_encoder import ConceptEncoderModel
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.weights.taught import taught

TEXTS = ["the cat sleeps .", "the dog sleeps .", "the cat sees the dog .", "the bird sings ."] * 3
WIDTH = 6


def teacher(texts):
    """Of a text always the same: noise that its letters decide."""
    seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds])


@pytest.fixture(scope="module")
def tokenizer():
    return microworld_tokenizer()


def made(tokenizer, **fields):
    return taught(tokenizer, **{"texts": TEXTS, "teacher": teacher, "num_concepts": 3, "size": 4, **SIZES, **fields})


SIZES = {"hidden_size": WIDTH}


def test_word_pieces_have_the_vectors_of_the_teacher_and_special_tokens_none(tokenizer):
    table = made(tokenizer).embeddings.tokens.weight.detach().double().numpy()
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vectors = teacher([piece.removeprefix("##") for piece in pieces])
    vectors -= vectors.mean(0)
    vectors[tokenizer.all_special_ids] = 0
    products, expected = table @ table.T, vectors @ vectors.T  # what a rotation leaves as it is
    assert np.allclose(products / np.trace(products), expected / np.trace(expected), atol=1e-6)
    assert not table[tokenizer.all_special_ids].any()


def test_a_word_goes_to_the_slot_of_its_cluster_and_weighs_more_if_it_is_rare(tokenizer):
    model = made(tokenizer)
    table, centres = model.embeddings.tokens.weight.detach(), model.latents.weight.detach()
    assert torch.allclose(centres.norm(dim=1), torch.tensor(10.0))
    for word in ("cat", "bird", "sings"):
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            slots = model(torch.tensor([[token]])).last_hidden_state[0].norm(dim=1)
        assert slots.argmax() == (centres @ table[token]).argmax()
    weights = 1 + model.slots.scorer(table).flatten()
    (the,), (bird,) = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("the", "bird"))
    assert weights[the] < weights[bird]


def test_the_same_seed_gives_the_same_model_which_loads(tokenizer, tmp_path):
    one, again, other = (made(tokenizer, seed=seed) for seed in (1, 1, 2))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(one.pool.projection.weight, other.pool.projection.weight)
    one.save_pretrained(tmp_path)
    loaded = ConceptEncoderModel.from_pretrained(tmp_path)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).pooler_output, one(**batch).pooler_output)
    assert loaded.config.projection_dim == 12 and not loaded.training


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": []}, "word pieces get their weights from texts, and there was no text with any"),
        ({"hidden_size": 8}, r"hidden_size=8 is more than \(\d+, 6\), the teacher's vectors, can give"),
        ({"teacher": lambda texts: np.zeros((3, 6))}, r"must give a finite row for each of \d+ texts, got \(3, 6\)"),
        ({"teacher": lambda texts: teacher(texts) * np.nan}, "must give a finite row for each of"),
    ],
)
def test_what_teaches_nothing_is_named(tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        made(tokenizer, **fields)
