"""Needles and passkeys: no word in common with their query, told once, at every depth, in texts as long as asked."""

import re

import pytest

from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.trainers.data.microworld.lexicon import VERBS
from concept_encoder.trainers.data.microworld.needles import MOST, NEEDLES, needle_texts


def words(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())


@pytest.fixture(scope="module", params=NEEDLES)
def pairs(request):
    return request.param, list(needle_texts(request.param, 200, 20))


def needle_of(kind, text):
    if kind == "passkey":
        (found,) = re.findall(r"The key was [\w ]+\.", text)
    else:
        told = {forms[1] for verb in VERBS.values() for forms in verb.forms[1:]}
        (found,) = (
            sentence
            for sentence in re.split(r"(?<=\.)\s+", text)
            if re.search(r"at (sunrise|midday|sunset|supper)\.$", sentence) and told & set(words(sentence))
        )
    return found


@pytest.mark.slow
def test_a_query_shares_no_word_with_its_needle_and_no_meaning_with_the_rest(pairs):
    kind, found = pairs
    function_words = {"did", "a", "person", "any", "animal", "thing", "by"}
    for text, query in found:
        needle = needle_of(kind, text)
        assert not set(words(query)) & set(words(needle))
        assert not (set(words(query)) - function_words) & set(words(text))
        rest = text.replace(needle, "")
        telling = set(words(needle)) & {form for verb in VERBS.values() for forms in verb.forms[1:] for form in forms}
        assert not telling & set(words(rest))
    assert len({query for _, query in found}) == len(found)


def test_needles_stand_at_every_depth_of_texts_of_the_length_asked(pairs):
    kind, found = pairs
    depths = []
    for text, _ in found:
        assert 200 - 20 <= len(words(text)) <= 200
        before, _, after = text.partition(needle_of(kind, text))
        depths.append(len(before) / (len(before) + len(after)))
    assert min(depths) == 0 and max(depths) == 1
    assert [min(4, int(depth * 5)) for depth in sorted(depths)] == pytest.approx(
        [place // 4 for place in range(20)], abs=1
    )


def test_passkeys_are_spelled_in_the_text_and_asked_for_by_digits():
    spelled = dict(zip("12345", "one two three four five".split(), strict=True))
    for text, query in needle_texts("passkey", 64, 5):
        assert f"The key was {' '.join(spelled[digit] for digit in query.split())}." in text


def test_every_word_of_a_needle_text_is_in_the_vocabulary():
    tokenizer = microworld_tokenizer()
    for text, query in needle_texts("needle", 100, 10):
        assert tokenizer.unk_token_id not in tokenizer(f"{text} {query}")["input_ids"]


@pytest.mark.slow
def test_the_same_again_and_others_with_another_seed():
    first = list(needle_texts("needle", 100, 4))
    assert first == list(needle_texts("needle", 100, 4)) != list(needle_texts("needle", 100, 4, seed=1))
    assert len({text for text, _ in first}) == 4


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"Unknown kind of needle 'pin'\. Available: needle, passkey"):
        next(needle_texts("pin", 100))
    with pytest.raises(ValueError, match="length must be at least 32 words, got 31"):
        next(needle_texts("needle", 31))
    for size in (1, MOST + 1):
        with pytest.raises(ValueError, match=f"size must be from 2 to {MOST} texts, got {size}"):
            next(needle_texts("needle", 100, size))
