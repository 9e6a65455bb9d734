"""Compare recipes on equal data, steps and seeds.

    python scripts/compare.py prose_small tsdae --output_dir runs/compared

Trains, analyses, scores and fine-tunes each, and prints one table, kept as comparison.json and comparison.md in the
folder. A killed call goes on where it was when it is made again. Fields of a recipe that follow hold for all of them.
"""

import sys
from pathlib import Path

from concept_encoder.eval.benchmarks.comparison import (
    COMPARISON_FILE,
    TABLE_FILE,
    compare,
    format_comparison,
    format_plans,
    plan_comparison,
)
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS, find_protocol
from concept_encoder.trainers.recipes import Recipe, find_recipe, load_recipe, recipe_parser
from concept_encoder.utils.command_line import Command, run, say

RECIPES = Path(__file__).parent / "recipes"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Command(__file__, __doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="two or more, names in scripts/recipes or paths")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of training, for each recipe")
    parser.add_argument("--frozen", nargs="*", default=["stsb"], metavar="TASK", help="to score frozen concepts on")
    parser.add_argument("--tasks", nargs="*", default=["stsb"], metavar="TASK", help="benchmarks to fine-tune on")
    parser.add_argument("--protocol", default="apart", help=f"of the fine-tuning: {', '.join(PROTOCOLS)}")
    parser.add_argument("--dry_run", action="store_true", help="print size, steps and hours of the training, and stop")
    fields = recipe_parser(parser.prog)
    parser.accept(fields, besides=("seed",))
    arguments = parser.parse_args(argv)
    with parser.refusing():
        paths = [find_recipe(name, RECIPES) for name in arguments.recipes]
        by_name = {path.stem: path for path in paths}

        def recipe_of(name: str, seed: int, folder: Path) -> Recipe:
            own = ["--output_dir", str(folder), "--seed", str(seed)]
            return load_recipe(by_name[name], [*arguments.overrides, *own], fields)

        runs = (recipe_of, [path.stem for path in paths], arguments.seeds, arguments.output_dir)
        protocol = find_protocol(arguments.protocol)
        if arguments.dry_run:
            print(format_plans(plan_comparison(*runs)))
            parser.suggest_again(argv)
            return
        result = compare(*runs, arguments.frozen, arguments.tasks, protocol)
    print(format_comparison(result), end="")
    say(f"Written to {arguments.output_dir}: {COMPARISON_FILE}, {TABLE_FILE}.")
    parser.suggest(
        "report.py", *(arguments.output_dir / path.stem / f"seed-{arguments.seeds[0]}" for path in paths[:2])
    )


if __name__ == "__main__":
    run(main)
