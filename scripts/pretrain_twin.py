"""Pretrain the BERT twin of a recipe.

    python scripts/pretrain_twin.py prose_small --corruption mlm \\
        --output_dir runs/bert

A BERT of the recipe's sizes on its data, batches, steps and terms: what the bottleneck is compared with. It has no
decoder to cross, so the corruption has to be mlm. Similarity and fine-tuning take its folder like any other run's.
"""

from concept_encoder.eval.benchmarks.bert_twin import BertTwinForMaskedLM
from concept_encoder.eval.concepts.monitor import monitor_concepts
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.recipes import Recipe, field_words, fields_from_words, fields_help
from concept_encoder.utils.command_line import Command, run


def main(argv: list[str] | None = None) -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("recipe", help="name in scripts/recipes, or path")
    parser.accept(field_words(), fields_help)
    arguments = parser.parse_args(argv)
    with parser.refusing():
        recipe = Recipe.load(arguments.recipe, **fields_from_words(arguments.overrides))
        result = pretrain(recipe, monitor=monitor_concepts, head=BertTwinForMaskedLM)
    bits = result["evaluation"]["rebuilding"]["bits_per_token"]
    size = result["parameters"]["total"] / 1e6
    print(f"{result['steps']} steps, {size:.1f} M parameters, {bits:.3f} bits per rebuilt token")
    parser.suggest("similarity.py", recipe.training.output_dir, "--tasks", "stsb")


if __name__ == "__main__":
    run(main)
