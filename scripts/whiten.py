"""Whiten the embeddings of a checkpoint.

    python scripts/whiten.py runs/mine --output_dir runs/mine-whitened \\
        --dataset_name nyu-mll/glue --dataset_config_name stsb \\
        --text_column sentence1

Reads the training documents of the corpus named in CHECKPOINT/recipe.yaml, unless fields of the corpus follow, and
writes the checkpoint with a pooled output that is uncorrelated and of variance 1 over them. Name a corpus of texts
like those that will be embedded: blocks of prose do not whiten sentences.
"""

from pathlib import Path

from concept_encoder.eval.concepts.whitening import whiten
from concept_encoder.eval.loading.checkpoints import Checkpoint
from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.trainers.recipes import FieldParser, read_data
from concept_encoder.utils.command_line import Command, run, say


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder of a trained model, or its Hub id")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    fields = FieldParser(DataArguments, prog=parser.prog)
    parser.accept(fields)
    args = parser.parse_args(argv)
    with parser.refusing():
        checkpoint = Checkpoint.open(args.checkpoint, args.revision)
        fitted = whiten(checkpoint, args.output_dir, read_data(args.overrides, fields, checkpoint.folder))
    print(f"whitened over {fitted['texts']:,} texts, {fitted['rank']} directions vary")
    say(f'Written to {args.output_dir}; SentenceTransformer("{args.output_dir}", trust_remote_code=True) reads it.')
    parser.suggest("similarity.py", args.output_dir, "--tasks", "stsb")


if __name__ == "__main__":
    run(main)
