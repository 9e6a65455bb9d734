"""The microworld: words, meanings, labels, splits, determinism, and what a bag of words makes of the tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random
from zlib import crc32

import numpy as np
import pytest
from scipy.sparse import hstack
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from concept_encoder.trainers.data.microworld import (
    MICROWORLD_SPLITS,
    MICROWORLD_TASKS,
    microworld_corpus,
    microworld_pairs,
    microworld_task,
    microworld_tokenizer,
)
from concept_encoder.trainers.data.microworld import tasks as tasks_module
from concept_encoder.trainers.data.microworld.grammar import Speaker
from concept_encoder.trainers.data.microworld.lexicon import vocabulary
from concept_encoder.trainers.data.microworld.meaning import (
    CONTRADICTION,
    ENTAILMENT,
    NEUTRAL,
    Entity,
    Proposition,
    altered,
    entailment,
    same_meaning,
    similarity,
)

ANNA, BEN = Entity("anna"), Entity("ben")
DOG, CAT, ANIMAL, BIRD = (Entity(noun, "one") for noun in ("dog", "cat", "animal", "bird"))
THE_DOG = Entity("dog", "the")


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(microworld_corpus("train", 3000)["text"])


@pytest.fixture(scope="module")
def pairs() -> dict:
    return {
        (task, split): microworld_task(task, split, size)
        for task in MICROWORLD_TASKS
        for split, size in (("train", 2000), ("validation", 600), ("test", 100))
    }


def event(action: str, agent: Entity, patient: Entity | None = None, **details: object) -> Proposition:
    return Proposition(action, agent, patient, **details)


def no(p: Proposition) -> Proposition:
    return altered(p, negated=True)


CHASED = event("chase", ANNA, DOG)
AT_NOON = {"place": "kitchen", "time": "noon"}
RED_BALL, BLUE_BALL = Entity("ball", "one", colour="red"), Entity("ball", "one", colour="blue")
SMALL_DOG = Entity("dog", "one", size="small")


def dogs(quantity: str, **attributes: str) -> Proposition:
    return event("sleep", Entity("dog", quantity, **attributes))


def asleep(state: str = "asleep", who: Entity = ANNA, time: str | None = "noon") -> Proposition:
    return event("be", who, state=state, time=time)


ENTAILMENT_CASES = [
    ("itself", [CHASED], CHASED, ENTAILMENT),
    ("negation flips", [CHASED], no(CHASED), CONTRADICTION),
    ("negation flips back", [no(CHASED)], CHASED, CONTRADICTION),
    ("a modifier dropped", [event("chase", ANNA, DOG, **AT_NOON)], CHASED, ENTAILMENT),
    ("a modifier added", [CHASED], event("chase", ANNA, DOG, manner="quickly"), NEUTRAL),
    ("an attribute dropped", [event("find", ANNA, RED_BALL)], event("find", ANNA, Entity("ball", "one")), ENTAILMENT),
    ("an attribute added", [event("find", ANNA, Entity("ball", "one"))], event("find", ANNA, RED_BALL), NEUTRAL),
    ("another indefinite colour", [event("find", ANNA, RED_BALL)], event("find", ANNA, BLUE_BALL), NEUTRAL),
    ("hypernym", [CHASED], event("chase", ANNA, ANIMAL), ENTAILMENT),
    ("hypernym of hypernym", [event("chase", ANNA, Entity("hen", "one"))], event("chase", ANNA, ANIMAL), ENTAILMENT),
    ("hyponym", [event("chase", ANNA, ANIMAL)], CHASED, NEUTRAL),
    ("sibling", [CHASED], event("chase", ANNA, CAT), NEUTRAL),
    ("hyponym under negation", [no(event("chase", ANNA, ANIMAL))], no(CHASED), ENTAILMENT),
    ("hypernym under negation", [no(CHASED)], no(event("chase", ANNA, ANIMAL)), NEUTRAL),
    ("attribute added under negation", [no(CHASED)], no(event("chase", ANNA, SMALL_DOG)), ENTAILMENT),
    ("attribute dropped under negation", [no(event("chase", ANNA, SMALL_DOG))], no(CHASED), NEUTRAL),
    ("a case of what is denied", [event("chase", ANNA, SMALL_DOG)], no(event("chase", ANNA, ANIMAL)), CONTRADICTION),
    ("no case of what is denied", [event("chase", ANNA, ANIMAL)], no(CHASED), NEUTRAL),
    ("no dog and some animal", [no(CHASED)], event("chase", ANNA, ANIMAL), NEUTRAL),
    ("no animal and a dog", [no(event("chase", ANNA, ANIMAL))], CHASED, CONTRADICTION),
    ("a person", [CHASED], event("chase", Entity("person", "one"), DOG), ENTAILMENT),
    ("which person", [event("chase", Entity("person", "one"), DOG)], CHASED, NEUTRAL),
    ("three are two", [dogs("three")], dogs("two"), ENTAILMENT),
    ("three are some", [dogs("three")], dogs("some"), ENTAILMENT),
    ("three are one", [dogs("three")], dogs("one"), ENTAILMENT),
    ("two are not three", [dogs("two")], dogs("three"), NEUTRAL),
    ("some are no number", [dogs("some")], dogs("two"), NEUTRAL),
    ("one is not some", [dogs("one")], dogs("some"), NEUTRAL),
    ("three against none", [dogs("three")], no(dogs("one")), CONTRADICTION),
    ("none against three", [no(dogs("one"))], dogs("three"), CONTRADICTION),
    ("none of all against three small", [no(dogs("one"))], dogs("three", size="small"), CONTRADICTION),
    ("every dog, every small dog", [dogs("every")], dogs("every", size="small"), ENTAILMENT),
    ("every small dog, every dog", [dogs("every", size="small")], dogs("every"), NEUTRAL),
    ("every dog, every animal", [dogs("every")], event("sleep", Entity("animal", "every")), NEUTRAL),
    ("every animal, every dog", [event("sleep", Entity("animal", "every"))], dogs("every"), ENTAILMENT),
    ("every dog, an animal", [dogs("every")], event("sleep", ANIMAL), ENTAILMENT),
    ("every dog, three dogs", [dogs("every")], dogs("three"), NEUTRAL),
    ("three dogs, every dog", [dogs("three")], dogs("every"), NEUTRAL),
    ("every person, Anna", [event("sing", Entity("person", "every"))], event("sing", ANNA), ENTAILMENT),
    ("every dog, no dog", [dogs("every")], no(dogs("one")), CONTRADICTION),
    ("no animal, every dog", [no(event("sleep", ANIMAL))], dogs("every"), CONTRADICTION),
    ("roles swapped", [event("chase", ANNA, BEN)], event("chase", BEN, ANNA), NEUTRAL),
    ("roles swapped and denied", [event("chase", ANNA, BEN)], no(event("chase", BEN, ANNA)), NEUTRAL),
    ("symmetric action", [event("meet", ANNA, BEN)], event("meet", BEN, ANNA), ENTAILMENT),
    ("symmetric action denied", [no(event("meet", ANNA, BEN))], event("meet", BEN, ANNA), CONTRADICTION),
    ("wider action", [CHASED], event("follow", ANNA, DOG), ENTAILMENT),
    ("narrower action", [event("follow", ANNA, DOG)], CHASED, NEUTRAL),
    ("wider action denied", [no(event("follow", ANNA, DOG))], no(CHASED), ENTAILMENT),
    ("wider place", [event("sing", ANNA, **AT_NOON)], event("sing", ANNA, place="house"), ENTAILMENT),
    ("narrower place", [event("sing", ANNA, place="house")], event("sing", ANNA, place="kitchen"), NEUTRAL),
    ("acting there is being there", [event("sing", ANNA, **AT_NOON)], event("be", ANNA, place="house"), ENTAILMENT),
    ("going there is being there", [event("run", ANNA, **AT_NOON)], event("be", ANNA, **AT_NOON), ENTAILMENT),
    (
        "two places at once",
        [event("be", ANNA, **AT_NOON)],
        event("sing", ANNA, place="barn", time="noon"),
        CONTRADICTION,
    ),
    (
        "elsewhere at once, denied",
        [event("be", ANNA, **AT_NOON)],
        no(event("sing", ANNA, place="barn", time="noon")),
        ENTAILMENT,
    ),
    (
        "two places, two moments",
        [event("be", ANNA, **AT_NOON)],
        event("be", ANNA, place="barn", time="dusk"),
        NEUTRAL,
    ),
    ("two places, no moment", [event("sing", ANNA, place="barn")], event("sing", ANNA, place="kitchen"), NEUTRAL),
    (
        "two dogs' places",
        [event("be", DOG, **AT_NOON)],
        event("be", DOG, place="barn", time="noon"),
        NEUTRAL,
    ),
    (
        "one dog's places",
        [event("be", THE_DOG, **AT_NOON)],
        event("be", THE_DOG, place="barn", time="noon"),
        CONTRADICTION,
    ),
    ("the dog is a dog", [event("sing", THE_DOG)], event("sing", DOG), ENTAILMENT),
    ("a dog is not the dog", [event("sing", DOG)], event("sing", THE_DOG), NEUTRAL),
    ("moods exclude", [asleep("happy")], asleep("sad"), CONTRADICTION),
    ("moods at two moments", [asleep("happy")], asleep("sad", time="dusk"), NEUTRAL),
    ("a mood denied, another open", [no(asleep("happy"))], asleep("sad"), NEUTRAL),
    ("a mood excludes another", [asleep("happy")], no(asleep("sad")), ENTAILMENT),
    ("not awake is asleep", [no(asleep("awake"))], asleep(), ENTAILMENT),
    ("awake is not asleep", [asleep("awake")], no(asleep()), ENTAILMENT),
    ("neither awake nor asleep", [no(asleep("awake"))], no(asleep()), CONTRADICTION),
    ("no dog awake, the dog asleep", [no(asleep("awake", DOG))], asleep("asleep", THE_DOG), ENTAILMENT),
    ("no dog awake, the dog awake", [no(asleep("awake", DOG))], asleep("awake", THE_DOG), CONTRADICTION),
    ("mood and sleep", [asleep("happy")], asleep(), NEUTRAL),
    (
        "colour lasts",
        [event("be", Entity("ball", "the"), state="red")],
        event("be", Entity("ball", "the"), state="blue"),
        CONTRADICTION,
    ),
    ("either proposition entails", [event("sing", BEN), CHASED], CHASED, ENTAILMENT),
    ("parts of two propositions", [event("sing", BEN), event("dance", ANNA)], event("sing", ANNA), NEUTRAL),
    ("either proposition contradicts", [event("sing", BEN), no(CHASED)], CHASED, CONTRADICTION),
]


@pytest.mark.parametrize(("premise", "hypothesis", "label"), [c[1:] for c in ENTAILMENT_CASES], ids=lambda c: "")
def test_entailment_of_hand_written_cases(premise, hypothesis, label) -> None:
    assert entailment(tuple(premise), hypothesis) == label


@pytest.mark.slow
def test_entailment_is_dual_under_negation_and_contradiction_is_symmetric() -> None:
    rng, flipped, seen = Random(2), {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT, NEUTRAL: NEUTRAL}, Counter()
    for label in (ENTAILMENT, NEUTRAL, CONTRADICTION) * 400:
        drawn = tasks_module._draw_entailment(rng, label)
        if drawn is None:
            continue
        premise, (hypothesis,) = drawn
        seen[label] += 1
        if tasks_module.can_be_negated(hypothesis):
            assert entailment(premise, altered(hypothesis, negated=not hypothesis.negated)) == flipped[label]
        for p in premise:
            forth, back = entailment((p,), hypothesis), entailment((hypothesis,), p)
            assert (forth == CONTRADICTION) == (back == CONTRADICTION), (p, hypothesis)
    assert min(seen.values()) > 50


def test_a_pair_describes_each_individual_in_one_way() -> None:
    rng = Random(3)
    for label in (ENTAILMENT, NEUTRAL, CONTRADICTION) * 200:
        premise, hypothesis = tasks_module._draw_entailment(rng, label) or ((), ())
        individuals = {e for p in (*premise, *hypothesis) for e in p.entities if e.is_individual}
        assert len({e.noun for e in individuals}) == len(individuals)


def test_similarity_of_hand_written_cases() -> None:
    base = event("find", ANNA, RED_BALL)
    assert similarity((base,), (base,)) == 5.0
    assert similarity((event("meet", ANNA, BEN),), (event("meet", BEN, ANNA),)) == 5.0
    assert similarity((base,), (event("sing", BEN, place="barn"),)) == 0.0
    # Action and agent agree; of the balls the noun (0.6) and the count, not the colour (0.4 * 1/2).
    blue = event("find", ANNA, BLUE_BALL)
    assert similarity((base,), (blue,)) == pytest.approx(5 * (3 + 3 + 3 * 0.8) / 9)
    # A dog and a cat share no parent below the roots, a hen and a duck do.
    assert similarity((CHASED,), (event("chase", ANNA, CAT),)) == pytest.approx(5 * 6 / 9)
    hen, duck = event("chase", ANNA, Entity("hen", "one")), event("chase", ANNA, Entity("duck", "one"))
    assert similarity((hen,), (duck,)) == pytest.approx(5 * (6 + 3 * (0.6 * 0.5 + 0.4)) / 9)
    assert similarity((CHASED,), (no(CHASED),)) == pytest.approx(5 * 9 / 10.5)
    assert similarity((event("chase", ANNA, BEN),), (event("chase", BEN, ANNA),)) == pytest.approx(5 * 3 / 9)
    # Order of propositions is nothing, a missing one counts.
    sang = event("sing", BEN)
    assert similarity((base, sang), (sang, base)) == 5.0
    assert similarity((base, sang), (sang,)) == 2.5
    assert similarity((base,), (sang, blue)) == similarity((sang, blue), (base,))


def test_same_meaning_minds_roles_attributes_and_negation_but_not_order() -> None:
    sang = event("sing", BEN)
    assert same_meaning((CHASED, sang), (sang, CHASED))
    assert same_meaning((event("meet", ANNA, BEN),), (event("meet", BEN, ANNA),))
    assert not same_meaning((event("chase", ANNA, BEN),), (event("chase", BEN, ANNA),))
    assert not same_meaning((CHASED,), (no(CHASED),))
    assert not same_meaning((event("find", ANNA, RED_BALL),), (event("find", ANNA, BLUE_BALL),))


@pytest.mark.parametrize(
    ("p", "wordings"),
    [
        (
            event("chase", ANNA, BEN),
            {
                "Anna chased Ben.",
                "Ben was chased by Anna.",
                "It was Anna who chased Ben.",
                "It was Ben that Anna chased.",
            },
        ),
        (
            Proposition("sell", ANNA, Entity("hat", "the"), BEN),
            {
                "Anna sold Ben the hat.",
                "Anna sold the hat to Ben.",
                "The hat was sold to Ben by Anna.",
                "Ben was sold the hat by Anna.",
                "Ben bought the hat from Anna.",
            },
        ),
        (no(dogs("one")), {"No dog slept.", "It was not true that a dog slept."}),
        (no(event("find", ANNA, DOG)), {"Anna did not find any dog.", "No dog was found by Anna."}),
        (dogs("every", size="small"), {"Every small dog slept.", "All the little dogs slept."}),
        (
            event("be", Entity("mouse", "two"), place="barn"),
            {"Two mice were in the barn.", "There were two mice in the barn."},
        ),
        (event("walk", ANNA, place="lake", time="noon"), {"At midday, Anna strolled to the lake."}),
    ],
)
def test_wordings_of_one_proposition(p, wordings) -> None:
    rng = Random(0)
    assert wordings <= {Speaker(rng, variety=0.8).text((p,)) for _ in range(800)}


def test_pronouns_are_used_and_never_ambiguous() -> None:
    rng = Random(0)
    told = {Speaker(rng, 0.0).text((event("chase", ANNA, BEN), event("sing", ANNA))) for _ in range(100)}
    assert any("She sang." in text for text in told)
    told = {Speaker(rng, 0.0).text((event("chase", ANNA, Entity("emma")), event("sing", ANNA))) for _ in range(200)}
    assert told and not any("she" in text.lower().split() for text in told)


@pytest.mark.slow
def test_no_text_has_two_meanings() -> None:
    rng, meanings, choices = Random(1), {}, Random()
    for _ in range(1000):
        first = tasks_module._swappable(rng)
        for meaning in filter(None, (first, tasks_module._exchanged(rng, first))):
            for _ in range(4):
                text = tasks_module._in_order(choices, rng.getrandbits(32), meaning)
                assert same_meaning(meanings.setdefault(text, meaning), meaning), text


# --- data sets ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_stories_have_four_to_ten_sentences_and_are_all_but_distinct(corpus) -> None:
    lengths = Counter(text.count(".") for text in corpus)
    assert min(lengths) >= 4 and max(lengths) <= 10
    assert len(set(corpus)) > 0.99 * len(corpus)


def test_numbers_in_stories_add_up(corpus) -> None:
    numbers = {word: i for i, word in enumerate("zero one two three four five".split())} | {"a": 1, "an": 1}
    checked = 0
    for text in corpus:
        words = text.lower().replace(".", " .").split()
        for noun in ("apples", "roses"):
            said = [numbers[a] for a, b in pairwise(words) if a in numbers and b in (noun, noun[:-1])]
            if len(said) in (3, 4) and " had " in text:
                assert said[0] == said[1] + said[2], text
                checked += 1
    assert checked > 20


@pytest.mark.slow
def test_tokenizer_knows_every_word_and_every_word_is_used(corpus, pairs) -> None:
    tokenizer = microworld_tokenizer()
    texts = corpus + [text for d in pairs.values() for column in ("sentence1", "sentence2") for text in d[column]]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    used = {i for row in ids for i in row}
    assert tokenizer.unk_token_id not in used
    unused = set(vocabulary()) - set(tokenizer.convert_ids_to_tokens(sorted(used)))
    assert not unused
    in_corpus = {i for row in tokenizer(corpus, add_special_tokens=False)["input_ids"] for i in row}
    assert len(in_corpus) > 0.9 * len(vocabulary())


def test_tokenizer_form_and_round_trip(tmp_path) -> None:
    tokenizer = microworld_tokenizer(32)
    assert tokenizer.pad_token_id == 0 and tokenizer.model_max_length == 32
    special = [tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token]
    assert special == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) == len(vocabulary()) + 5 < 600
    encoded = tokenizer("Anna slept.", "[MASK] slept.")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens == ["[CLS]", "anna", "slept", ".", "[SEP]", "[MASK]", "slept", ".", "[SEP]"]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("Anna slept.", "Ben sang.")["input_ids"] == tokenizer("Anna slept.", "Ben sang.")["input_ids"]
    assert loaded.model_max_length == 32 and loaded.mask_token_id == tokenizer.mask_token_id


@pytest.mark.slow
def test_splits_share_no_sentence_whatever_the_seeds(pairs) -> None:
    openings = [
        {text.split(".")[0] for text in microworld_corpus(split, 300, seed)["text"]}
        for seed, split in enumerate(MICROWORLD_SPLITS)
    ]
    assert not (openings[0] & openings[1] or openings[0] & openings[2] or openings[1] & openings[2])
    for task in MICROWORLD_TASKS:
        texts = {s: {*pairs[task, s]["sentence1"], *pairs[task, s]["sentence2"]} for s in MICROWORLD_SPLITS}
        assert not (texts["train"] & texts["validation"] or texts["train"] & texts["test"])
        assert not texts["validation"] & texts["test"]


def test_smaller_size_is_a_prefix_and_seeds_differ(corpus) -> None:
    assert list(microworld_corpus("train", 20)["text"]) == corpus[:20]
    assert microworld_corpus("train", 20, seed=1)["text"][:] != corpus[:20]
    few, more = (microworld_task("entailment", "test", size, seed=3).to_dict() for size in (7, 20))
    assert few == {column: values[:7] for column, values in more.items()}


@pytest.mark.slow
def test_equal_in_another_process_and_under_another_hash_seed() -> None:
    code = (
        "from zlib import crc32; from concept_encoder.trainers.data.microworld import *;"
        "d = [microworld_corpus('train', 50).to_dict()];"
        "d += [microworld_task(t, 'test', 20).to_dict() for t in MICROWORLD_TASKS];"
        "print(crc32(repr(d).encode()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    data = [microworld_corpus("train", 50).to_dict()]
    data += [microworld_task(task, "test", 20).to_dict() for task in MICROWORLD_TASKS]
    assert int(other.stdout) == crc32(repr(data).encode())


@pytest.mark.slow
def test_pairs_are_two_wordings_of_their_split() -> None:
    splits = {split: microworld_pairs(split, 200) for split in ("train", "validation")}
    openings = {}
    for split, rows in splits.items():
        assert all(text != partner for text, partner in zip(rows["text"], rows["partner"], strict=True))
        openings[split] = {text for column in ("text", "partner") for text in rows[column]}
    assert not openings["train"] & openings["validation"]
    assert microworld_pairs("train", 20)["partner"][:] == splits["train"]["partner"][:20]
    tokens = microworld_tokenizer()(splits["train"]["text"][:] + splits["train"]["partner"][:])["input_ids"]
    assert microworld_tokenizer().unk_token_id not in {token for row in tokens for token in row}


def test_labels_are_balanced_and_spread(pairs) -> None:
    assert set(Counter(pairs["paraphrase", "train"]["label"]).values()) == {1000}
    entailments = pairs["entailment", "train"]
    assert entailments.features["label"].names == ["entailment", "neutral", "contradiction"]
    assert sorted(Counter(entailments["label"]).values()) == [666, 667, 667]
    scores = np.array(pairs["similarity", "train"]["label"])
    assert scores.min() == 0.0 and scores.max() == 5.0
    shares = np.histogram(scores, bins=5, range=(0, 5))[0] / len(scores)
    assert shares.min() > 0.1 and shares.max() < 0.35
    assert all(a != b for d in pairs.values() for a, b in zip(d["sentence1"], d["sentence2"], strict=True))


def test_paraphrase_negatives_exchange_words_and_keep_them() -> None:
    rng = Random(5)
    for _ in range(300):
        meaning = tasks_module._swappable(rng)
        other = tasks_module._exchanged(rng, meaning)
        if other is not None:
            assert not same_meaning(meaning, other)
            assert parts(meaning) == parts(other)


def parts(meaning) -> Counter:
    """All that a meaning is made of, without the structure."""
    entities = {entity for p in meaning for entity in p.entities}
    found = Counter(value for e in entities for value in (e.noun, e.quantity, e.size, e.age, e.colour))
    for p in meaning:
        found.update([p.action, p.state, p.place, p.time, p.manner, p.negated])
    return found


# --- a bag of words -------------------------------------------------------------------------------------------------


def bag_of_words_accuracy(train, test, hypothesis_only: bool = False) -> float:
    vectorizer = TfidfVectorizer(token_pattern=r"\w+").fit([*train["sentence1"], *train["sentence2"]])

    def features(data):
        a, b = vectorizer.transform(data["sentence1"]), vectorizer.transform(data["sentence2"])
        return b if hypothesis_only else hstack([a, b, abs(a - b), a.multiply(b)]).tocsr()

    classifier = LogisticRegression(max_iter=1000).fit(features(train), train["label"])
    return classifier.score(features(test), test["label"])


@pytest.mark.slow
def test_a_bag_of_words_does_not_solve_paraphrase_or_entailment(pairs) -> None:
    paraphrase = pairs["paraphrase", "train"], pairs["paraphrase", "validation"]
    entailments = pairs["entailment", "train"], pairs["entailment", "validation"]
    assert bag_of_words_accuracy(*paraphrase) < 0.58
    assert bag_of_words_accuracy(*paraphrase, hypothesis_only=True) < 0.56
    assert bag_of_words_accuracy(*entailments) < 0.58
    assert bag_of_words_accuracy(*entailments, hypothesis_only=True) < 0.45


def test_word_overlap_tells_some_of_similarity(pairs) -> None:
    data = pairs["similarity", "train"]
    words = [[set(text.lower().replace(".", "").split()) for text in data[c]] for c in ("sentence1", "sentence2")]
    overlap = [len(a & b) / len(a | b) for a, b in zip(*words, strict=True)]
    assert 0.5 < spearmanr(overlap, data["label"])[0] < 0.9


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"Unknown microworld split 'dev'. Available: train, validation, test"):
        microworld_corpus("dev", 1)
    with pytest.raises(ValueError, match="Unknown microworld split 'dev'"):
        microworld_task("paraphrase", "dev", 1)
    with pytest.raises(
        ValueError, match=r"Unknown microworld task 'mrpc'. Available: similarity, paraphrase, entailment"
    ):
        microworld_task("mrpc", "train", 1)
    for size in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match=r"size must be a positive integer .* got"):
            microworld_corpus("train", size)
        with pytest.raises(ValueError, match=r"size must be a positive integer .* got"):
            microworld_task("entailment", "train", size)
    with pytest.raises(ValueError, match="seed must be an integer, got 'a'"):
        microworld_corpus("train", 1, seed="a")
    with pytest.raises(ValueError, match=r"max_length must be an integer of at least 3 .* got 2"):
        microworld_tokenizer(2)
