"""Render docs/SCALING.md anew, the arithmetic of training on 1 to 64 GPUs.

    python scripts/dev/scaling.py

To be run after the model's cost or an assumption in scripts/dev/scaling_page.py has changed; a test compares the page
with a fresh rendering.
"""

from pathlib import Path

from concept_encoder.scripts.dev.scaling_page import render_page
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically

PAGE = Path(__file__).resolve().parents[2] / "docs" / "SCALING.md"


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="to write (default: docs/SCALING.md)")
    arguments = parser.parse_args(argv)
    write_atomically(arguments.page, render_page())
    say(f"Written to {arguments.page}.")


if __name__ == "__main__":
    run(main)
