"""Fine-tune a checkpoint on benchmarks.

    concept-encoder finetune runs/mine --tasks mrpc stsb --protocol tuned

Writes one JSON file per task into the folder finetune of the run and prints the scores next to chance, a bag of tokens
and the same architecture without pretraining. Type a killed command again and it continues where it was. Fields of the
protocol that follow replace its values, and are then part of its name in the results.
"""

from typing import TYPE_CHECKING

import concept_encoder as ce
from concept_encoder.utils.command_line import PROTOCOL_FIELDS, Command, run, say, suggest

if TYPE_CHECKING:
    from concept_encoder.utils.results import FinetuneResult

TASKS = (
    "mrpc stsb cola rte wnli sst2 qnli qqp mnli_matched mnli_mismatched paws sick_relatedness sick_entailment "
    "microworld_similarity microworld_paraphrase microworld_entailment "
    "novel_authors article_bias movie_reviews_long hyperpartisan"
).split()
PROTOCOLS = ("reference", "tuned", "bi_encoder", "frozen", "quick")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    text = f"{', '.join(TASKS)}, or your own as a .yaml file"
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", names=TASKS, help=text)
    text = f"hyper-parameters: {', '.join(PROTOCOLS)}"
    parser.add_argument("--protocol", required=True, names=PROTOCOLS, help=text)
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--overwrite", action="store_true", help="discard existing results and their pieces first")
    parser.add_argument("--save_model", action="store_true", help="keep the fine-tuned model of the first seed")
    parser.accept(PROTOCOL_FIELDS)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        from concept_encoder.eval.benchmarks.finetuning import RESULT_FOLDER
        from concept_encoder.eval.loading.checkpoints import results_folder

        protocol = ce.Protocol.load(arguments.pop("protocol"), **parser.fields())
        folder = results_folder(arguments["checkpoint"], arguments.pop("output_dir", None))
        results = ce.finetune(protocol=protocol, output_dir=folder, **arguments)
    _print_table(results)
    say(f"\nWritten to {folder / RESULT_FOLDER}.")
    suggest("report", folder)


def _print_table(results: list["FinetuneResult"]) -> None:
    from concept_encoder.eval.metrics.chance import task_words

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
