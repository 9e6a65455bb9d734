"""Learn a small vocabulary from a corpus.

    python scripts/train_tokenizer.py --vocab_size 8192 \\
        --output_dir runs/vocabulary --dataset_name "texts/*.txt" \\
        --tokenizer_name google-bert/bert-base-uncased

The kind of tokenizer, its normalisation and its special tokens are those of --tokenizer_name. For runs on a CPU, where
most of a step is the product with the vocabulary. Fields of the corpus follow.
"""

from pathlib import Path

from concept_encoder.trainers.data.corpora import DataArguments, load_tokenizer, train_tokenizer
from concept_encoder.trainers.recipes import FieldParser
from concept_encoder.trainers.training.saving import disk_trouble_named
from concept_encoder.utils.command_line import Command, run, say
from concept_encoder.utils.files import check_new, whole_folder


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    parser.add_argument("--vocab_size", type=int, required=True, help="entries, special tokens included")
    fields = FieldParser(DataArguments, prog=parser.prog)
    parser.accept(fields)
    args = parser.parse_args(argv)
    folder = args.output_dir
    with parser.refusing():
        (data,) = fields.parse_args_into_dataclasses(args.overrides, look_for_args_file=False)
        check_new(folder)
        tokenizer = train_tokenizer(data, args.vocab_size, load_tokenizer(data))
        with disk_trouble_named(folder), whole_folder(folder) as staged:
            tokenizer.save_pretrained(staged)
    say(f"{len(tokenizer)} entries written to {folder}.")
    corpus = [word for word in args.overrides if not word.startswith(("--tokenizer_name", "--max_train_documents"))]
    words = [*corpus, f"--tokenizer_name={folder}", f"--vocab_size={len(tokenizer)}", "--dry_run"]
    parser.suggest("pretrain.py", "prose_small", *words)


if __name__ == "__main__":
    run(main)
