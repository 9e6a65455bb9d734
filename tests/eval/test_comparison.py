"""Recipes side by side: what has to be equal is checked, a killed one continues, the table holds the figures."""

import functools
import re
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from concept_encoder.eval.benchmarks import comparison, finetuning, similarity
from concept_encoder.eval.benchmarks import registry as benchmarks
from concept_encoder.eval.benchmarks.comparison import find_variants, format_plans
from concept_encoder.scripts.compare import main
from concept_encoder.trainers.recipes import Recipe
from concept_encoder.utils.results import (
    ComparisonResult,
    ComparisonRow,
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
        fewer = functools.partial(comparison.analyze, num_batches=4, batch_size=8, ledger_documents=16)
        patch.setattr(comparison, "analyze", fewer)
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
    for step in ("pretrain", "analyze", "score_frozen", "finetune_task"):
        monkeypatch.setattr(
            comparison if step != "score_frozen" else similarity,
            step,
            lambda *args, **kwargs: pytest.fail("done already"),
        )
    before = (compared / "comparison.json").read_text()
    main([*recipes, "--output_dir", str(compared), *tasks, *TINY])
    assert (compared / "comparison.json").read_text() == before


def test_an_unfinished_run_is_pretrained_in_its_folder_which_resumes_it(recipes, tmp_path, monkeypatch):
    (tmp_path / "plain" / "seed-7" / "checkpoint-1").mkdir(parents=True)
    seen = {}

    def stop(recipe, monitor):
        seen[recipe.name] = recipe.training.seed, recipe.training.output_dir
        raise ValueError("stopped here")

    monkeypatch.setattr(comparison, "pretrain", stop)
    with pytest.raises(SystemExit):
        main([*recipes, "--output_dir", str(tmp_path), "--seeds", "7", "--frozen", "--tasks", *TINY])
    assert seen == {"plain": (7, str(tmp_path / "plain" / "seed-7"))}


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


@pytest.mark.parametrize(
    ("option", "like", "labels", "message"),
    [
        ("--frozen", "stsb", [1.0, 1.0], "every label is 1"),
        ("--tasks", "mrpc", [0, 2], "must hold a class id 0 to 1, got 2"),
        ("--tasks", "mrpc", [0, 1], "the bag of tokens needs 5 training examples"),
    ],
)
def test_unfit_tasks_are_refused_before_anything_is_trained(recipes, tmp_path, capsys, option, like, labels, message):
    for split in ("train", "validation"):
        rows = [{"a": f"{split} {i}", "b": "x", "label": label} for i, label in enumerate(labels)]
        Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    (tmp_path / "own.yaml").write_text(f"like: {like}\ndataset_id: {tmp_path / 'data'}\nsentence_columns: [a, b]\n")
    empty = "--tasks" if option == "--frozen" else "--frozen"
    with pytest.raises(SystemExit, match="2"):
        main([*recipes, "--output_dir", str(tmp_path / "out"), empty, option, str(tmp_path / "own.yaml")])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("count", "message"), [(1, "plain.yaml must hold `base` and `variants`"), (2, "two different recipes, got plain")]
)
def test_one_recipe_is_no_comparison(recipes, tmp_path, capsys, count, message):
    with pytest.raises(SystemExit, match="2"):
        main([recipes[0]] * count + ["--output_dir", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


@pytest.mark.slow
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
    assert said.rstrip().endswith(f"concept-encoder compare {' '.join(arguments)}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [done / "pretrain.json"]
    plans = {"a": {**dict.fromkeys(("steps", "tokens", "hours_left")), "parameters": {"total": 2e6}, "runs": 1}}
    plans["a"]["seconds_per_step"] = 0.5
    assert format_plans(plans).splitlines()[-1].startswith("hours of training to come: as many as the epochs")


def test_a_seed_of_the_recipe_is_not_taken(recipes, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*recipes, "--output_dir", str(tmp_path / "out"), "--seed", "7"])
    assert "seed differs from run to run of a comparison; give seeds" in capsys.readouterr().err


def test_means_are_over_seeds_and_unknown_where_one_is():
    def row(recipe, seed, value):
        return ComparisonRow(recipe=recipe, seed=seed, figures={"x": Figure(value=value, interval=None)})

    means = comparison._means([row("a", 1, 1.0), row("b", 1, 5.0), row("a", 2, 2.0), row("b", 2, None)])
    assert means == {"a": {"x": 1.5}, "b": {"x": None}}


# ------------------------------------------------------------------------------------------------------------ variants


@pytest.mark.slow
def test_the_comparison_of_the_package_is_one_recipe_with_named_changes():
    variants = find_variants("objectives")
    assert [variant.name for variant in variants][:4] == ["diffusion", "tsdae", "mlm_perceiver", "prefix"]
    recipes = [variant.load(0, Path("runs/x"), {"use_cpu": True}) for variant in variants]
    comparison.check_comparable(recipes)
    base = recipes[0].as_dict()
    for variant, recipe in zip(variants, recipes, strict=True):
        own = recipe.as_dict()
        changed = {
            name for part in base for name in base[part] | own[part] if base[part].get(name) != own[part].get(name)
        }
        changes = {n for n, value in variant.fields.items() if value != variants[0].fields.get(n)} | {
            name for name in variants[0].fields if name not in variant.fields
        }
        assert changed == changes, variant.name
        assert recipe.name == variant.name


def test_a_variant_is_what_its_recipe_is():
    for name in ("tsdae", "mlm_perceiver"):
        (variant,) = find_variants("objectives", [name])
        own = variant.load(42, Path("runs/x"), {"use_cpu": True}).as_dict()
        assert own == Recipe.load(name, use_cpu=True).as_dict()


def test_a_comparison_of_ones_own(tmp_path, recipes):
    shutil.copy(recipes[0], tmp_path / "plain.yaml")
    shutil.copy(Path(recipes[0]).parent / "tiny.yaml", tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: plain.yaml\nfields: {max_steps: 3}\nvariants:\n  a:\n  b: {num_concepts: 2, max_steps: 5}\n"
    )
    loaded = {v.name: v.load(7, tmp_path / v.name, {"learning_rate": 1e-5}) for v in find_variants(path)}
    assert [(r.name, r.model.num_concepts, r.training.max_steps) for r in loaded.values()] == [
        ("a", 8, 3),
        ("b", 2, 5),
    ]
    assert {(r.training.seed, r.training.learning_rate) for r in loaded.values()} == {(7, 1e-5)}
    assert [variant.name for variant in find_variants([str(path)], ["b"])] == ["b"]
    assert [variant.name for variant in find_variants(list(recipes))] == ["plain", "masked"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "mine.yaml must hold `base` and `variants`, and may hold `fields`; got"),
        ("base: tiny\n", "mine.yaml must hold `base` and `variants`"),
        ("base: tiny\nvariants: {a: 3}\n", "`variants` must map names to fields, and `fields` names to values"),
        ("base: tiny\nvariants: []\n", "`variants` must map names to fields"),
        ("base: ../tiny.yaml\nvariants: {a: {}}\n", "leads out of"),
    ],
)
def test_what_is_no_comparison_is_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_variants(tmp_path / "mine.yaml")


def test_unknown_comparisons_and_variants_are_named():
    message = r"Unknown comparison 'objectivs'\. Available: objectives; or a .yaml file, or two recipes"
    with pytest.raises(ValueError, match=message):
        find_variants("objectivs")
    with pytest.raises(ValueError, match=r"Unknown variant 'tsdea'\. Available: diffusion, .*; did you mean tsdae"):
        find_variants("objectives", ["tsdea"])
