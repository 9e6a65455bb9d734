"""The page of encoding and searching a corpus, from a measurement that is made up."""

from concept_encoder.scripts.dev.corpus import render_page, texts

SPEED = {"model": "slots", "tokens": 256, "threads": 1, "float32": 1000.0, "int8": 900.0}
RESULT = {
    "load": 1.0,
    "speed": [SPEED, {**SPEED, "model": "MiniLM", "float32": 50.0, "theirs_float32": 40.0, "theirs_int8": 41.0}],
    "memory": [{"documents": 10_000, "peak_bytes": 2**30, "documents_per_second": 5000.0}],
    "quality": [{"precision": "2bit", "bytes": 100.0, "ndcg_at_10": 0.4, "microseconds_per_document": 2.0}],
}


def test_the_page_holds_every_figure():
    page = render_page(RESULT)
    assert "| slots | 256 | 1 | 1,000 | 900 |  |  |" in page
    assert "| MiniLM | 256 | 1 | 50 | 900 | 40 | 41 |" in page
    assert "| 10,000 | 1,024 | 5,000 |" in page
    assert "| 2bit | 100 | 100 | 0.400 | 2.00 |" in page
    assert "| slots | 278 |" in page and "| MiniLM | 5,556 |" in page  # 10^9 documents at 1,000 and 50 a second


def test_texts_have_their_length():
    assert [len(text.split()) for text in texts(16, 3)] == [14, 14, 14]  # and two special tokens
