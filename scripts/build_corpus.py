"""Make a training corpus that no benchmark has leaked into.

    python scripts/build_corpus.py sentence_pairs --output_dir runs/pairs

Joins the training rows of the sources that a plan (a name in scripts/corpora, or a path) lists, without those that
share a sentence, or nearly one, with the validation or test rows of the benchmarks it names.
"""

from pathlib import Path

from concept_encoder.eval.benchmarks.decontamination import build_corpus, format_contamination, load_plan
from concept_encoder.trainers.recipes import find_recipe
from concept_encoder.utils.command_line import Command, run, say

PLANS = Path(__file__).parent / "corpora"


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("plan", help="name in scripts/corpora, or path")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    arguments = parser.parse_args(argv)
    with parser.refusing():
        result = build_corpus(load_plan(find_recipe(arguments.plan, PLANS)), arguments.output_dir)
    rows = sum(row.kept for row in result.sources)
    print(format_contamination(result))
    say(f"{rows:,} rows written to {arguments.output_dir}.")
    words = ["--vocab_size=8192", f"--output_dir={arguments.output_dir}-vocabulary", "--validation_size=0.05"]
    words += [f"--dataset_name={arguments.output_dir}", "--tokenizer_name=google-bert/bert-base-uncased"]
    parser.suggest("train_tokenizer.py", *words)


if __name__ == "__main__":
    run(main)
