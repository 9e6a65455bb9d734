"""Learn a small vocabulary from a corpus.

    concept-encoder train-tokenizer --vocab_size 8192 \\
        --output_dir runs/vocabulary --dataset_name "texts/*.txt" \\
        --tokenizer_name google-bert/bert-base-uncased

The kind of tokenizer, its normalisation and its special tokens are those of --tokenizer_name. For runs on a CPU, where
most of a step is the product with the vocabulary. Fields of the corpus follow.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, say, suggest


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    parser.add_argument("--vocab_size", type=int, required=True, help="entries, special tokens included")
    parser.add_argument(
        "--characters", type=int, help="that may be in words, the most frequent (default: at most 1,000)"
    )
    parser.accept(RECIPE_FIELDS, ["data"])
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    folder = arguments["output_dir"]
    with parser.refusing():
        fields = parser.fields()
        tokenizer = ce.train_tokenizer(ce.DataArguments(**fields), **arguments)
    say(f"{len(tokenizer)} entries written to {folder}.")
    corpus = [
        f"--{name}={value}" for name, value in fields.items() if name not in ("tokenizer_name", "max_train_documents")
    ]
    words = [*corpus, f"--tokenizer_name={folder}", f"--vocab_size={len(tokenizer)}", "--dry_run"]
    suggest("pretrain", "prose_small", *words)


if __name__ == "__main__":
    run(main)
