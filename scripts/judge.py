"""Judge any encoder, one or two side by side, or scores that others wrote.

    concept-encoder judge BAAI/bge-small-en-v1.5 --output_dir judged
    concept-encoder judge runs/mine BAAI/bge-small-en-v1.5
    concept-encoder judge --scores results/STSBenchmark.json

CHECKPOINT is a folder or Hub id: of this package, or of any model of sentence-transformers or transformers.
Scores stand next to chance, a bag of the model's own tokens, random weights, its token table and shuffled words;
behaviour, geometry and weights are checked. Meant for ten minutes on 2 cores with 30 million parameters, which was
not timed whole.

Exit code: 0 PASS, 1 FAIL, 2 INCONCLUSIVE. Bad input exits with 2 as well, with one line on stderr.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say

TASKS = ("stsb", "sick_relatedness", "microworld_similarity")


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("model", nargs="?", metavar="CHECKPOINT", help="folder or Hub id of an encoder")
    parser.add_argument("other", nargs="?", metavar="OTHER_CHECKPOINT", help="another one, to lay next to it")
    parser.add_argument("--revision", help="commit, branch or tag of CHECKPOINT on the Hub")
    text = f"{', '.join(TASKS)}, or your own as a .yaml file (default: stsb sick_relatedness)"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", names=TASKS, help=text)
    parser.add_argument("--max_examples", type=int, help="pairs scored of a task (default: 1000)")
    text = "scores to judge: results of mteb, predictions of finetune, trainer_state.json, or your own as JSON"
    parser.add_argument("--scores", nargs="+", type=Path, metavar="FILE", help=text)
    parser.add_argument("--output_dir", type=Path, help="folder of judge.json, judge.md and judge.html")
    parser.add_argument("--seed", type=int, help="of the draw of pairs (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        from concept_encoder.eval.judging.judge import judged_table
        from concept_encoder.eval.report.gates import EXIT_CODES

        result = ce.judge(**arguments)
    print(judged_table(result))
    if "output_dir" in arguments:
        say(f"\nWritten to {arguments['output_dir']}: judge.html, judge.md, judge.json.")
    else:
        say("\nNothing was written; --output_dir DIR keeps the report as a page.")
    raise SystemExit(EXIT_CODES[result.verdict.overall])


if __name__ == "__main__":
    run(main)
