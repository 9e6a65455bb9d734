"""Whiten the embeddings of a checkpoint.

    concept-encoder whiten runs/mine --output_dir runs/mine-whitened \\
        --dataset_name nyu-mll/glue --dataset_config_name stsb \\
        --text_column sentence1

Reads the training documents of the corpus named in CHECKPOINT/recipe.yaml, unless fields of the corpus follow, and
writes the checkpoint with a pooled output that is uncorrelated and of variance 1 over them. Name a corpus of texts
like those that will be embedded: blocks of prose do not whiten sentences.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, say, suggest


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("checkpoint", help="folder of a trained model, or its Hub id")
    parser.add_argument("--revision", help="commit, branch or tag of a Hub id")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist, or be empty")
    parser.accept(RECIPE_FIELDS, ["data"])
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    folder = arguments["output_dir"]
    with parser.refusing():
        fitted = ce.whiten(**arguments, **parser.fields())
    print(f"whitened over {fitted['texts']:,} texts, {fitted['rank']} directions vary")
    say(f'Written to {folder}; SentenceTransformer("{folder}", trust_remote_code=True) reads it.')
    suggest("similarity", folder, "--tasks", "stsb")


if __name__ == "__main__":
    run(main)
