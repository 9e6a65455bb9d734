"""Render the cards in model_cards/ again from the reports in docs/results/.

    python scripts/dev/cards.py

To be run after the template, the rendering or a report has changed; a test compares the cards with a fresh rendering.
"""

from pathlib import Path

from concept_encoder.eval.hub.card import render_cards
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=ROOT / "model_cards", help="folder to write into (default: model_cards)"
    )
    arguments = parser.parse_args(argv)
    for name, card in render_cards(ROOT / "docs" / "results").items():
        path = arguments.output_dir / f"{name}.md"
        write_atomically(path, card)
        say(f"Written to {path}.")


if __name__ == "__main__":
    run(main)
