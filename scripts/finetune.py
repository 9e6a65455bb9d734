"""Fine-tune a checkpoint on benchmarks.

    python scripts/finetune.py runs/mine --tasks mrpc stsb --protocol tuned

Writes one JSON file per task into the folder finetune of the run and prints the scores beside chance, a bag of tokens
and the same architecture without pretraining. A killed call goes on where it was when it is made again. Fields of the
protocol that follow replace its values, and are then part of its name in the results.
"""

from concept_encoder.eval.benchmarks.finetuning import RESULT_FOLDER, finetune_tasks
from concept_encoder.eval.benchmarks.protocols import PROTOCOLS, find_protocol, protocol_parser
from concept_encoder.eval.benchmarks.registry import BENCHMARKS
from concept_encoder.eval.loading.checkpoints import results_folder
from concept_encoder.eval.metrics.chance import task_words
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.results import FinetuneResult


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help=f"{', '.join(BENCHMARKS)}, or your own as a .yaml file",
    )
    parser.add_argument("--protocol", required=True, help=f"hyper-parameters: {', '.join(PROTOCOLS)}")
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--overwrite", action="store_true", help="discard existing results and their pieces first")
    parser.add_argument("--save_model", action="store_true", help="keep the fine-tuned model of the first seed")
    fields = protocol_parser(parser.prog)
    parser.accept(fields)
    arguments = parser.parse_args(argv)
    with parser.refusing():
        changes = vars(fields.parse_args(arguments.overrides))
        protocol = find_protocol(arguments.protocol).override(**changes)
        output_dir = results_folder(arguments.checkpoint, arguments.output_dir)
        results = finetune_tasks(
            arguments.checkpoint,
            arguments.tasks,
            protocol,
            output_dir,
            overwrite=arguments.overwrite,
            save_model=arguments.save_model,
        )
    _print_table(results)
    say(f"\nWritten to {output_dir / RESULT_FOLDER}.")
    parser.suggest("report.py", output_dir)


def _print_table(results: list[FinetuneResult]) -> None:
    width = max(len(result.task) for result in results)
    titles = f"{'score':>9}  {'95 % interval':>15}  {'chance':>9}  {'bag':>9}  {'untrained':>9}"
    print(f"{'task':<{width}}  {'metric':<20}  {titles}")
    for result in results:
        for metric, score in result.scores.items():
            interval = "undefined" if score.interval is None else f"{score.interval[0]:.3f} - {score.interval[1]:.3f}"
            controls = (score.controls[name].value for name in ("bag_of_tokens", "random_init"))
            cells = [_number(score.value), f"{interval:>15}", *map(_number, (score.chance, *controls))]
            print(f"{result.task:<{width}}  {metric:<20}  {'  '.join(cells)}")
    print()
    for result in results:
        print(f"{result.task}: {task_words(result)}")


def _number(value: float | None) -> str:
    return f"{'undefined':>9}" if value is None else f"{value:>9.3f}"


if __name__ == "__main__":
    run(main)
