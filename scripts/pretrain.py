"""Pretrain a concept encoder from a recipe.

    python scripts/pretrain.py tiny
    python scripts/pretrain.py diffusion_small --dry_run
    python scripts/pretrain.py microworld --output_dir runs/mine --max_steps 500
    accelerate launch scripts/pretrain.py diffusion_l2 --output_dir runs/large

Any field of any section of the recipe follows as --field value.

Exit code 0 done, 1 the Hub said no, 2 bad input, 143 stopped by SIGTERM with its checkpoint whole.
"""

import sys
from pathlib import Path

from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from concept_encoder.eval.concepts.monitor import monitor_concepts
from concept_encoder.eval.hub.publishing import assemble, explain
from concept_encoder.trainers.planning import plan_pretraining
from concept_encoder.trainers.pretraining import RESULT_FILE, pretrain
from concept_encoder.trainers.recipes import Recipe, find_recipe, load_recipe, recipe_parser
from concept_encoder.utils.command_line import Command, run, say

RECIPES = Path(__file__).parent / "recipes"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Command(__file__, __doc__)
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("recipe", help=f"path of a .yaml file, or one of {names}")
    parser.add_argument("--dry_run", action="store_true", help="print plan, size, memory and hours, and stop")
    fields = recipe_parser(parser.prog)
    parser.accept(fields)
    args = parser.parse_args(argv)
    recipe = None
    with parser.refusing():
        try:
            recipe = load_recipe(find_recipe(args.recipe, RECIPES), args.overrides, fields)
            if args.dry_run:
                plan = plan_pretraining(recipe)
                if recipe.training.process_index == 0:
                    _print_plan(recipe, plan)
                    parser.suggest_again(argv)
                return
            result = pretrain(recipe, monitor=monitor_concepts, assemble=assemble)
        except (HTTPError, LocalTokenNotFoundError) as error:
            parser.exit(1, f"{parser.prog}: error: {_hub_trouble(error, recipe)}\n")
    if recipe.training.process_index == 0:
        nelbo, rebuilding = result.evaluation.nelbo_bits_per_token, result.evaluation.rebuilding
        figures = [] if nelbo is None else [f"conditional NELBO {nelbo:.3f} bits per token"]
        if rebuilding is not None:
            figures.append(f"{rebuilding.bits_per_token:.3f} bits per rebuilt token")
        size = f"{(result.parameters.total or 0) / 1e6:.1f} M parameters"
        print(f"{result.steps} steps, {size}, {', '.join(figures)}")
        say(f"Written to {recipe.training.output_dir}.")
        parser.suggest("analyze.py", recipe.training.output_dir)


def _print_plan(recipe: Recipe, plan: dict) -> None:
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
    print(f"Plan of {recipe.name}; nothing is trained yet\n")
    for name, text in rows.items():
        print(f"  {name:<11}{text}")


def _hub_trouble(error: Exception, recipe: Recipe | None) -> str:
    if recipe is None or not recipe.training.push_to_hub:
        return " ".join(str(error).split())
    folder, repo_id = recipe.training.output_dir, recipe.training.hub_model_id or "owner/name"
    again = f"python scripts/push_to_hub.py {folder} --repo_id {repo_id}"
    if not (Path(folder) / RESULT_FILE).exists():
        return explain(error, repo_id)
    return f"the run is complete in {folder}, but not on the Hub: {explain(error, repo_id, again)}"


if __name__ == "__main__":
    run(main)
