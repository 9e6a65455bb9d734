"""Make a training corpus that no benchmark has leaked into.

    concept-encoder build-corpus sentence_pairs --output_dir runs/pairs

Joins the training rows of the sources that a plan (by name, or as a .yaml file) lists, without those that share a
sentence, or nearly one, with the validation or test rows of the benchmarks it names.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import Command, run, say, suggest

PLANS = sorted(path.stem for path in (Path(__file__).parent / "corpora").glob("*.yaml"))


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("plan", names=PLANS, help=f"path of a .yaml file, or one of {', '.join(PLANS)}")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    folder = arguments["output_dir"]
    with parser.refusing():
        from concept_encoder.eval.benchmarks.decontamination import format_contamination

        result = ce.build_corpus(**arguments)
    rows = sum(row.kept for row in result.sources)
    print(format_contamination(result))
    say(f"{rows:,} rows written to {folder}.")
    words = ["--vocab_size=8192", f"--output_dir={folder}-vocabulary", "--validation_size=0.05"]
    suggest("train-tokenizer", *words, f"--dataset_name={folder}", "--tokenizer_name=google-bert/bert-base-uncased")


if __name__ == "__main__":
    run(main)
