"""Learn a small vocabulary from a corpus: python scripts/train_tokenizer.py FOLDER --vocab_size 8192 [corpus flags]

The kind of tokenizer, its normalisation and its special tokens are those of --tokenizer_name. For runs on a CPU, where
most of a step is the product with the vocabulary.
"""

from pathlib import Path

from transformers import HfArgumentParser

from concept_encoder.trainers.data import DataArguments, load_tokenizer, train_tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        DataArguments,
        allow_abbrev=False,
        description=__doc__.partition("\n")[0],
        usage="%(prog)s FOLDER --vocab_size N --dataset_name NAME --tokenizer_name NAME [corpus flags, see --help]",
    )
    parser.add_argument("folder", type=Path, help="where the tokenizer is saved; must not exist")
    parser.add_argument("--vocab_size", type=int, required=True, help="entries, special tokens included")
    try:
        data, args = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
        if args.folder.exists():
            raise ValueError(f"{args.folder} exists already; name a new folder")
        tokenizer = train_tokenizer(data, args.vocab_size, load_tokenizer(data))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    tokenizer.save_pretrained(args.folder)
    print(f"{len(tokenizer)} entries written to {args.folder}.")


if __name__ == "__main__":
    main()
