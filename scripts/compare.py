"""Compare recipes, or variants of one, on equal data, steps and seeds.

    concept-encoder compare objectives --output_dir runs/objectives
    concept-encoder compare prose_small tsdae --output_dir runs/compared

Trains, analyses, scores and fine-tunes each, and prints one table, kept as comparison.json and comparison.md in the
folder. Type a killed command again and it continues where it was. Fields of a recipe that follow apply to all of them.
"""

import sys
from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, say, suggest

NAMES = sorted(
    path.stem for kind in ("comparisons", "recipes") for path in Path(__file__).parent.glob(f"{kind}/*.yaml")
)


def command() -> Command:
    parser = Command(__file__, __doc__)
    text = "a comparison, by name or as a .yaml file with `base` and `variants`; or two recipes or more"
    parser.add_argument("recipes", nargs="+", metavar="COMPARISON", names=NAMES, help=text)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of the comparison (default: all)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", help="of training, for each recipe (default: 42)")
    text = "to score frozen concepts on (default: stsb)"
    parser.add_argument("--frozen", nargs="*", metavar="TASK", help=text)
    text = "benchmarks to fine-tune on (default: stsb)"
    parser.add_argument("--tasks", nargs="*", metavar="TASK", help=text)
    parser.add_argument("--protocol", help="of the fine-tuning (default: bi_encoder)")
    parser.add_argument("--dry_run", action="store_true", help="print size, steps and hours of the training, and stop")
    parser.accept(RECIPE_FIELDS)
    return parser


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = command()
    arguments = parser.typed(argv)
    folder = arguments["output_dir"]
    dry_run = arguments.pop("dry_run", False)
    with parser.refusing():
        from concept_encoder.eval.benchmarks import comparison

        fields = parser.fields()
        if dry_run:
            scored = ("frozen", "tasks", "protocol")
            planned = {name: value for name, value in arguments.items() if name not in scored}
            print(comparison.format_plans(comparison.plan_comparison(**planned, **fields)))
            parser.suggest_again(argv)
            return
        result = ce.compare(**arguments, **fields)
    print(comparison.format_comparison(result), end="")
    say(f"Written to {folder}: {comparison.COMPARISON_FILE}, {comparison.TABLE_FILE}.")
    first = result.rows[0].seed
    names = list(dict.fromkeys(row.recipe for row in result.rows))[:2]
    suggest("report", *(folder / name / f"seed-{first}" for name in names))


if __name__ == "__main__":
    run(main)
