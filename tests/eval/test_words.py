"""The words code: values written down, ties, what an empty text is, and the file that it is kept in."""

import math

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from concept_encoder.eval.corpus.words import PAIRS, WordWeights, entries_in

WORDS = "the cat sees a dog bird sings and sleeps [UNK]".split()
THE, CAT, SEES, A, DOG, BIRD, SINGS, AND, SLEEPS, UNKNOWN = range(10)
KNOWN = ["the cat sees the dog", "the dog sleeps", "a bird sings and a cat sleeps", "the cat sees a bird"]
TEXTS = ["the cat sees the cat", "dog", "a bird sings and a bird sings and a dog sees the cat"]


def make_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def words():
    return WordWeights.fit(KNOWN, make_tokenizer())


def entries_of(row):
    return dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))


# As the experiment that the issue's table comes from gives them (numpy, word for word), for these texts.
@pytest.mark.parametrize(
    ("options", "first", "third"),
    [
        (
            {"pairs": False},
            {THE: 0.534265, CAT: 0.534265, SEES: 0.655074},
            {0: 0.104602, 1: 0.104602, 2: 0.203279, 3: 0.406558, 4: 0.203279, 5: 0.32219, 6: 0.559632, 7: 0.559632},
        ),
        (
            {"pairs": False, "entries": 2},
            {THE: 0.632029, SEES: 0.774945},  # of THE and CAT, equally heavy, the lower column
            {SINGS: 0.707107, AND: 0.707107},
        ),
        (
            {},
            {0: 0.40378, 1: 0.40378, 2: 0.475304, 7929: 0.412228, 951440: 0.443563, 1015851: 0.285182},
            {0: 0.106804, 1: 0.106804, 2: 0.181732, 3: 0.316414, 4: 0.181732, 5: 0.262692, 6: 0.408583, 7: 0.408583}
            | {7929: 0.109039, 732332: 0.24515, 812581: 0.24515, 853235: 0.24515, 870132: 0.284902, 934543: 0.284902}
            | {942462: 0.157615, 951440: 0.169596},
        ),
        (
            {"entries": 5},
            {0: 0.421274, 1: 0.421274, 2: 0.495897, 7929: 0.430089, 951440: 0.462781},
            {A: 0.409742, SINGS: 0.529096, AND: 0.529096, 870132: 0.368935, 934543: 0.368935},
        ),
    ],
    ids=["words", "2 words", "pairs", "5 pairs"],
)
def test_rows_have_the_values_of_the_experiment(words, options, first, third):
    rows = words.encode(TEXTS, **options)
    assert rows.dtype == np.float32 and rows.shape == (3, 10 + PAIRS * options.get("pairs", True))
    for row, expected in ((0, first), (1, {DOG: 1.0}), (2, third)):
        assert entries_of(rows[row]) == pytest.approx(expected, abs=2e-6)


def test_weights_are_rarity_times_saturated_counts(words):
    assert words.idf[THE] == pytest.approx(math.log(1 + (4 - 3 + 0.5) / 3.5))
    assert words.idf[UNKNOWN] == pytest.approx(math.log(1 + 4.5 / 0.5))
    row = words.encode(["the cat the"], pairs=False)[0]
    ratio = words.idf[THE] * math.log(3) / (words.idf[CAT] * math.log(2))
    assert row[0, THE] / row[0, CAT] == pytest.approx(ratio)


def test_never_more_entries_than_asked_for_where_all_weigh_the_same(words):
    """New pairs all have the same rarity: kept by a threshold, there would be as many as the text has."""
    text = "sleeps sings dog and bird the a sees cat sings sleeps and sees dog the bird"
    assert [words.encode([text], entries=n)[0].nnz for n in (1, 3, 7)] == [1, 3, 7]


def test_an_empty_text_is_a_row_of_zeros_wherever_it_stands(words):
    for options in ({}, {"pairs": False}, {"entries": 1}):
        rows = words.encode(["", "dog", ""], **options)
        assert np.diff(rows.indptr).tolist() == [0, 1, 0]
        assert (rows @ rows.T).toarray().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert words.encode([]).shape == (0, 10 + PAIRS)


def test_texts_are_read_whole_and_the_callers_tokenizer_stays_as_it_is():
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(3)
    words = WordWeights.fit(KNOWN, PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))
    assert words.encode(["the cat sees the dog"], pairs=False)[0].nnz == 4
    assert tokenizer.truncation["max_length"] == 3


def test_only_the_first_word_pieces_of_a_text_count_for_the_weights():
    assert WordWeights.fit(KNOWN, make_tokenizer(), longest=2).idf[DOG] == pytest.approx(math.log(1 + 3.5 / 1.5))


def test_a_file_gives_the_same_rows_again(words, tmp_path):
    words.save(tmp_path / "words.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["words.safetensors"]
    again = WordWeights.load(tmp_path / "words.safetensors")
    assert (again.encode(TEXTS, 5) != words.encode(TEXTS, 5)).nnz == 0


def test_entries_are_counted_by_bytes():
    assert [entries_in(size) for size in (2.5, 128, 1024, 4096)] == [1, 51, 409, 1638]
    with pytest.raises(ValueError, match=r"needs at least 2\.5 bytes, one entry, got 2"):
        entries_in(2)


def test_what_cannot_be_is_refused(words, tmp_path):
    with pytest.raises(ValueError, match="entries must be at least 1, or None for all, got 0"):
        words.encode(TEXTS, 0)
    with pytest.raises(ValueError, match="texts must be a list of strings, got 'dog'; one text is a list of one"):
        words.encode("dog")
    with pytest.raises(ValueError, match="longest must be at least 1, got 0"):
        WordWeights.fit(KNOWN, make_tokenizer(), longest=0)
    for nothing in ([], ["", ""]):
        with pytest.raises(ValueError, match="words take their weights from texts, and there was no text with any"):
            WordWeights.fit(nothing, make_tokenizer())
    with pytest.raises(ValueError, match=r"words need a fast tokenizer, got object; one has a tokenizer\.json"):
        WordWeights.fit(KNOWN, object())
    for idf in (np.ones(3), np.full(10 + PAIRS, np.nan)):
        with pytest.raises(ValueError, match=r"idf must be 1048586 finite numbers from 0, .* got shape \("):
            WordWeights(make_tokenizer(), idf)


def test_a_file_of_something_else_is_refused(words, tmp_path):
    path = tmp_path / "words.safetensors"
    with pytest.raises(FileNotFoundError, match="No file of word weights"):
        WordWeights.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"holds no word weights: .*; fit and save them again"):
        WordWeights.load(path)
    save_file({"idf": words.idf}, path)
    with pytest.raises(ValueError, match="its format must be 'concept-encoder words 1', got None"):
        WordWeights.load(path)
    for tensors, tokenizer in (({"idf": words.idf[:9]}, words.tokenizer.to_str()), ({"idf": words.idf}, "{}")):
        save_file(tensors, path, {"format": "concept-encoder words 1", "tokenizer": tokenizer})
        with pytest.raises(ValueError, match="holds no word weights"):
            WordWeights.load(path)
