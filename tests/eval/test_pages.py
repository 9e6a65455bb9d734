import dataclasses
import re

import numpy as np
import pytest

from concept_encoder.eval.explorer import pages as pages
from concept_encoder.eval.explorer.explorer import Comparison, InfillStep, Reading, Rebuilt
from concept_encoder.utils import results

EVIL = "<script>alert(1)</script>"


def concept(**fields) -> results.Reading:
    tokens = [("cat", 0.5), (EVIL, 0.25)]
    known = {"top_tokens": tokens, "entropy_bits": 1.5, "share_read": 0.5, "special_share": 0.1, "mean_position": 0.5}
    return results.Reading(**{**known, "read_by_entropy_bits": 1.0, **fields})


@pytest.fixture
def reading():
    """Concept 1 reads the first token, concept 0 the last; the first position reads concept 0 alone."""
    return Reading(
        tokens=["cat", EVIL, "dog"],
        read=np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        read_by=np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        concepts=[concept(), concept()],
        uniform=concept(entropy_bits=1.585),
    )


def rows_of(html):
    """Concept number and depths of its cells, row by row."""
    found = re.findall(r'<th scope="row">(\d+)</th>((?:<td style="--a:\d+"></td>)+)', html)
    return [(int(number), [int(depth) for depth in re.findall(r"--a:(\d+)", cells)]) for number, cells in found]


def test_the_map_is_ordered_by_where_concepts_lie(reading):
    html = pages.reading_map(reading, pages.DIRECTIONS[0], 1)
    depth = round(100 / max(1, 4 * 2 / 6))
    assert rows_of(html) == [(1, [depth, 0, 0]), (0, [0, 0, depth])]
    assert html.count("ce-active") == 1 and html.index("ce-active") < html.index('<th scope="row">1<')
    assert EVIL not in html and "&lt;script&gt;" in html


def test_the_other_direction_has_the_same_rows_and_columns(reading):
    html = pages.reading_map(reading, pages.DIRECTIONS[1], 1)
    assert [(number, [depth > 0 for depth in cells]) for number, cells in rows_of(html)] == [
        (0, [True, True, False]),
        (1, [False, True, True]),
    ]
    alone = dataclasses.replace(reading, read_by=None)
    assert pages.reading_map(alone, pages.DIRECTIONS[1], 1) == pages.reading_map(alone, pages.DIRECTIONS[0], 1)


def test_even_attention_looks_pale(reading):
    even = dataclasses.replace(reading, read=np.full((2, 3), 1 / 3))
    assert rows_of(pages.reading_map(even, pages.DIRECTIONS[0], 0)) == [(0, [25, 25, 25]), (1, [25, 25, 25])]


def test_one_concept_in_words(reading):
    html = pages.reading_of(reading, 0)
    assert "What concept 0 reads" in html and "Who reads concept 0" in html
    assert "Spread 1.50 bits; even attention would have 1.58" in html
    assert "It gets 50.0% of the positions&#39; attention; even would be 50.0%" in html
    assert EVIL not in html
    alone = dataclasses.replace(reading, read_by=None, concepts=[concept(share_read=None)] * 2)
    assert "Who reads" not in pages.reading_of(alone, 0)


def test_the_table_s_rows(reading):
    assert pages.reading_rows(reading)[1] == [1, f"cat 50%, {EVIL} 25%", 1.5, 0.5]  # plain text: the table escapes it
    missing = dataclasses.replace(reading, concepts=[concept(share_read=None)])
    assert pages.reading_rows(missing)[0][-1] is None


def test_matches_are_sorted_and_crossed_ones_marked():
    cosines = np.array([[0.1, 0.9], [0.5, 0.2]])
    result = Comparison({"MaxSim": (0.25, -0.5)}, cosines, np.array([1, 0]), (["a", "b"], ["x", EVIL]))
    html = pages.matches(result)
    assert [float(value) for value in re.findall(r">(0\.\d\d)</span>", html)] == [0.9, 0.5]
    assert html.count("crossed") == 2 and EVIL not in html
    assert "0 of 2 concepts match their own number. Mean cosine of the matched 0.700, of all other pairs 0.150" in html
    assert "0.250" in pages.comparison(result) and "-0.500" in pages.comparison(result)
    own = dataclasses.replace(result, partner=np.array([0, 1]))
    assert "crossed" not in pages.matches(own) and "2 of 2 concepts match" in pages.matches(own)


def test_a_swap_marks_what_changed():
    html = pages.swapped(["the cat saw", "a dog"], ["the dog saw", f"a dog {EVIL}"])
    assert re.findall(r'<span class="ce-new" title="was: (\w*)">([^<]*)</span>', html) == [
        ("cat", "dog"),
        ("", "&lt;script&gt;alert(1)&lt;/script&gt;"),
    ]
    assert "Nothing changed." not in html
    assert "Nothing changed." in pages.swapped(["a", "b"], ["a", "b"])


def test_infilling_shows_the_calls_that_committed():
    steps = [
        InfillStep(["[CLS]", "[MASK]", "[MASK]", "[SEP]"], {}),
        InfillStep(["[CLS]", "[MASK]", "[MASK]", "[SEP]"], {}),
        InfillStep(["[CLS]", EVIL, "[MASK]", "[SEP]"], {1: 0.125}),
        InfillStep(["[CLS]", EVIL, "cat", "[SEP]"], {2: 0.5}),
    ]
    html = pages.infilling(steps, "[MASK]", ["[CLS]", "[SEP]", "[MASK]", "[PAD]"])
    assert re.findall(r'ce-step">([^<]*)<', html) == [
        "the text as given",
        "step 2: 1 filled in",
        "step 3: 1 filled in",
    ]
    assert html.count("ce-gap") == 2 + 1 and re.findall(r"<sup>(\d+%)</sup>", html) == ["12%", "50%"]
    assert "[CLS]" not in html and EVIL not in html


def test_a_special_token_that_was_filled_in_is_shown():
    steps = [InfillStep(["[MASK]"], {}), InfillStep(["[SEP]"], {0: 1.0})]
    assert ">[SEP]<sup>" in pages.infilling(steps, "[MASK]", ["[SEP]", "[MASK]"])


def test_rebuilding_marks_right_and_wrong():
    result = Rebuilt(["the", "cat", EVIL], ["the", "dog", EVIL], [True, False, True], {1: 0.0, 4: 0.755})
    html = pages.rebuilding(result, 4)
    assert "Rebuilt from the first 4: 2 of 3 tokens right" in html
    assert re.findall(r'class="ce-(right|wrong)"(?: title="was: (\w+)")?', html) == [
        ("right", ""),
        ("wrong", "cat"),
        ("right", ""),
    ]
    assert re.findall(r"--a:(\d+)", html) == ["0", "76"] and html.count("ce-active") == 1
    assert EVIL not in html
