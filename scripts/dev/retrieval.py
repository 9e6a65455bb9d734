"""Render docs/RETRIEVAL.md and its figures from the results of `concept-encoder retrieval` in docs/results/retrieval/.

    python scripts/dev/retrieval.py

What the run in those results is stands in about.json next to them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from concept_encoder.eval.report.plots import THEMES, figure_file
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically
from concept_encoder.utils.results import RankerRow, RetrievalResult
from concept_encoder.utils.untrusted import read_object

DOCS = Path(__file__).resolve().parents[2] / "docs"
ORDER = (
    "scifact cranfield fairytaleqa_section fairytaleqa_tale squality qmsum_summary qmsum_question wikipedia_long"
).split()
FAMILIES: Mapping[str, tuple[str, str, Callable[[str], bool]]] = {  # label -> colour, marker, which rankers
    "this run": ("main", "o", lambda name: name == "run"),
    "random twin": ("chance", "o", lambda name: name == "random_init"),
    "word pieces": ("second", "s", lambda name: name.startswith(("words_1", "words_4"))),
    "word pieces and pairs": ("second", "D", lambda name: name.startswith("words_pairs_")),
    "random slots": ("good", "^", lambda name: name.startswith("random_slots")),
    "static tokens": ("muted", "v", lambda name: name.startswith("token_")),
    "other encoders": ("text", "P", lambda name: name.startswith("all-MiniLM")),
}
BESIDE = "bm25 words_pairs_4096 random_slots_4096 token_mean random_init bm25_run_ranks".split()
BM25 = ("bm25", "bm25_unstemmed", "bm25_word_pieces")


def read_results(folder: Path) -> list[RetrievalResult]:
    """In the order of the registry; ValueError where there are none."""
    found = {path.stem: RetrievalResult.load(path) for path in folder.glob("*.json") if path.stem != "about"}
    if not found:
        raise ValueError(f"{folder} holds no results; copy the folder retrieval of a run there")
    rest = sorted(set(found) - set(ORDER), key=lambda name: (name.partition("_")[0], found[name].longest_document))
    return [found[name] for name in (*ORDER, *rest) if name in found]


def _texts(results: Sequence[RetrievalResult]) -> list[RetrievalResult]:
    return [result for result in results if result.task in ORDER]


def _means(results: Sequence[RetrievalResult]) -> dict[str, tuple[float, RankerRow, float | None]]:
    """Ranker of every task -> its mean nDCG@10, a row, and words that it reads in a second."""
    tables = [{row.ranker: row for row in result.rows} for result in results]
    words = sum(result.documents * result.words_per_document for result in results)
    found = {}
    for name in tables[0]:
        rows = [table[name] for table in tables if name in table]
        if len(rows) == len(tables):
            scores = [row.scores[result.primary_metric] for row, result in zip(rows, results, strict=True)]
            seconds = sum(row.seconds or 0.0 for row in rows)
            quality = mean(score.value or 0.0 for score in scores)
            found[name] = quality, rows[0], words / seconds if seconds else None
    return found


def draw_figures(results: Sequence[RetrievalResult], folder: Path) -> None:
    """Quality against bytes, and against speed, of all rankers that every task of texts has."""
    means = _means(_texts(results))
    by_bytes = {name: (row.bytes_per_text, quality) for name, (quality, row, _) in means.items()}
    by_speed = {name: (speed, quality) for name, (quality, _, speed) in means.items()}
    for theme in THEMES:
        suffix = "" if theme == "light" else f"_{theme}"
        _draw(by_bytes, "bytes kept of a document", folder / f"retrieval_bytes{suffix}.png", theme)
        _draw(by_speed, "words read in a second, one thread", folder / f"retrieval_speed{suffix}.png", theme)


def _draw(points: Mapping[str, tuple[float | None, float]], label: str, path: Path, theme: str) -> None:
    with figure_file(path, theme, height=4.4) as (figure, colours):
        axes = figure.subplots()
        for family, (colour, marker, holds) in FAMILIES.items():
            found = sorted(point for name, point in points.items() if holds(name) and point[0])
            if found:
                line = "-" if label.startswith("bytes") and len(found) > 2 else "none"
                axes.plot(*zip(*found, strict=True), color=colours[colour], marker=marker, ms=6, ls=line, label=family)
        lexical = [points[name] for name in BM25 if name in points]
        if lexical[0][0]:
            axes.plot(*zip(*lexical, strict=True), color=colours["text"], marker="*", ls="none", ms=9, label="BM25")
        else:  # its index has no size for a document
            best = max(quality for _, quality in lexical)
            axes.axhline(best, color=colours["text"], ls=":", lw=1.2, label="BM25, the best of three")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("nDCG@10, mean of the tasks")
        figure.legend(loc="outside lower center", ncols=2)


def _score_table(results: Sequence[RetrievalResult]) -> list[str]:
    names = list(dict.fromkeys(row.ranker for result in results for row in result.rows))
    tables = [{row.ranker: row.scores[result.primary_metric] for row in result.rows} for result in results]
    lines = [
        f"| | {' | '.join(result.task.replace('_', ' ') for result in results)} |",
        f"| --- | {' | '.join('---:' for _ in results)} |",
    ]
    best = [max(score.value or 0.0 for score in table.values()) for table in tables]
    for name in names:
        cells = []
        for table, top in zip(tables, best, strict=True):
            value = table[name].value if name in table else None
            cells.append("–" if value is None else f"**{value:.3f}**" if value == top else f"{value:.3f}")
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    chance = " | ".join(f"{result.chance[result.primary_metric]:.3f}" for result in results)
    return [*lines, f"| chance | {chance} |"]


def _against(results: Sequence[RetrievalResult], names: Sequence[str]) -> list[str]:
    lines = [f"| run less | {' | '.join(result.task.replace('_', ' ') for result in results)} |"]
    lines.append(f"| --- | {' | '.join('---:' for _ in results)} |")
    for name in names:
        cells = []
        for result in results:
            row = next((row for row in result.rows if row.ranker == name), None)
            score = row and row.scores[result.primary_metric]
            if not score or score.difference is None or score.difference_interval is None:
                cells.append("–")
                continue
            low, high = score.difference_interval
            cells.append(f"{score.difference:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


def render_page(folder: Path) -> str:
    results, about = read_results(folder), read_object(folder / "about.json")
    texts = _texts(results)
    generated = [result for result in results if result not in texts]
    described = {row.ranker: row.description for result in results for row in result.rows}
    sizes = [
        f"| {result.task.replace('_', ' ')} | {result.documents:,} | {result.words_per_document:,.0f} | "
        f"{result.longest_document:,} | {result.queries:,} |"
        for result in results
    ]

    def picture(name: str, words: str) -> str:
        dark, light = (f"figures/retrieval_{name}{suffix}.png" for suffix in ("_dark", ""))
        return (
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{words}" src="{light}" width="500"></picture>'
        )

    lines = [
        "# Retrieval",
        "",
        "Rendered by `python scripts/dev/retrieval.py` from `docs/results/retrieval`; a test keeps it fresh.",
        "",
        *(line for paragraph in about["paragraphs"] for line in (paragraph, "")),
        "## nDCG@10",
        "",
        *_score_table(texts),
        "",
        "Exact search over the whole corpus, no training on any of these sets. What each row is:",
        "",
        *(f"- **{name.replace('_', ' ')}**: {text}." for name, text in described.items()),
        "",
        "## Differences, with 95 % intervals over queries",
        "",
        *_against(texts, BESIDE),
        "",
        "## Quality against bytes, and against time",
        "",
        picture("bytes", "Mean nDCG@10 against the bytes that are kept of a document"),
        "",
        picture("speed", "Mean nDCG@10 against the words that are read in a second"),
        "",
        f"Means over {len(texts)} tasks of texts. {about['speed']}",
        "",
    ]
    if generated:
        lines += ["## Needles and passkeys", "", about["needles"], "", *_score_table(generated), ""]
    lines += [
        "## The sets",
        "",
        "| | documents | words each | longest | queries |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join([*lines, *sizes, ""])


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument(
        "--page", type=Path, default=DOCS / "RETRIEVAL.md", help="figures go next to it (default: docs/RETRIEVAL.md)"
    )
    arguments = parser.parse_args(argv)
    folder = DOCS / "results" / "retrieval"
    with parser.refusing():
        page = render_page(folder)
        draw_figures(read_results(folder), arguments.page.parent / "figures")
    write_atomically(arguments.page, page)
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
