"""Compare recipes on equal data, steps and seeds: python scripts/compare.py prose_small tsdae prefix --output_dir DIR

Trains, analyses, scores and fine-tunes each, and prints one table, kept as comparison.json and comparison.md in DIR.
A killed call goes on where it was when it is made again. Any field of a recipe that follows as --field value holds for
all.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.comparison import COMPARISON_FILE, compare, format_comparison
from concept_encoder.eval.protocols import PROTOCOLS, find_protocol
from concept_encoder.trainers.recipes import Recipe, find_recipe, load_recipe, recipe_parser

RECIPES = Path(__file__).parent / "recipes"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipes", nargs="+", help="names in scripts/recipes, or paths")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of training, for each recipe (42)")
    parser.add_argument("--frozen", nargs="*", default=["stsb"], help="tasks to score frozen concepts on (stsb)")
    parser.add_argument("--tasks", nargs="*", default=["stsb"], help="benchmarks to fine-tune on (stsb)")
    parser.add_argument("--protocol", default="tuned", help=f"of the fine-tuning: {', '.join(PROTOCOLS)} (tuned)")
    arguments, overrides = parser.parse_known_args(argv)
    fields = recipe_parser(prog=parser.prog, usage="compare.py RECIPES... --output_dir DIR --field value ...")

    try:
        paths = [find_recipe(name, RECIPES) for name in arguments.recipes]
        by_name = {path.stem: path for path in paths}

        def recipe_of(name: str, seed: int, folder: Path) -> Recipe:
            own = ["--output_dir", str(folder), "--seed", str(seed)]
            return load_recipe(by_name[name], [*overrides, *own], fields)

        result = compare(
            recipe_of,
            [path.stem for path in paths],
            arguments.seeds,
            arguments.output_dir,
            arguments.frozen,
            arguments.tasks,
            find_protocol(arguments.protocol),
        )
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        parser.error(str(error))
    print(f"\n{format_comparison(result)}\nWritten to {arguments.output_dir / COMPARISON_FILE}.")


if __name__ == "__main__":
    main()
