"""Pretrain the BERT twin of a recipe.

    python scripts/pretrain_twin.py prose_small --corruption mlm \\
        --output_dir runs/bert

A BERT of the recipe's sizes on its data, batches, steps and terms: what the bottleneck is compared with. It has no
decoder to cross, so the corruption has to be mlm. Similarity and fine-tuning take its folder like any other run's.
"""

from pathlib import Path

from concept_encoder.eval.benchmarks.bert_twin import BertTwinForMaskedLM
from concept_encoder.eval.concepts.monitor import monitor_concepts
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.recipes import find_recipe, load_recipe, recipe_parser
from concept_encoder.utils.command_line import Command, run

RECIPES = Path(__file__).parent / "recipes"


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("recipe", help="name in scripts/recipes, or path")
    fields = recipe_parser(parser.prog)
    parser.accept(fields)
    arguments = parser.parse_args(argv)
    with parser.refusing():
        recipe = load_recipe(find_recipe(arguments.recipe, RECIPES), arguments.overrides, fields)
        result = pretrain(recipe, monitor=monitor_concepts, head=BertTwinForMaskedLM)
    rebuilding, size = result.evaluation.rebuilding, (result.parameters.total or 0) / 1e6
    bits = "" if rebuilding is None else f", {rebuilding.bits_per_token:.3f} bits per rebuilt token"
    print(f"{result.steps} steps, {size:.1f} M parameters{bits}")
    parser.suggest("similarity.py", recipe.training.output_dir, "--tasks", "stsb")


if __name__ == "__main__":
    run(main)
