"""Score the frozen concepts of a checkpoint on similarity tasks.

    concept-encoder similarity runs/mine --tasks stsb

Cosines without any training and a linear probe, next to the same architecture with random weights. Writes one JSON
file per task into the folder similarity of the run.
"""

from typing import TYPE_CHECKING

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say, suggest

if TYPE_CHECKING:
    from concept_encoder.utils.results import SimilarityResult

TASKS = ("stsb", "sick_relatedness", "sts12", "sts13", "sts14", "sts15", "microworld_similarity")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    text = f"{', '.join(TASKS)}, or your own as a .yaml file"
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", names=TASKS, help=text)
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--max_length", type=int, help="tokens per sentence (default: 128)")
    parser.add_argument("--max_train_examples", type=int, help="training pairs to fit on (default: all)")
    text = "concepts to read a text into, several to compare: quality, bytes and time by size"
    parser.add_argument("--num_concepts", nargs="+", type=int, help=text)
    parser.add_argument("--dims", nargs="+", type=int, help="numbers of each concept to keep, likewise")
    parser.add_argument("--overwrite", action="store_true", help="discard existing results first")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        from concept_encoder.eval.benchmarks.similarity import RESULT_FOLDER
        from concept_encoder.eval.loading.checkpoints import results_folder

        folder = results_folder(arguments["checkpoint"], arguments.pop("output_dir", None))
        results = ce.similarity(output_dir=folder, **arguments)
    _print_table(results)
    _print_sizes(results)
    say(f"\nWritten to {folder / RESULT_FOLDER}.")
    suggest("report", folder)


def _print_table(results: list["SimilarityResult"]) -> None:
    print(f"{'task':<24}{'method':<24}{'metric':<10}{'score':>9}  {'95 % interval':<17}{'untrained':>11}")
    for result in results:
        for row in result.rows:
            interval = "undefined" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
            untrained = None if row.random_init is None else row.random_init.value
            numbers = f"{_number(row.value)}  {interval:<17}  {_number(untrained)}"
            print(f"{result.task:<24}{row.method:<24}{row.metric:<10}{numbers}")


def _print_sizes(results: list["SimilarityResult"]) -> None:
    if any(result.sizes for result in results):
        heads = "".join(f"{name:>9}" for name in ("concepts", "numbers", "bytes", "score"))
        print(f"\n{'task':<24}{heads}  {'95 % interval':<17}{'ms a text':>11}")
    for result in results:
        for row in result.sizes:
            interval = "undefined" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
            size = f"{row.num_concepts:>9}{row.dim:>9}{row.bytes:>9}"
            print(f"{result.task:<24}{size}{_number(row.value)}  {interval:<17}{1000 * row.seconds:>11.2f}")


def _number(value: float | None) -> str:
    return f"{'undefined' if value is None else f'{value:.3f}':>9}"


if __name__ == "__main__":
    run(main)
