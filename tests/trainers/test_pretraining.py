import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import SMALL_RECIPE, tiny_recipe
from transformers import AutoTokenizer

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.eval.benchmarks.comparison import Variant, find_variants
from concept_encoder.scripts.pretrain import main
from concept_encoder.trainers.pretraining import checkpoint_to_resume, pretrain
from concept_encoder.utils.results import PretrainResult

ROOT = Path(__file__).parents[2]
# The small recipes on microworld: its tokenizer, two steps of a few texts.
TWO_STEPS = {
    **dict.fromkeys(("dataset_config_name", "tokenizer_name", "max_train_documents", "max_validation_documents")),
    "dataset_name": "microworld",
    "max_train_documents": 64,
    "max_validation_documents": 8,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_concepts": 4,
    "num_eval_timesteps": 2,
    "max_steps": 2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "eval_on_start": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    return folder, pretrain(tiny_recipe(folder))


@pytest.mark.slow
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
    assert {"configuration_concept.py", "reading_concept.py", "modeling_concept.py", "model.safetensors"} <= names


@pytest.mark.slow
def test_the_saved_recipe_runs_to_the_same_weights(run, tmp_path):
    folder, _ = run
    pretrain(folder / "recipe.yaml", output_dir=str(tmp_path / "again"), use_cpu=True, disable_tqdm=True)
    weights = [ConceptEncoderForDiffusionMLM.from_pretrained(f).state_dict() for f in (folder, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


SMALL = [Variant(name, name, {}) for name in ("tsdae", "mlm_perceiver")] + find_variants("objectives")
FAST = ("tsdae", "prefix", "contrastive")


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=[] if v.name in FAST else pytest.mark.slow, id=f"{v.recipe}-{v.name}") for v in SMALL],
)
def test_every_small_recipe_and_variant_trains(tmp_path, variant):
    recipe = variant.load(0, tmp_path / "run", TWO_STEPS)
    result = pretrain(recipe)
    evaluation, corruption = result.evaluation, recipe.objective.built_corruption.name
    assert result.steps == 2 and result.recipe == variant.name
    assert (evaluation.rebuilding is None) == (corruption == "diffusion")
    bound = corruption in ("diffusion", "prefix", "two_view")
    assert (evaluation.nelbo_bits_per_token is not None) == bound and len(evaluation.by_timestep) == 2 * bound
    head = recipe.objective.built_corruption.head
    _, loading = head.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["objective"]["corruption"]
    assert kept == recipe.objective.corruption and list(kept) == [corruption]


@pytest.mark.slow
def test_a_recipe_in_bfloat16_with_gradient_checkpointing(run, tmp_path):
    saving = ["--bf16", "true", "--gradient_checkpointing", "true", "--max_steps", "2"]
    result = pretrain(tiny_recipe(tmp_path / "saving", *saving))
    assert result.training.bf16 is True and result.training.gradient_checkpointing is True
    assert result.train_loss[0] == pytest.approx(run[1].train_loss[0], rel=0.01)


def test_a_finished_run_is_never_overwritten(run):
    folder, _ = run
    with pytest.raises(ValueError, match="already holds a finished run; choose another --output_dir"):
        pretrain(tiny_recipe(folder))


def unfinished(folder, *more):
    """What a kill after the last checkpoint leaves, of 6 steps."""
    pretrain(tiny_recipe(folder, "--save_strategy", "steps", "--save_steps", "3", *more))
    for name in ("pretrain.json", "model.safetensors"):
        (folder / name).unlink()


@pytest.mark.slow
def test_an_unfinished_run_goes_on_by_the_same_line(tmp_path, caplog):
    constant = ("--lr_scheduler_type", "constant", "--warmup_steps", "0")
    unfinished(tmp_path, *constant)
    assert checkpoint_to_resume(str(tmp_path), None) == str(tmp_path / "checkpoint-6")
    caplog.clear()
    more = ("--max_steps", "8", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1")
    assert pretrain(tiny_recipe(tmp_path, *constant, *more)).steps == 8
    assert f"{tmp_path} holds an unfinished run; continuing from checkpoint-6" in caplog.text


@pytest.mark.slow
def test_an_unfinished_run_of_another_recipe_is_refused(tmp_path):
    unfinished(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    steps = ("--save_strategy", "steps", "--save_steps", "3")
    wrong = {
        (
            "--learning_rate",
            "3e-4",
        ): "learning_rate was 0.003 when checkpoint-6 was written, got 0.0003: continue with",
        ("--num_concepts", "4"): "num_concepts was 8 when checkpoint-6 was written, got 4: ",
        ("--max_steps", "9"): "max_steps was 6 when checkpoint-6 was written, got 9: ",
        ("--corpus_seed", "1"): "corpus_seed was 0 when checkpoint-6 was written, got 1; training texts was ",
    }
    for fields, message in wrong.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            pretrain(tiny_recipe(tmp_path, *steps, *fields))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_is_named_has_to_be_whole(tmp_path):
    with pytest.raises(
        ValueError, match=r"resume_from_checkpoint=last is not a whole checkpoint: there is no such folder"
    ):
        checkpoint_to_resume(str(tmp_path), "last")
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(
        ValueError, match=r"checkpoint-3 is not a whole checkpoint: it has no SHA256SUMS, which is written"
    ):
        checkpoint_to_resume(str(tmp_path), str(tmp_path / "checkpoint-3"))


@pytest.mark.slow
def test_a_folder_in_which_another_process_is_at_work_is_refused(tmp_path):
    holder = "import sys; from concept_encoder.utils.files import alone_in; from pathlib import Path\n"
    holder += "with alone_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(
        ValueError, match=rf"another process is at work in {tmp_path / 'run'}; wait until it has ended"
    ):
        pretrain(tiny_recipe(tmp_path / "run"))
    assert (tmp_path / "run" / ".lock").exists()
    other.kill()  # leaves the file, and no lock
    other.communicate()
    assert (tmp_path / "run" / ".lock").exists()
    assert pretrain(tiny_recipe(tmp_path / "run", "--max_steps", "1")).steps == 1
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--corruption", "{diffusion: {t_min: 0.8, t_max: 0.5}}"], "0 <= t_min < t_max <= 1"),
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
@pytest.mark.parametrize(
    ("start", "processes"),
    [
        ("concept_encoder pretrain", 1),
        ("accelerate.commands.launch --cpu -m concept_encoder.scripts.pretrain", 1),
        ("accelerate.commands.launch --multi_gpu --num_processes 2 -m concept_encoder.scripts.pretrain", 2),
    ],
)
def test_the_command_line_as_a_user_types_it(tmp_path, start, processes):
    arguments = ["tiny", *SMALL_RECIPE, "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", *start.split(), *arguments]
    # Without the variable, accelerate starts one process on a CPU, however many it is asked for.
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "1"} if processes > 1 else {})}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("bits per token") == 1
    assert done.stderr.count(f"Next: concept-encoder analyze {tmp_path / 'out'}") == 1
    assert json.loads((tmp_path / "out" / "pretrain.json").read_text())["environment"]["processes"] == processes


def test_the_command_line_refuses_a_finished_run(run, capsys):
    folder, _ = run
    with pytest.raises(SystemExit) as stop:
        main(["tiny", *SMALL_RECIPE, "--output_dir", str(folder)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "error:" in said and "already holds a finished run" in said and "Traceback" not in said
