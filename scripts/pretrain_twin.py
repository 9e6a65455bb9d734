"""Pretrain the BERT twin of a recipe.

    concept-encoder pretrain-twin prose_small --corruption mlm \\
        --output_dir runs/bert

A BERT of the recipe's sizes on its data, batches, steps and terms: what the bottleneck is compared with. It has no
decoder to cross, so the corruption has to be mlm. Similarity and fine-tuning take its folder like any other run's.
"""

from pathlib import Path

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, run, suggest

RECIPES = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("recipe", names=RECIPES, help=f"path of a .yaml file, or one of {', '.join(RECIPES)}")
    parser.accept(RECIPE_FIELDS)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command()
    arguments = parser.typed(argv)
    with parser.refusing():
        from concept_encoder.eval.benchmarks.bert_twin import BertTwinForMaskedLM

        recipe = ce.Recipe.load(arguments["recipe"], **parser.fields())
        result = ce.pretrain(recipe, head=BertTwinForMaskedLM)
    rebuilding, size = result.evaluation.rebuilding, (result.parameters.total or 0) / 1e6
    bits = "" if rebuilding is None else f", {rebuilding.bits_per_token:.3f} bits per rebuilt token"
    print(f"{result.steps} steps, {size:.1f} M parameters{bits}")
    suggest("similarity", recipe.training.output_dir, "--tasks", "stsb")


if __name__ == "__main__":
    run(main)
