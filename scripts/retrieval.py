"""Find documents by the concepts of a checkpoint, next to BM25 and others.

    concept-encoder retrieval runs/mine --tasks scifact --words owner/prose
    concept-encoder retrieval runs/mine --tasks needle_1024 passkey_1024

Nothing is trained. Writes one JSON file per task into the folder retrieval of the run; the same command goes on where
it was stopped.
"""

from typing import TYPE_CHECKING

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say, suggest

if TYPE_CHECKING:
    from concept_encoder.utils.results import RetrievalResult

TEXTS = "scifact cranfield fairytaleqa_section fairytaleqa_tale squality qmsum_summary qmsum_question wikipedia_long"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
TASKS = (*TEXTS.split(), *(f"{kind}_{length}" for kind in ("needle", "passkey") for length in LENGTHS))


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="run folder or Hub id of a pretrained concept encoder")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    text = f"{', '.join(TEXTS.split())}, needle_N and passkey_N of N = 256 to 32768 words, or your own as a .yaml file"
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", names=TASKS, help=text)
    text = "what words weigh: a file of word weights, or a corpus with a column text, not one that is searched"
    parser.add_argument("--words", help=f"{text} (default: microworld, for needles and passkeys)")
    text = "models of sentence-transformers to lay next to the run"
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help=text)
    parser.add_argument("--output_dir", help="run folder to write to (default: CHECKPOINT, when it is a folder)")
    parser.add_argument("--max_length", type=int, help="tokens after which the run's texts are cut (default: all)")
    parser.add_argument("--data_dir", help="folder with copies of data sets, each in the folder of its id")
    text = "folder of the scores that are kept for the next run (default: in the cache of datasets)"
    parser.add_argument("--cache_dir", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        from concept_encoder.eval.benchmarks.retrieval import RESULT_FOLDER
        from concept_encoder.eval.loading.checkpoints import results_folder

        folder = results_folder(arguments["checkpoint"], arguments.pop("output_dir", None))
        results = ce.retrieval(output_dir=folder, **arguments)
    _print_table(results)
    say(f"\nWritten to {folder / RESULT_FOLDER}.")
    suggest("report", folder)


def _print_table(results: list["RetrievalResult"]) -> None:
    print(f"{'task':<20}{'ranker':<28}{'nDCG@10':>9}  {'95 % interval':<17}{'run less it':>12}{'bytes':>9}")
    for result in results:
        for row in result.rows:
            score = row.scores[result.primary_metric]
            low, high = score.interval or (0.0, 0.0)
            less = "" if score.difference is None else f"{score.difference:+.3f}"
            size = "" if row.bytes_per_text is None else f"{row.bytes_per_text:,.0f}"
            print(
                f"{result.task:<20}{row.ranker:<28}{score.value:>9.3f}  {low:.3f} to {high:.3f}   {less:>12}{size:>9}"
            )
        print(f"{result.task:<20}{'chance':<28}{result.chance[result.primary_metric]:>9.3f}")


if __name__ == "__main__":
    run(main)
