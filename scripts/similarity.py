"""Score the frozen concepts of a checkpoint on similarity tasks.

    python scripts/similarity.py runs/mine --tasks stsb

Cosines without any training and a linear probe, beside the same architecture with random weights. Writes one JSON file
per task into the folder similarity of the run.
"""

from concept_encoder.eval.benchmarks.similarity import RESULT_FOLDER, SIMILARITY_TASKS, similarity_tasks
from concept_encoder.eval.loading.checkpoints import results_folder
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.results import SimilarityResult


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help=f"{', '.join(SIMILARITY_TASKS)}, or your own as a .yaml file",
    )
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--max_length", type=int, default=128, help="tokens per sentence")
    parser.add_argument("--max_train_examples", type=int, help="training pairs to fit on (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="discard existing results first")
    arguments = parser.parse_args(argv)
    with parser.refusing():
        output_dir = results_folder(arguments.checkpoint, arguments.output_dir)
        results = similarity_tasks(
            arguments.checkpoint,
            arguments.tasks,
            output_dir,
            max_length=arguments.max_length,
            max_train_examples=arguments.max_train_examples,
            overwrite=arguments.overwrite,
        )
    _print_table(results)
    say(f"\nWritten to {output_dir / RESULT_FOLDER}.")
    parser.suggest("report.py", output_dir)


def _print_table(results: list[SimilarityResult]) -> None:
    print(f"{'task':<24}{'method':<24}{'metric':<10}{'score':>9}  {'95 % interval':<17}{'untrained':>11}")
    for result in results:
        for row in result.rows:
            interval = "undefined" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
            untrained = None if row.random_init is None else row.random_init.value
            numbers = f"{_number(row.value)}  {interval:<17}  {_number(untrained)}"
            print(f"{result.task:<24}{row.method:<24}{row.metric:<10}{numbers}")


def _number(value: float | None) -> str:
    return f"{'undefined' if value is None else f'{value:.3f}':>9}"


if __name__ == "__main__":
    run(main)
