"""Compare recipes on equal data, steps and seeds.

    python scripts/compare.py objectives --output_dir runs/objectives
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
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS
from concept_encoder.trainers.recipes import field_words, fields_from_words, fields_help
from concept_encoder.utils.command_line import Command, run, say


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Command(__file__, __doc__)
    text = "a comparison, by name or as a .yaml file with `base` and `variants`; or two recipes or more"
    parser.add_argument("recipes", nargs="+", metavar="COMPARISON", help=text)
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="of the comparison (default: all)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of training, for each recipe")
    parser.add_argument("--frozen", nargs="*", default=["stsb"], metavar="TASK", help="to score frozen concepts on")
    parser.add_argument("--tasks", nargs="*", default=["stsb"], metavar="TASK", help="benchmarks to fine-tune on")
    parser.add_argument("--protocol", default="apart", help=f"of the fine-tuning: {', '.join(PROTOCOLS)}")
    parser.add_argument("--dry_run", action="store_true", help="print size, steps and hours of the training, and stop")
    parser.accept(field_words(), fields_help, besides=("seed", "output_dir"))
    arguments = parser.parse_args(argv)
    with parser.refusing():
        what = arguments.recipes if len(arguments.recipes) > 1 else arguments.recipes[0]
        fields = fields_from_words(arguments.overrides)
        runs = {"variants": arguments.variants, "seeds": arguments.seeds, **fields}
        if arguments.dry_run:
            print(format_plans(plan_comparison(what, arguments.output_dir, **runs)))
            parser.suggest_again(argv)
            return
        scored = {name: getattr(arguments, name) for name in ("frozen", "tasks", "protocol")}
        result = compare(what, arguments.output_dir, **scored, **runs)
    print(format_comparison(result), end="")
    say(f"Written to {arguments.output_dir}: {COMPARISON_FILE}, {TABLE_FILE}.")
    first = list(dict.fromkeys(row["recipe"] for row in result["rows"]))[:2]
    parser.suggest("report.py", *(arguments.output_dir / name / f"seed-{arguments.seeds[0]}" for name in first))


if __name__ == "__main__":
    run(main)
