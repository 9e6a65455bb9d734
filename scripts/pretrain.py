"""Pretrain a concept encoder from a recipe.

    concept-encoder pretrain tiny
    concept-encoder pretrain prose_small --dry_run
    concept-encoder pretrain microworld --output_dir runs/mine --max_steps 500
    accelerate launch -m concept_encoder.scripts.pretrain diffusion_l2

Any field of any section of the recipe follows as --field value.

Exit code 0 done, 1 the Hub said no, 2 bad input, 143 stopped by SIGTERM with its checkpoint whole.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import concept_encoder as ce
from concept_encoder.utils.command_line import RECIPE_FIELDS, Command, command_to_type, run, say, suggest

if TYPE_CHECKING:
    from concept_encoder import Recipe

RECIPES = sorted(path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml"))


def command() -> Command:
    parser = Command(__file__, __doc__)
    parser.add_argument("recipe", names=RECIPES, help=f"path of a .yaml file, or one of {', '.join(RECIPES)}")
    parser.add_argument("--dry_run", action="store_true", help="print plan, size, memory and hours, and stop")
    parser.accept(RECIPE_FIELDS)
    return parser


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = command()
    arguments = parser.typed(argv)
    recipe = None
    with parser.refusing():
        from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

        from concept_encoder.trainers.planning import plan_pretraining

        try:
            recipe = ce.Recipe.load(arguments["recipe"], **parser.fields())
            if "dry_run" in arguments:
                plan = plan_pretraining(recipe)
                if recipe.training.process_index == 0:
                    _print_plan(recipe, plan)
                    parser.suggest_again(argv)
                return
            result = ce.pretrain(recipe)
        except (HTTPError, LocalTokenNotFoundError) as error:
            parser.exit(1, f"{parser.prog}: error: {_hub_trouble(error, recipe)}\n")
    if recipe.training.process_index == 0:
        nelbo, rebuilding = result.evaluation.nelbo_bits_per_token, result.evaluation.rebuilding
        figures = [] if nelbo is None else [f"conditional NELBO {nelbo:.3f} bits per token"]
        if rebuilding is not None:
            figures.append(f"{rebuilding.bits_per_token:.3f} bits per rebuilt token")
        size = f"{(result.parameters.total or 0) / 1e6:.1f} M parameters"
        print(", ".join([f"{result.steps} steps", size, *figures]))
        say(f"Written to {recipe.training.output_dir}.")
        if figures:
            suggest("analyze", recipe.training.output_dir)
        else:
            suggest("similarity", recipe.training.output_dir, "--tasks", "stsb")


def _print_plan(recipe: "Recipe", plan: dict) -> None:
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
        "objective": f"{recipe.objective.built_corruption.name}, decoder_context {model.decoder_context}",
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


def _hub_trouble(error: Exception, recipe: "Recipe | None") -> str:
    from concept_encoder.eval.hub.publishing import explain
    from concept_encoder.trainers.pretraining import RESULT_FILE

    if recipe is None or not recipe.training.push_to_hub:
        return " ".join(str(error).split())
    folder, repo_id = recipe.training.output_dir, recipe.training.hub_model_id or "owner/name"
    if not (Path(folder) / RESULT_FILE).exists():
        return explain(error, repo_id)
    again = command_to_type("push", folder, "--repo_id", repo_id)
    return f"the run is complete in {folder}, but not on the Hub: {explain(error, repo_id, again)}"


if __name__ == "__main__":
    run(main)
