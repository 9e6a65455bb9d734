import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import SMALL_RECIPE, tiny_recipe
from transformers import AutoTokenizer

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.scripts.pretrain import main
from concept_encoder.trainers.pretraining import checkpoint_to_resume, pretrain
from concept_encoder.trainers.recipes import load_recipe, recipe_parser
from concept_encoder.utils.results import PretrainResult

ROOT = Path(__file__).parents[2]
# The small recipes on real prose, on microworld: its tokenizer, two steps of a few texts.
TWO_STEPS = (
    "--dataset_name microworld --vocab_size 512 --hidden_size 32 --intermediate_size 32 --num_concepts 4 "
    "--max_steps 2 --warmup_steps 0 --logging_steps 1 --per_device_train_batch_size 4 --eval_on_start false "
    "--num_eval_timesteps 2 --save_strategy no"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    return folder, pretrain(tiny_recipe(folder))


def test_a_run_leaves_a_checkpoint_its_recipe_and_its_figures(run):
    folder, result = run
    assert result == PretrainResult.load(folder / "pretrain.json")
    assert os.fspath(result) == str(folder)
    assert result.steps == 6 and result.tokens_seen > 0
    assert 0 < result.data_wait_share < 1
    assert len(result.evaluation.by_timestep) == 10
    assert result.evaluation.by_timestep[0].timestep == 0.05
    assert result.eval_loss[1] < result.eval_loss[0]
    model = ConceptEncoderForDiffusionMLM.from_pretrained(folder)
    assert result.parameters.total == model.num_parameters()
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).mask_token_id == model.config.mask_token_id
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["training"]["max_steps"] == 6
    names = {path.name for path in folder.iterdir()}
    assert {"configuration_concept.py", "modeling_concept.py", "model.safetensors"} <= names


def test_the_saved_recipe_runs_to_the_same_weights(run, tmp_path):
    folder, _ = run
    again = load_recipe(
        folder / "recipe.yaml",
        ["--output_dir", str(tmp_path / "again"), "--use_cpu", "true", "--disable_tqdm", "true"],
        recipe_parser(),
    )
    pretrain(again)
    weights = [ConceptEncoderForDiffusionMLM.from_pretrained(f).state_dict() for f in (folder, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "name",
    [
        *("tsdae", "prefix", "diffusion_contrastive"),
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("mlm_perceiver", "two_view", "diffusion_l6", "slot", "bixt")
        ),
    ],
)
def test_every_small_recipe_trains(tmp_path, name):
    recipe = tiny_recipe(tmp_path / name, *TWO_STEPS, name=name)
    recipe.data.tokenizer_name = None  # microworld's own
    result = pretrain(recipe)
    evaluation, corruption = result.evaluation, recipe.objective.corruption
    assert result.steps == 2 and result.recipe == name
    assert (evaluation.rebuilding is None) == (corruption == "diffusion")
    bound = corruption in ("diffusion", "prefix", "two_view")
    assert (evaluation.nelbo_bits_per_token is not None) == bound and len(evaluation.by_timestep) == 2 * bound
    head = recipe.objective.build_corruption().head
    _, loading = head.from_pretrained(tmp_path / name, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())["objective"]["corruption"] == corruption


def test_a_recipe_in_bfloat16_with_gradient_checkpointing(run, tmp_path):
    saving = ["--bf16", "true", "--gradient_checkpointing", "true", "--max_steps", "2"]
    result = pretrain(tiny_recipe(tmp_path / "saving", *saving))
    assert result.training.bf16 is True and result.training.gradient_checkpointing is True
    assert result.train_loss[0] == pytest.approx(run[1].train_loss[0], rel=0.01)


def test_a_finished_run_is_never_overwritten(run):
    folder, _ = run
    with pytest.raises(ValueError, match="already holds a finished run; choose another --output_dir"):
        pretrain(tiny_recipe(folder))


def test_an_unfinished_run_goes_on_when_asked(tmp_path):
    stop = tiny_recipe(tmp_path, "--save_strategy", "steps", "--save_steps", "3")
    pretrain(stop)
    for name in ("pretrain.json", "model.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"unfinished run \(checkpoint-6\); go on with --resume_from_checkpoint last"):
        checkpoint_to_resume(str(tmp_path), None)
    assert checkpoint_to_resume(str(tmp_path), "last").endswith("checkpoint-6")
    more = ("--max_steps", "8", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1")
    recipe = tiny_recipe(tmp_path, "--resume_from_checkpoint", "last", *more)
    assert pretrain(recipe).steps == 8


def test_resuming_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint-"):
        checkpoint_to_resume(str(tmp_path), "last")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--t_min", "0.8", "--t_max", "0.5"], "0 <= t_min < t_max <= 1"),
        (["--max_length", "256"], r"max_length \(256\) is larger than max_position_embeddings"),
        (["--vocab_size", "7"], r"vocab_size \(7\) is smaller"),
        (["--corruption", "tsdae"], r"corruption 'tsdae' needs decoder_query='position', got 'token\+position'"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        pretrain(tiny_recipe(tmp_path / "out", *overrides))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "accelerate"])
def test_the_command_line_as_a_user_types_it(tmp_path, launcher):
    prefix = ["-m", "accelerate.commands.launch", "--cpu"] if launcher == "accelerate" else []
    arguments = ["tiny", *SMALL_RECIPE, "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, *prefix, "scripts/pretrain.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bits per token" in done.stdout and "Next: " in done.stderr and "scripts/analyze.py" in done.stderr


def test_the_command_line_refuses_a_finished_run(run, capsys):
    folder, _ = run
    with pytest.raises(SystemExit) as stop:
        main(["tiny", *SMALL_RECIPE, "--output_dir", str(folder)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "error:" in said and "already holds a finished run" in said and "Traceback" not in said
