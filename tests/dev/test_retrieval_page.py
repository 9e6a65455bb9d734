"""The retrieval page: rendered from the results next to it, with every ranker in tables and figures."""

import shutil
from pathlib import Path

import pytest
from run_files import synthetic_retrieval

from concept_encoder.scripts.dev.retrieval import draw_figures, main, read_results, render_page

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results" / "retrieval"


def test_the_page_is_fresh():
    assert (DOCS / "RETRIEVAL.md").read_text(encoding="utf-8") == render_page(RESULTS)
    for name in ("bytes", "speed"):
        for theme in ("", "_dark"):
            assert (DOCS / "figures" / f"retrieval_{name}{theme}.png").is_file()


def test_every_result_has_every_baseline():
    wanted = {"run", "random_init", "bm25", "bm25_unstemmed", "words_128", "words_pairs_4096", "random_slots_1024"}
    for result in read_results(RESULTS):
        assert wanted <= {row.ranker for row in result.rows}, result.task


@pytest.mark.slow
def test_a_table_of_what_was_measured(tmp_path):
    shutil.copy(RESULTS / "about.json", tmp_path)
    for task in ("scifact", "needle_1024"):
        synthetic_retrieval(task).save(tmp_path / f"{task}.json")
    page = render_page(tmp_path)
    assert "| run | **0.620** |" in page and "| chance | 0.091 |" in page
    assert "| bm25 | +0.530 (+0.470 to +0.590) |" in page
    assert page.index("## nDCG@10") < page.index("## Needles and passkeys")
    draw_figures(read_results(tmp_path), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"retrieval_{name}{theme}.png" for name in ("bytes", "speed") for theme in ("", "_dark")
    }


def test_no_results_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no results; copy the folder retrieval of a run there"):
        read_results(tmp_path)


@pytest.mark.slow
def test_the_command_writes_page_and_figures(tmp_path, capsys):
    main(["--page", str(tmp_path / "PAGE.md")])
    assert (tmp_path / "PAGE.md").is_file() and len(list((tmp_path / "figures").iterdir())) == 4
