import copy

import pytest

from concept_encoder.scripts.pretrain import main
from concept_encoder.trainers import planning
from concept_encoder.trainers.planning import plan_pretraining
from concept_encoder.trainers.pretraining import pretrain
from concept_encoder.trainers.recipes import Recipe, fields_from_words


def tiny_recipe(output_dir, *overrides):
    arguments = ["--output_dir", str(output_dir), "--use_cpu", "true", "--max_validation_documents", "8", *overrides]
    return Recipe.load("tiny", **fields_from_words(arguments))


@pytest.mark.slow
def test_a_plan_takes_steps_and_leaves_nothing(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path / "out", "--gradient_accumulation_steps", "2", "--max_steps", "50")
    before = copy.deepcopy(recipe.as_dict())
    plan = plan_pretraining(recipe)
    assert recipe.as_dict() == before and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert (plan["steps"], plan["texts_per_step"], plan["processes"], plan["device"]) == (50, 32, 1, "cpu")
    assert plan["tokens"] == pytest.approx(50 * plan["tokens_per_step"])
    assert plan["hours"] == pytest.approx(50 * plan["seconds_per_step"] / 3600)
    assert plan["peak_of"] == "process" and 50 * 2**20 < plan["peak_bytes"] < 64 * 2**30


@pytest.mark.slow
def test_what_is_planned_is_what_then_happens(tmp_path):
    recipe = tiny_recipe(tmp_path / "out", "--max_steps", "6", "--max_train_documents", "96", "--disable_tqdm", "true")
    plan, result = plan_pretraining(recipe), pretrain(recipe)
    assert plan["tokens"] == result.tokens_seen  # the same six batches of the same 96 documents
    assert plan["parameters"] == {name: getattr(result.parameters, name) for name in ("total", "encoder")}
    assert plan["steps"] == result.steps


@pytest.mark.slow
def test_the_first_steps_are_not_timed(tmp_path, monkeypatch):
    ticks = iter([0.0, 100.0, 102.0, 105.0, 106.0, 108.0])
    monkeypatch.setattr(planning._Clock, "on_step_end", lambda self, *args, **kwargs: self.ends.append(next(ticks)))
    assert plan_pretraining(tiny_recipe(tmp_path / "out"))["seconds_per_step"] == 2.0  # of 2, 3, 1 and 2


@pytest.mark.slow
def test_epochs_of_a_corpus_not_yet_counted_have_no_number_of_steps(tmp_path):
    plan = plan_pretraining(tiny_recipe(tmp_path / "out", "--max_steps", "-1", "--num_train_epochs", "3"))
    assert plan["steps"] is None and plan["tokens"] is None and plan["hours"] is None
    assert plan["seconds_per_step"] > 0


@pytest.mark.slow
def test_the_script_prints_the_plan_wherever_the_flag_stands(tmp_path, capsys):
    out = tmp_path / "out"
    main(["tiny", "--dry_run", "--output_dir", str(out), "--max_steps", "40", "--use_cpu", "true"])
    printed, said = capsys.readouterr()
    assert printed.startswith("Plan of tiny; nothing is trained yet") and "  steps      40, which read" in printed
    assert "8 concepts of width 32" in printed and " hours (" in printed
    again = f"concept-encoder pretrain tiny --output_dir {out} --max_steps 40 --use_cpu true"
    assert said.rstrip().endswith(again)
    assert not out.exists()
    main(["tiny", "--max_steps", "-1", "--output_dir", str(out), "--use_cpu", "true", "--dry_run"])
    assert "hours for every 1000 steps" in capsys.readouterr().out


def test_what_a_run_would_refuse_a_plan_refuses(tmp_path, capsys):
    (tmp_path / "pretrain.json").touch()
    for argv, message in (
        (["--output_dir", str(tmp_path)], "already holds a finished run"),
        (["--output_dir", str(tmp_path / "out"), "--max_length", "256"], "is larger than max_position_embeddings"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["tiny", *argv, "--dry_run"])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
