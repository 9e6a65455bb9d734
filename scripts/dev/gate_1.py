"""Render docs/GATE_1.md and its figure anew from the reports in docs/results.

    python scripts/dev/gate_1.py

To be run after a report, the page or the figure has changed; a test compares the page with a fresh rendering.
"""

from pathlib import Path

from concept_encoder.scripts.dev.gate_1_page import draw_figure, render_page
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument(
        "--page", type=Path, default=DOCS / "GATE_1.md", help="figures go beside it (default: docs/GATE_1.md)"
    )
    arguments = parser.parse_args(argv)
    sources = DOCS / "results" / "gate_1", DOCS / "results" / "objectives_20m.comparison.json"
    with parser.refusing():
        page = render_page(*sources)
        draw_figure(*sources, arguments.page.parent / "figures")
    write_atomically(arguments.page, page)
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
