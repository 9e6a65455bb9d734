"""The table of encoders: pairs held out by text, ranks, equal time, a run that continues, and the page."""

import json
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from concept_encoder.scripts.dev import encoder_table
from concept_encoder.scripts.dev.encoder_table import (
    BM25,
    NAMES,
    ROWS,
    TOKEN_MEAN,
    encode,
    main,
    padded,
    ranks_of_own,
    read_pairs,
    render_page,
    similarities,
    train,
)

DOCS = Path(__file__).parents[2] / "docs"
RESULT = DOCS / "results" / "encoder_table.json"
SHORT = ["--config", "default", "--train_pairs", "40", "--held_out", "8", "--vocab_size", "200"]


@pytest.mark.skipif(not RESULT.is_file(), reason="the whole table has not been measured yet")
def test_the_page_is_fresh():
    assert (DOCS / "ENCODER.md").read_text(encoding="utf-8") == render_page(RESULT)


@pytest.fixture
def dataset(tmp_path) -> str:
    """60 articles, each of a word of its own, twelve of them twice."""
    words = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    rows = [
        {"title": f"About {word}", "text": f"The {word} is here.\nA {word} again, and more of it."} for word in words
    ]
    (tmp_path / "articles").mkdir()
    Dataset.from_list(rows + rows[:12]).to_parquet(tmp_path / "articles" / "train-0.parquet")
    return str(tmp_path / "articles")


def test_pairs_are_held_out_by_text(dataset):
    pairs = read_pairs(dataset, "default", 40, 20)
    assert (len(pairs.articles), len(pairs.held_articles)) == (40, 20)
    words = [{query.split()[1] for query in side} for side in (pairs.queries, pairs.held_queries)]
    assert len(words[0]) == 40 and len(words[1]) == 20 and not words[0] & words[1]
    for query, article in zip(pairs.queries, pairs.articles, strict=True):
        assert query.split()[1] in article and query not in article
    led = sum(query.startswith("The") for query in pairs.queries)
    assert 10 < led < 30
    with pytest.raises(ValueError, match=r"has 60 articles, and 50 \+ 20 were asked for"):
        read_pairs(dataset, "default", 50, 20)


def test_ranks_are_behind_ties_and_what_is_no_number():
    scores = torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 2.0], [4.0, 5.0, torch.nan]])
    assert ranks_of_own(scores) == [1, 3, 3]


def test_similarities_are_cosines_or_the_best_of_each_concept():
    codes = torch.nn.functional.normalize(torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(similarities(codes[:, 0], codes[:, 0]).diagonal(), torch.ones(5))
    found = similarities(codes[:2], codes)
    expected = sum(max(codes[1, i] @ codes[4, j] for j in range(3)) for i in range(3))
    torch.testing.assert_close(found[1, 4], expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_encoder_gives_a_text_one_code_alone_and_in_a_batch(row):
    torch.manual_seed(0)
    coder = row.build(64)
    texts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15]]
    codes = encode(coder, texts)
    torch.testing.assert_close(encode(coder, texts[2:]), codes[2:], rtol=1e-4, atol=1e-5)
    coder(*padded(texts)).square().sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in coder.parameters())
    assert any(weight.grad is not None for weight in coder.parameters())


def test_training_stops_after_its_time_and_learns():
    texts = [[i, i + 1] for i in range(5, 60)]
    torch.manual_seed(0)
    coder = ROWS[0].build(64)
    start = time.process_time()
    assert train(coder, (texts, texts[1:] + texts[:1]), 0.5, 1e-2, seed=0) > 5
    assert 0.5 <= time.process_time() - start < 2
    codes = encode(coder, texts)
    own = similarities(codes, codes.roll(-1, 0)).diagonal().mean()
    assert own > similarities(codes, codes).mean() + 0.1


@pytest.mark.slow
def test_a_table_is_measured_continued_and_rendered(dataset, tmp_path, monkeypatch, capsys):
    result, page = tmp_path / "table.json", tmp_path / "PAGE.md"
    words = ["--data", dataset, *SHORT, "--seconds", "0.2", "--result", str(result), "--page", str(page)]
    some = [BM25, TOKEN_MEAN, "slots, 16 x 64"]
    main([*words, "--seeds", "0", "--rows", *some])
    first = json.loads(result.read_text())
    assert set(first["rows"]) == set(some) and first["settings"]["data"] == "articles"
    main([*words, "--seeds", "0", "1", "--rows", *NAMES[:2], "slots, 16 x 64"])
    second = json.loads(result.read_text())
    assert second["rows"][TOKEN_MEAN]["0"] == first["rows"][TOKEN_MEAN]["0"] and "1" in second["rows"][TOKEN_MEAN]
    assert set(second["rows"][BM25]) == {"0"}
    text = page.read_text()
    assert text == render_page(result)
    assert "| BM25 | – | – | 1.000 (1.000 to 1.000) | – |" in text and "| slots, 16 x 64 | 1,024 |" in text
    monkeypatch.setattr(encoder_table, "read_pairs", lambda *_: pytest.fail("all was measured"))
    main([*words, "--seeds", "0", "--rows", *some])
    with pytest.raises(SystemExit):
        main([*words[:-4], "--seconds", "9", "--result", str(result), "--page", str(page)])
    assert "was measured with other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    assert "give --data, or --render without it" in capsys.readouterr().err
