"""Pretrain the BERT twin of a recipe: python scripts/pretrain_twin.py RECIPE --corruption mlm --output_dir DIR

A BERT of the recipe's sizes on its data, batches, steps and terms: what the bottleneck is compared with. It has no
decoder to cross, so the corruption has to be mlm. Similarity and fine-tuning take its folder like any other run's.
"""

import argparse
from pathlib import Path

from concept_encoder.eval.bert_twin import BertTwinForMaskedLM
from concept_encoder.eval.monitor import monitor_concepts
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.recipes import find_recipe, load_recipe, recipe_parser

RECIPES = Path(__file__).parent / "recipes"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="pretrain_twin.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="name in scripts/recipes, or path")
    arguments, overrides = parser.parse_known_args(argv)
    fields = recipe_parser(prog=parser.prog, usage="pretrain_twin.py RECIPE --field value ...")
    try:
        recipe = load_recipe(find_recipe(arguments.recipe, RECIPES), overrides, fields)
        result = pretrain(recipe, monitor=monitor_concepts, head=BertTwinForMaskedLM)
    except (ValueError, OSError, FloatingPointError) as error:
        parser.error(str(error))
    bits = result["evaluation"]["rebuilding"]["bits_per_token"]
    size = result["parameters"]["total"] / 1e6
    print(f"\n{result['steps']} steps, {size:.1f} M parameters, {bits:.3f} bits per rebuilt token")
    print(f"next: python scripts/similarity.py {recipe.training.output_dir} --tasks stsb")


if __name__ == "__main__":
    main()
