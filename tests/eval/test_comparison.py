"""Recipes side by side: what has to be equal is checked, a killed comparison goes on, the table holds the figures."""

import re
import shutil
from pathlib import Path

import pytest

from concept_encoder.eval.benchmarks import comparison, finetuning, similarity
from concept_encoder.eval.benchmarks import registry as benchmarks
from concept_encoder.eval.benchmarks.comparison import format_plans
from concept_encoder.scripts.compare import main
from concept_encoder.utils.results import (
    ComparisonResult,
    Figure,
    FinetuneResult,
    GeometryResult,
    PretrainResult,
    SimilarityResult,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--max_steps", "2", "--max_train_documents", "40", "--max_validation_documents", "40", "--save_steps", "1"]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> tuple[str, str]:
    """Two recipes, one of them without a diffusion decoder."""
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copy(ROOT / "scripts" / "recipes" / "tiny.yaml", folder)
    for name, corruption in (("plain", "diffusion"), ("masked", "mlm")):
        (folder / f"{name}.yaml").write_text(f"extends: tiny\nobjective:\n  corruption: {corruption}\n")
    return str(folder / "plain.yaml"), str(folder / "masked.yaml")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[str]:
    """A registered task, and the same as a task file."""
    own = tmp_path_factory.mktemp("tasks") / "own.yaml"
    own.write_text(
        "like: microworld_similarity\ndataset_id: microworld\nconfig: similarity\n"
        "sentence_columns: [sentence1, sentence2]\n"
    )
    both = ["microworld_similarity", str(own)]
    return ["--frozen", *both, "--tasks", *both, "--protocol", "quick"]


@pytest.fixture(scope="module")
def compared(recipes, tasks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "ANALYSIS", (4, 8, 16))
        for module in (finetuning, similarity):
            patch.setattr(module, "RESAMPLES", 200)
        for split, size in (("train", 200), ("validation", 60)):
            patch.setitem(benchmarks.MICROWORLD_SIZES, split, size)
        main([*recipes, "--output_dir", str(folder), *tasks, *TINY])
    return folder


@pytest.mark.slow
def test_the_table_holds_the_figures_of_every_run(compared):
    result = ComparisonResult.load(compared / "comparison.json")
    runs = {row.recipe: row.figures for row in result.rows}
    assert list(runs) == ["plain", "masked"]
    for name, figures in runs.items():
        run = compared / name / "seed-42"
        trained = PretrainResult.load(run / "pretrain.json")
        assert figures["NELBO, bits"].value == trained.evaluation.nelbo_bits_per_token
        assert figures["training, s"].value == trained.train_seconds
        rank = GeometryResult.load(run / "geometry.json").spectrum.views["within_raw"]["rankme"]
        assert figures["RankMe"] == Figure(value=rank.value, interval=rank.interval)
        score = FinetuneResult.load(run / "finetune" / "microworld_similarity.quick.json").primary
        assert figures["microworld_similarity, pearson"].value == score.value
        bag = score.controls["bag_of_tokens"]
        expected = Figure(value=bag.value, interval=bag.interval)
        assert figures["microworld_similarity, pearson, bag of tokens"] == expected
        frozen = SimilarityResult.load(run / "similarity" / "microworld_similarity.json")
        assert figures["microworld_similarity probe"].value == frozen.primary("linear probe").value
        twin = frozen.primary("cosine, mean whitened").random_init
        expected = Figure(value=twin.value, interval=twin.interval)
        assert figures["microworld_similarity whitened, twin"] == expected
    for title in (" probe", " whitened, twin", ", pearson", ", pearson, bag of tokens"):
        assert figures[f"own{title}"] == figures[f"microworld_similarity{title}"]
    assert runs["plain"]["ledger, bits"].value is not None and runs["plain"]["own task, bits"].value is None
    assert runs["masked"]["ledger, bits"].value is None and runs["masked"]["NELBO, bits"].value is None
    table = (compared / "comparison.md").read_text()
    assert f"| plain | 42 | {runs['plain']['NELBO, bits'].value:.3f} | – |" in table


@pytest.mark.slow
def test_a_second_call_measures_nothing_again(compared, recipes, tasks, monkeypatch):
    for step in ("pretrain", "analyze", "score_frozen", "finetune"):
        monkeypatch.setattr(
            comparison if step != "score_frozen" else similarity,
            step,
            lambda *args, **kwargs: pytest.fail("done already"),
        )
    before = (compared / "comparison.json").read_text()
    main([*recipes, "--output_dir", str(compared), *tasks, *TINY])
    assert (compared / "comparison.json").read_text() == before


def test_an_unfinished_run_is_resumed(recipes, tmp_path, monkeypatch):
    (tmp_path / "plain" / "seed-7" / "checkpoint-1").mkdir(parents=True)
    seen = {}

    def stop(recipe, monitor):
        seen[recipe.name] = recipe.training.resume_from_checkpoint, recipe.training.seed, recipe.training.output_dir
        raise ValueError("stopped here")

    monkeypatch.setattr(comparison, "pretrain", stop)
    with pytest.raises(SystemExit):
        main([*recipes, "--output_dir", str(tmp_path), "--seeds", "7", *TINY])
    assert seen == {"plain": ("last", 7, str(tmp_path / "plain" / "seed-7"))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "data:\n  max_length: 16\n",
            "max_length is 128 in plain and 16 in other; set it for all of them",
        ),
        ("training:\n  max_steps: 3\n", "max_steps is 60 in plain and 3 in other"),
    ],
)
def test_unequal_data_or_steps_are_refused_before_anything_is_trained(recipes, tmp_path, capsys, changes, message):
    for name in ("plain", "tiny"):
        shutil.copy(Path(recipes[0]).parent / f"{name}.yaml", tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(f"extends: plain\n{changes}")
    with pytest.raises(SystemExit, match="2"):
        main([recipes[0], str(other), "--output_dir", str(tmp_path / "out")])
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


def test_unknown_tasks_are_refused_before_anything_is_trained(recipes, tmp_path, capsys):
    for tasks, message in ((["--frozen", "mrpc"], "Unknown similarity task 'mrpc'"), (["--tasks", "x"], "task 'x'")):
        with pytest.raises(SystemExit, match="2"):
            main([*recipes, "--output_dir", str(tmp_path / "out"), *tasks])
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_one_recipe_is_no_comparison(recipes, tmp_path, capsys, count):
    with pytest.raises(SystemExit, match="2"):
        main([recipes[0]] * count + ["--output_dir", str(tmp_path / "out")])
    assert "at least two different recipes, got plain" in capsys.readouterr().err


def test_a_dry_run_counts_what_is_still_to_train_and_leaves_nothing(recipes, tmp_path, capsys):
    done = tmp_path / "out" / "masked" / "seed-1"
    done.mkdir(parents=True)
    (done / "pretrain.json").write_text("{}")
    arguments = [*recipes, "--output_dir", str(tmp_path / "out"), *TINY, "--seeds", "1", "2", "--use_cpu", "true"]
    main([*arguments, "--dry_run"])
    printed, said = capsys.readouterr()
    _, plain, masked, total = printed.splitlines()
    assert plain.split()[:4] == ["plain", "0.1", "M", "2"]
    assert [row.split()[-2] for row in (plain, masked)] == ["2", "1"]
    assert total.startswith("hours of training to come: 0.00;")
    assert said.rstrip().endswith(f"scripts/compare.py {' '.join(arguments)}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [done / "pretrain.json"]
    plans = {"a": {**dict.fromkeys(("steps", "tokens", "hours_left")), "parameters": {"total": 2e6}, "runs": 1}}
    plans["a"]["seconds_per_step"] = 0.5
    assert format_plans(plans).splitlines()[-1].startswith("hours of training to come: as many as the epochs")


def test_a_seed_of_the_recipe_is_not_taken(recipes, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*recipes, "--output_dir", str(tmp_path / "out"), "--seed", "7"])
    assert "unknown argument '--seed'; did you mean --seeds" in capsys.readouterr().err


def test_means_are_over_seeds_and_unknown_where_one_is():
    def row(recipe, seed, value):
        return {"recipe": recipe, "seed": seed, "figures": {"x": {"value": value, "interval": None}}}

    means = comparison._means([row("a", 1, 1.0), row("b", 1, 5.0), row("a", 2, 2.0), row("b", 2, None)])
    assert means == {"a": {"x": 1.5}, "b": {"x": None}}
