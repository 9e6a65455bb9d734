"""Pretrain a concept encoder from a recipe.

    python scripts/pretrain.py tiny
    python scripts/pretrain.py diffusion_small --dry_run     # a few steps, then what the run will cost
    python scripts/pretrain.py microworld --output_dir runs/mine --max_steps 500 --learning_rate 1e-3
    accelerate launch scripts/pretrain.py scripts/recipes/diffusion_l2.yaml --output_dir runs/diffusion_l2

The recipe is a name in scripts/recipes or the path of a .yaml file. Any field of any section follows as --field value.
"""

import argparse
import shlex
import sys
from pathlib import Path

from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, StrictDataclassError

from concept_encoder.eval.monitor import monitor_concepts
from concept_encoder.eval.publishing import assemble, explain
from concept_encoder.trainers.planning import plan_pretraining
from concept_encoder.trainers.pretraining import RESULT_FILE, pretrain
from concept_encoder.trainers.recipes import Recipe, find_recipe, load_recipe, recipe_parser

RECIPES = Path(__file__).parent / "recipes"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="pretrain.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", help="name or path; names: " + ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    )
    parser.add_argument("--fields", action="store_true", help="list every field that can follow, and stop")
    parser.add_argument("--dry_run", action="store_true", help="print plan, size, memory and hours, and stop")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--field value", help="override the recipe")
    argv = sys.argv[1:] if argv is None else argv
    if "--fields" in argv:
        recipe_parser(prog="pretrain.py RECIPE").print_help()
        return
    dry_run = "--dry_run" in argv  # wherever it stands: what follows the recipe is not parsed here
    args = parser.parse_args([word for word in argv if word != "--dry_run"])
    recipe = None
    try:
        recipe = load_recipe(
            find_recipe(args.recipe, RECIPES),
            args.overrides,
            recipe_parser(prog=parser.prog, usage="pretrain.py RECIPE --field value ..."),
        )
        if dry_run:
            _print_plan(recipe, plan_pretraining(recipe), [args.recipe, *args.overrides])
            return
        result = pretrain(recipe, monitor=monitor_concepts, assemble=assemble)
    except (HTTPError, LocalTokenNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: error: {_hub_trouble(error, recipe)}\n")
    except (ValueError, OSError, MemoryError, StrictDataclassError, FloatingPointError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    if recipe.training.process_index == 0:
        nelbo, rebuilding = (result["evaluation"][name] for name in ("nelbo_bits_per_token", "rebuilding"))
        figures = [] if nelbo is None else [f"conditional NELBO {nelbo:.3f} bits per token"]
        if rebuilding is not None:
            figures.append(f"{rebuilding['bits_per_token']:.3f} bits per rebuilt token")
        size = f"{result['parameters']['total'] / 1e6:.1f} M parameters"
        print(
            f"\n{result['steps']} steps, {size}, {', '.join(figures)}\n"
            f"next: python scripts/analyze.py {recipe.training.output_dir}"
        )


def _print_plan(recipe: Recipe, plan: dict, words: list[str]) -> None:
    if recipe.training.process_index != 0:
        return
    model, data, parameters = recipe.model, recipe.data, plan["parameters"]
    processes = f"{plan['processes']} process" + ("es" if plan["processes"] > 1 else "")
    if plan["steps"] is None:
        steps = f"as many as {recipe.training.num_train_epochs:g} epochs of the corpus take"
        hours = f"{1000 * plan['seconds_per_step'] / 3600:.2f} hours for every 1000 steps"
    else:
        steps = f"{plan['steps']}, which read {plan['tokens'] / 1e6:.1f} M tokens"
        hours = f"{plan['hours']:.2f} hours"
    rows = {
        "model": f"{parameters['total'] / 1e6:.1f} M parameters, {parameters['encoder'] / 1e6:.1f} M in the encoder; "
        f"{model.num_concepts} concepts of width {model.hidden_size}",
        "objective": f"{recipe.objective.corruption}, decoder_context {model.decoder_context}",
        "data": f"{data.dataset_name}, {data.packing}, at most {data.max_length} tokens a text",
        "each step": f"{plan['texts_per_step']} texts, {plan['tokens_per_step']:.0f} tokens; "
        f"{processes} on {plan['device']}",
        "steps": steps,
        "memory": f"{plan['peak_bytes'] / 2**30:.1f} GiB at the peak of each {plan['peak_of']}",
        "time": f"{hours} ({plan['seconds_per_step']:.2f} s a step; evaluation and saving come on top)",
        "output": recipe.training.output_dir,
    }
    print(f"\nPlan of {recipe.name}; nothing is trained yet\n")
    for name, text in rows.items():
        print(f"  {name:<11}{text}")
    print(f"\nnext: python scripts/pretrain.py {shlex.join(words)}")


def _hub_trouble(error: Exception, recipe: Recipe | None) -> str:
    if recipe is None or not recipe.training.push_to_hub:
        return " ".join(str(error).split())
    folder, repo_id = recipe.training.output_dir, recipe.training.hub_model_id or "owner/name"
    again = f"python scripts/push_to_hub.py {folder} --repo_id {repo_id}"
    if not (Path(folder) / RESULT_FILE).exists():
        return explain(error, repo_id)
    return f"the run is complete in {folder}, but not on the Hub: {explain(error, repo_id, again)}"


if __name__ == "__main__":
    main()
