"""The warm start `sketch`: codes equal to sums written down word by word, the same again, and training from it."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from concept_encoder import ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.weights.sketch import inverse_document_frequency, sketch

TEXTS = ["the cat sleeps .", "the dog sleeps .", "the cat sees the dog .", "the bird sings ."] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return microworld_tokenizer()


def codes(model, tokenizer, texts):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"]).pooler_output.double().numpy()


def test_codes_are_sums_written_down_word_by_word(tokenizer):
    model = sketch(tokenizer, TEXTS, num_concepts=5, size=7, seed=3)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    idf = inverse_document_frequency(ids, len(tokenizer))
    random = np.random.RandomState(3)
    slots, values = random.randint(0, 5, len(tokenizer)), random.randn(len(tokenizer), 7)
    texts = ["the cat the cat .", "a bird .", "dog"]
    for text, got in zip(texts, codes(model, tokenizer, texts), strict=True):
        expected = np.zeros((5, 7))
        for token, count in Counter(tokenizer(text, add_special_tokens=False)["input_ids"]).items():
            expected[slots[token]] += idf[token] * math.log(1 + count) * values[token]
        cosine = got @ expected.ravel() / np.linalg.norm(got) / np.linalg.norm(expected)
        assert cosine == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_model_and_a_text_of_nothing_is_zero(tokenizer, tmp_path):
    one, again = (sketch(tokenizer, TEXTS, 5, 7, seed=1) for _ in range(2))
    other = sketch(tokenizer, TEXTS, 5, 7, seed=2)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert np.abs(codes(other, tokenizer, TEXTS[:1]) - codes(one, tokenizer, TEXTS[:1])).max() > 0.01
    assert np.abs(codes(one, tokenizer, ["", "cat"])[0]).max() == 0
    one.save_pretrained(tmp_path)
    loaded = ConceptEncoderModel.from_pretrained(tmp_path)
    assert np.array_equal(codes(loaded, tokenizer, TEXTS), codes(one, tokenizer, TEXTS))


def test_rarity_is_counted_in_texts():
    found = inverse_document_frequency([[1, 1, 2], [1, 3], [1]], 5)
    expected = [math.log(1 + (3 - df + 0.5) / (df + 0.5)) for df in (0, 3, 1, 1, 0)]
    np.testing.assert_allclose(found, expected)


@pytest.mark.slow
def test_training_goes_on_from_it(tokenizer, tmp_path):
    sketch(tokenizer, TEXTS, 5, 7).save_pretrained(tmp_path)
    model = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path).train()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    noised = torch.where(batch["input_ids"] % 2 == 0, tokenizer.mask_token_id, batch["input_ids"])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(batch["input_ids"], batch["attention_mask"], noised, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_concepts": 0}, "a sketch needs num_concepts and size of at least 1, got 0 and 64"),
        ({"size": 0}, "a sketch needs num_concepts and size of at least 1, got 64 and 0"),
        ({"hidden_size": 128}, "a sketch of 64 x 64 needs hidden_size of at least 129, got 128"),
        ({"texts": []}, "takes the weights of word pieces from texts, and there was no text with any"),
    ],
)
def test_what_makes_no_sketch_is_named(tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        sketch(tokenizer, **{"texts": TEXTS, **settings})
