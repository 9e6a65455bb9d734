"""Watch a long pretraining run from outside.

    python scripts/dev/soak.py microworld --hours 2 --output_dir runs/long

Trains the recipe in a process of its own, with evaluation and checkpoints, and looks at its memory, file handles and
threads; then ends it with SIGTERM. Writes the result and the section "Long runs" of the page. Fields of the recipe may
follow.
"""

import os
import sys
from pathlib import Path

from concept_encoder.scripts.dev.soak_watch import refresh_page, render_section, soak
from concept_encoder.trainers.recipes import field_words, fields_help
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically, write_json
from concept_encoder.utils.untrusted import read_object

SCRIPTS = Path(__file__).resolve().parents[1]
DOCS = SCRIPTS.parent / "docs"
ENDLESS = ["--max_steps", "1000000000", "--lr_scheduler_type", "constant_with_warmup"]


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("recipe", nargs="?", help="name in scripts/recipes, or path; not with --render")
    parser.add_argument("--output_dir", type=Path, help="new folder of the run; not with --render")
    parser.add_argument("--hours", type=float, default=2.0, help="how long")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    parser.add_argument(
        "--result",
        type=Path,
        default=DOCS / "results" / "soak.json",
        help="JSON file (default: docs/results/soak.json)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        default=DOCS / "RELIABILITY.md",
        help="whose section to write (default: docs/RELIABILITY.md)",
    )
    parser.add_argument("--render", action="store_true", help="run nothing, write the section from --result anew")
    parser.accept(field_words(), fields_help)
    arguments = parser.parse_args(argv)
    if arguments.render == (arguments.recipe is not None and arguments.output_dir is not None):
        parser.error("give RECIPE and --output_dir, or --render and neither")
    with parser.refusing():
        if not arguments.render:
            own = ["--output_dir", str(arguments.output_dir), "--disable_tqdm", "true"]
            command = [
                sys.executable,
                str(SCRIPTS / "pretrain.py"),
                arguments.recipe,
                *ENDLESS,
                *arguments.overrides,
                *own,
            ]
            result = soak(command, arguments.output_dir, arguments.hours, arguments.every)
            write_json(arguments.result, result)
        result = read_object(arguments.result)
        name = Path(os.path.relpath(arguments.result, arguments.page.parent)).as_posix()
        section = render_section(result, name)
        write_atomically(arguments.page, refresh_page(arguments.page.read_text(encoding="utf-8"), section))
    print(section)
    say(f"Written to {arguments.result} and {arguments.page}.")


if __name__ == "__main__":
    run(main)
