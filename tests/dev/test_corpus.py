"""The page of encoding and searching a corpus: rendered from the result next to it, part by part."""

import json
from pathlib import Path

import pytest

from concept_encoder.scripts.dev import corpus
from concept_encoder.scripts.dev.corpus import main, measure, render_page, texts

SPEED = {
    "tokens": 256,
    "threads": 1,
    "float32": 1000.0,
    "int8": 900.0,
    "float32_bytes": 16_400.0,
    "int8_bytes": 4_120.0,
    "float32_dtype": "float32",
    "int8_dtype": "float32",
}
PARTS = {
    "speed box 1": [SPEED],
    "speed MiniLM 1": [
        {**SPEED, "float32": 50.0, "theirs_float32": 40.0, "theirs_int8": 41.0, "float32_dtype": "bfloat16"}
    ],
    "memory 10000": {"documents": 10_000, "peak_bytes": 2**30, "documents_per_second": 5000.0},
    "quality": [{"precision": "2bit", "bytes": 100.0, "ndcg_at_10": 0.4, "microseconds_per_document": 2.0}],
}
RESULT = {"kind": "corpus", "parts": {name: {"rows": rows, "load": 1.0} for name, rows in PARTS.items()}}


def test_the_page_in_the_tree_is_the_rendering_of_its_result():
    assert corpus.PAGE.read_text(encoding="utf-8") == render_page()


def test_the_page_holds_every_figure():
    page = render_page(RESULT)
    assert "| box | 256 | 1 | 1,000 | 900 |  |  | 16,400 | 4,120 |" in page
    assert "| MiniLM | 256 | 1 | 50 | 900 | 40 | 41 | 16,400 | 4,120 |" in page
    assert "bfloat16 products for MiniLM." in page
    assert "| 10,000 | 1,024 | 5,000 |" in page
    assert "| 2bit | 100 | 0.400 | 2.00 |" in page
    # 10^9 documents at 1,000, 900 and 50 a second
    assert "| box | 278 | 309 | 16.40 | 4.12 |" in page and "| MiniLM | 5,556 | 309 | 16.40 | 4.12 |" in page
    assert "not measured yet" not in page
    assert "not measured yet" in render_page({"parts": {"quality": RESULT["parts"]["quality"]}})


def test_a_measurement_goes_on_after_the_parts_that_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "models", lambda folder, minilm: dict.fromkeys(corpus.NAMES, minilm))
    ran = []

    def apart(threads, name, *arguments):
        ran.append((name, *arguments[1:]))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return [SPEED]

    monkeypatch.setattr(corpus, "_apart", apart)
    kept = tmp_path / "corpus.json"
    with pytest.raises(KeyboardInterrupt):
        measure(Path("minilm"), Path("data"), kept=kept)
    assert list(json.loads(kept.read_text())["parts"]) == ["speed box 1", "speed box 2"]
    found = measure(Path("minilm"), Path("data"), kept=kept)
    assert json.loads(kept.read_text()) == found and len(found["parts"]) == 11
    assert len(ran) == 12 and ran[2:4] == [("rates", 1, 1)] * 2  # the one that was stopped, again
    assert ran[-3:] == [("memory", 10_000), ("memory", 1_000_000), ("quality", "data")]


def test_the_command_without_its_folders_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--small"])
    assert "give --models and --data, or --render" in capsys.readouterr().err


def test_texts_have_their_length():
    assert [len(text.split()) for text in texts(16, 3)] == [14, 14, 14]  # and two special tokens
