"""Measure speed and write the result, the page and its figures.

    python scripts/dev/benchmark.py
    python scripts/dev/benchmark.py --quick --result trial/speed.json \\
        --page trial/SPEED.md

Takes about a quarter of an hour on two quiet cores. What else runs on the machine disturbs it: the page has the load.
"""

import json
import os
from argparse import Namespace
from pathlib import Path

import torch

from concept_encoder.scripts.dev.speed.cases import QUICK, Plan
from concept_encoder.scripts.dev.speed.measure import GROUPS, default_groups, measure
from concept_encoder.scripts.dev.speed.pages import draw_figures, render_page
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import write_atomically, write_json

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    groups = f"of {', '.join(GROUPS)} (all that fit the device, except padding, which needs MRPC from the Hub)"
    parser.add_argument("--only", nargs="+", metavar="GROUP", help=groups)
    parser.add_argument(
        "--result",
        type=Path,
        default=DOCS / "results" / "speed.json",
        help="JSON file (default: docs/results/speed.json)",
    )
    parser.add_argument(
        "--page", type=Path, default=DOCS / "SPEED.md", help="figures go next to it (default: docs/SPEED.md)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns, besides one that is thrown away")
    parser.add_argument("--threads", type=int, help="of torch (default: one per core)")
    parser.add_argument("--device", default=default_device, help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as a trial; needs --result and --page")
    parser.add_argument("--render", action="store_true", help="measure nothing, render the page of --result again")
    arguments = parser.parse_args(argv)
    ours = {parser.get_default("result"), parser.get_default("page")}
    if arguments.quick and ours & {arguments.result, arguments.page}:
        parser.error("--quick would overwrite the measured page with toy figures; give --result and --page")
    with parser.refusing():
        if not arguments.render:
            _measure(arguments)
        result = json.loads(arguments.result.read_text(encoding="utf-8"))
    draw_figures(result, arguments.page.parent / "figures")
    name = Path(os.path.relpath(arguments.result, arguments.page.parent)).as_posix()
    write_atomically(arguments.page, render_page(result, name))
    say(f"Written to {arguments.result} and {arguments.page}.")


def _measure(arguments: Namespace) -> None:
    measure(
        QUICK if arguments.quick else Plan(),
        arguments.only or default_groups(arguments.device),
        arguments.repeats,
        arguments.device,
        arguments.threads,
        save=lambda result: write_json(arguments.result, result),
    )


if __name__ == "__main__":
    run(main)
