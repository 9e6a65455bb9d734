"""Whiten the embeddings of a checkpoint: python scripts/whiten.py CHECKPOINT OUTPUT_DIR --max_train_documents 5000

Reads the training documents of the corpus named in CHECKPOINT/recipe.yaml, unless flags name another, and writes the
checkpoint to OUTPUT_DIR with a pooled output that is uncorrelated and of variance 1 over them. Name a corpus of texts
like those that will be embedded, for instance --dataset_name nyu-mll/glue --dataset_config_name stsb --text_column
sentence1: blocks of prose do not whiten sentences.
"""

from pathlib import Path

from transformers import HfArgumentParser

from concept_encoder.eval.whitening import whiten
from concept_encoder.trainers.data import DataArguments
from concept_encoder.trainers.recipes import recipe_data


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(
        DataArguments,
        allow_abbrev=False,
        description=__doc__.partition("\n")[0],
        usage="%(prog)s CHECKPOINT OUTPUT_DIR [corpus flags, see --help]",
    )
    parser.add_argument("checkpoint", help="folder of a trained model, or its Hub id")
    parser.add_argument("output_dir", type=Path, help="folder to write; must not exist, or be empty")
    known, _ = parser.parse_known_args(argv)  # the checkpoint's recipe decides the defaults of the corpus flags
    try:
        parser.set_defaults(**recipe_data(Path(known.checkpoint)))
        data, args = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
        fitted = whiten(args.checkpoint, args.output_dir, data)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{args.output_dir}: whitened over {fitted['texts']:,} texts, {fitted['rank']} directions vary.")
    print(f'Embed with it: SentenceTransformer("{args.output_dir}", trust_remote_code=True)')


if __name__ == "__main__":
    main()
