"""Recipes: what a file, a keyword and a command line may say, how it is typed, and what each error names."""

import dataclasses
import json
import math
import os
import re

import pytest
import yaml
from fuzzing import VALUES, cases, mutated, names_one_of
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import with_stand_ins

from concept_encoder import ConceptEncoderConfig
from concept_encoder.trainers.recipes import (
    RECIPES,
    SECTIONS,
    Recipe,
    fields_from_words,
    fields_help,
    find_recipe,
    read_data,
    recipe_names,
)
from concept_encoder.utils.fields import annotations


def written(tmp_path, text, name="x"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_builds_and_its_header_says_how_to_run_it(path, tokenizer):
    recipe = Recipe.load(path.stem, bf16=False)
    assert recipe.name == path.stem
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(f"# {word}:" in header for word in ("command", "hardware", "expected"))
    assert re.search(rf"(concept-encoder|scripts\.)\s?pretrain {path.stem}\b", header)
    assert recipe.model_config(tokenizer).mask_token_id == tokenizer.mask_token_id


def test_the_package_has_recipes_that_run_as_typed():
    named = (
        "diffusion_l2",
        "diffusion_l2_fixed",
        "embedder",
        "gate_1",
        "microworld",
        "mlm_perceiver",
        "prose_small",
        "tiny",
        "tsdae",
    )
    assert tuple(recipe_names()) == named
    for name in named:
        data = Recipe.load(name, bf16=False).data
        for source in (data.dataset_name, data.tokenizer_name):
            assert source in (None, "microworld") or not source.startswith(("local/", "runs/", ".", "/"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prose_small", "tsdae", "mlm_perceiver", "gate_1", "embedder"])
def test_recipes_on_public_data_run_on_what_stands_in_for_it(seeded_hub, tmp_path, name):
    from concept_encoder.trainers.pretraining import pretrain

    small = {"max_train_documents": 200, "max_validation_documents": 8, "max_steps": 2, "eval_on_start": False}
    own = {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4, "use_cpu": True}
    result = pretrain(with_stand_ins(name, **small, **own))
    assert result.steps == 2 and result.model.more["vocab_size"] == 30522


def test_the_reference_recipe_holds_every_published_hyper_parameter(shared):
    reference = json.loads((shared / "reference" / "diffusion_l2.json").read_text())
    architecture, published = reference["architecture"], reference["training"]
    recipe = Recipe.load("diffusion_l2", bf16=False)
    for name in ("hidden_size", "num_hidden_layers", "num_concepts", "num_attention_heads", "intermediate_size"):
        assert getattr(recipe.model, name) == architecture[name]
    assert recipe.model.decoder_num_hidden_layers == architecture["decoder_num_layers"]
    assert recipe.data.dataset_name == published["dataset"]
    assert recipe.data.tokenizer_name == published["tokenizer"]
    assert recipe.data.max_length == published["max_seq_length"]
    assert recipe.objective.label_smoothing == published["label_smoothing"]
    corruption = recipe.objective.built_corruption
    assert (corruption.t_min, corruption.t_max) == (published["t_min"], published["t_max"])
    training = recipe.training
    assert training.num_train_epochs == published["epochs"]
    assert training.lr_scheduler_type.value == published["lr_scheduler"]
    assert training.per_device_train_batch_size == published["per_device_batch_size"]
    for name in ("learning_rate", "warmup_steps", "gradient_accumulation_steps", "weight_decay", "max_grad_norm"):
        assert getattr(training, name) == published[name]
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * published["devices"]
    assert batch == published["effective_batch_size"]


def test_a_field_goes_to_its_section_by_its_name():
    recipe = Recipe.load(
        "tiny", num_concepts=4, max_length=64, corruption="prefix", learning_rate=1e-5, label_names=["labels"]
    )
    assert recipe.model.num_concepts == 4
    assert recipe.data.max_length == 64
    assert recipe.objective.built_corruption.name == "prefix"
    assert recipe.training.learning_rate == 1e-5 and recipe.training.label_names == ["labels"]
    assert recipe.training.output_dir == "runs/tiny"
    assert Recipe.load("tiny", num_concepts=None).model.num_concepts == 128  # the default, not the recipe's


def test_values_are_typed(tmp_path):
    path = written(
        tmp_path,
        "model: {num_concepts: '4', hidden_dropout_prob: 0}\ndata: {validation_size: null, streaming: 'false'}\n"
        "objective: {label_smoothing: 1e-2, corruption: {tsdae: {deletion_rate: 5e-1}}, regularizers: {variance: 1}}\n"
        "training: {learning_rate: 3e-4, max_steps: 10.0, warmup_steps: 5, lr_scheduler_kwargs: {num_cycles: 1}}\n",
    )
    recipe = Recipe.load(path)
    assert (recipe.model.num_concepts, recipe.model.hidden_dropout_prob) == (4, 0.0)
    assert (recipe.data.validation_size, recipe.data.streaming) == (None, False)
    assert recipe.objective.label_smoothing == 0.01 and recipe.objective.built_corruption.deletion_rate == 0.5
    assert recipe.objective.regularizers == {"variance": 1.0}
    assert (recipe.training.learning_rate, recipe.training.max_steps) == (3e-4, 10)
    assert recipe.training.lr_scheduler_kwargs == {"num_cycles": 1}
    assert [type(each) for each in (recipe.model.hidden_dropout_prob, recipe.training.max_steps)] == [float, int]


def test_a_resolved_recipe_reads_back_the_same_and_holds_no_path(tmp_path):
    recipe = Recipe.load("tiny", output_dir=str(tmp_path / "out"), accelerator_config={"split_batches": True})
    recipe.save(tmp_path / "tiny.yaml")
    assert str(tmp_path) not in (tmp_path / "tiny.yaml").read_text()
    assert Recipe.load(tmp_path / "tiny.yaml").as_dict() == recipe.as_dict()


def test_sources_are_recorded_without_paths_of_this_machine(tmp_path, monkeypatch):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work / "texts", elsewhere / "teacher", elsewhere / "vocabulary"):
        folder.mkdir(parents=True)
    (work / "texts" / "a.txt").write_text("one\n")
    monkeypatch.chdir(work)
    recipe = Recipe.load(
        "tiny",
        dataset_name=str(work / "texts" / "*.txt"),
        tokenizer_name=os.path.relpath(elsewhere / "vocabulary"),
        warm_start_embeddings=str(elsewhere / "teacher"),
    )
    recorded = recipe.as_dict()
    assert recorded["data"]["dataset_name"] == "./texts/*.txt"
    assert recorded["data"]["tokenizer_name"] == "vocabulary"
    assert recorded["training"]["warm_start_embeddings"] == "teacher"
    assert "elsewhere" not in str(recorded)
    recipe = Recipe.load("tiny", dataset_name="nyu-mll/glue", dataset_config_name="cola", tokenizer_name="a/b")
    assert recipe.as_dict()["data"]["dataset_name"] == "nyu-mll/glue"


def test_a_recipe_may_extend_another(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "model: {num_concepts: 4, hidden_size: 64}\ntraining: {max_steps: 3, seed: 7}\n"
        "objective: {label_smoothing: 0.2}\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base\nmodel: {num_concepts: 5}\ndata: {max_length: 32}\n")
    (tmp_path / "top.yaml").write_text("extends: middle.yaml\nobjective: {label_smoothing: null, corruption: mlm}\n")
    recipe = Recipe.load(tmp_path / "top.yaml", seed=9)
    assert (recipe.name, recipe.model.num_concepts, recipe.model.hidden_size) == ("top", 5, 64)
    assert (recipe.data.max_length, recipe.training.max_steps, recipe.training.seed) == (32, 3, 9)
    assert recipe.objective.label_smoothing == 0.0 and recipe.objective.built_corruption.name == "mlm"
    assert "extends" not in recipe.as_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere\n", r"bad.yaml: extends: Unknown recipe 'nowhere'\. Available: bad, good, loop"),
        ("extends: bad\n", "a recipe cannot extend itself: bad extends bad"),
        ("extends: loop\n", "a recipe cannot extend itself: bad extends loop extends bad"),
        ("extends: good\nmodel: {seed: 1}\n", "bad.yaml: field 'seed' belongs in section 'training', not 'model'"),
    ],
)
def test_bad_extensions_are_named(tmp_path, text, message):
    (tmp_path / "good.yaml").write_text("model: {}\n")
    (tmp_path / "loop.yaml").write_text("extends: bad\n")
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "is not a recipe: expected the sections model, data, objective, training"),
        (
            "modle: {}\n",
            "unknown section 'modle'. Sections: model, data, objective, training; did you mean model",
        ),
        ("model: {num_concept: 3}\n", "unknown field 'num_concept' in section 'model'; did you mean num_concepts"),
        ("model: {learning_rate: 3}\n", "field 'learning_rate' belongs in section 'training', not 'model'"),
        (
            "objective: {t_min: 0.1}\n",
            r"unknown field 't_min' .*; it is a setting of a corruption: corruption: {diffusion",
        ),
        ("objective: {label_smoothing: 2.0}\n", r"label_smoothing must be in \[0, 1\), got 2.0"),
        ("objective: {label_smoothing: .nan}\n", "bad.yaml: objective.label_smoothing must be finite, got nan"),
        ("model: [1, 2]\n", r"section 'model' must map fields to values, got \[1, 2\]"),
        ("model: {num_concepts: [1, 2]}\n", r"bad.yaml: model.num_concepts must be a whole number, got \[1, 2\]"),
        ("model: {num_concepts: {a: 1}}\n", "model.num_concepts must be a whole number, got {'a': 1}"),
        ("model: {num_concepts: true}\n", "model.num_concepts must be a whole number, got True"),
        ("model: {num_concepts: 2.5}\n", "model.num_concepts must be a whole number, got 2.5"),
        ("model: {decoder_context: some}\n", "model.decoder_context must be one of none, latent, got 'some'"),
        ("data: {streaming: maybe}\n", "data.streaming must be true or false, got 'maybe'"),
        (
            "data: {dataset_revision: 2024}\n",
            "data.dataset_revision must be a text or null, got 2024; put it in quotes",
        ),
        (
            "objective: {regularizers: [variance=1]}\n",
            r"objective.regularizers must be a mapping, got \['variance=1'\]",
        ),
        ("objective: {regularizers: {a: 1}}\n", "Unknown regularizer 'a'. Available: orthogonality"),
        ("training: {learning_rate: fast}\n", "training.learning_rate must be a number, got 'fast'"),
        ("training: {max_grad_norm: .inf}\n", "training.max_grad_norm must be finite, got inf"),
        ("training: {num_train_epochs: 1e999}\n", "training.num_train_epochs must be finite, got inf"),
        (
            "training: {eval_strategy: no}\n",
            "eval_strategy must be one of no, steps, epoch, got False; put it in quotes",
        ),
        ("training: {lr_scheduler_type: cosin}\n", "lr_scheduler_type must be one of .*'cosin'; did you mean cosin"),
        ("training: {report_to: [1]}\n", r"report_to must be null or a text or a list of texts, got \[1\]"),
        (
            "training: {parallelism_config: {a: 1}}\n",
            "parallelism_config must be ParallelismConfig or null, got {'a': 1}",
        ),
        ("? [1]\n: x\n", "cannot be read as YAML: "),
        ("model: !!python/name:os.system\n", "cannot be read as YAML: could not determine a constructor"),
        ("{1: {}}\n", "unknown section 1"),
        ("model: {1: 2}\n", "unknown field 1 in section 'model'"),
    ],
)
def test_bad_recipes_are_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "bad.yaml")


def test_unknown_recipe_and_field_are_named():
    with pytest.raises(ValueError, match=r"Unknown recipe 'tyni'\. Available: .*tiny"):
        Recipe.load("tyni")
    with pytest.raises(ValueError, match="unknown field 'num_concept'; did you mean num_concepts"):
        Recipe.load("tiny", num_concept=3)
    with pytest.raises(ValueError, match=r"unknown field 't_max'; it is a setting of a corruption: .*diffusion"):
        Recipe.load("tiny", t_max=0.5)
    with pytest.raises(ValueError, match=r"model\.num_concepts must be a whole number, got 'many'"):
        Recipe.load("tiny", num_concepts="many")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "max_steps must be positive, or -1 for as many as num_train_epochs take, got 0"),
        ({"max_steps": -3}, "max_steps must be positive, or -1 for as many as num_train_epochs take, got -3"),
        *(
            ({name: value}, f"{name} must be positive, got {value}")
            for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size")
            for value in (0, -1)
        ),
        ({"num_train_epochs": 0}, "num_train_epochs must be positive, got 0"),
        ({"logging_steps": 0}, "logging_steps must be positive, got 0"),
        ({"save_total_limit": 0}, "save_total_limit must be positive, got 0"),
        *(
            ({name: -1}, f"{name} must be at least 0, got -1")
            for name in ("weight_decay", "learning_rate", "warmup_steps", "max_grad_norm", "stop_on_collapse", "seed")
        ),
        ({"adam_beta1": 1.0}, r"adam_beta1 must be in \[0, 1\), got 1.0"),
        ({"ema_decay": -0.1}, r"ema_decay must be in \[0, 1\), got -0.1"),
        *(({name: math.nan}, f"training.{name} must be finite, got nan") for name in ("logging_steps", "eval_delay")),
        *(
            ({name: -math.inf}, f"training.{name} must be finite, got -inf")
            for name in ("max_grad_norm", "adam_epsilon")
        ),
        ({"contrastive_temperature": math.inf}, "objective.contrastive_temperature must be finite, got inf"),
        (
            {"lr_scheduler_kwargs": {"min_lr": math.nan}},
            "training.lr_scheduler_kwargs must be finite, got {'min_lr': nan",
        ),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe.load("tiny", **fields)


FLOATS = [(s, n) for s, cls in SECTIONS.items() for n, kind in annotations(cls).items() if "float" in str(kind)]


@pytest.mark.parametrize(("section", "name"), FLOATS)
@pytest.mark.parametrize("value", [-math.inf, "nan"])
def test_no_number_is_infinite(section, name, value):
    given = {"variance": value} if name == "regularizers" else value
    with pytest.raises(ValueError, match=rf"{section}\.{name} must be finite, got"):
        Recipe.load("tiny", **{name: given})


def test_the_tokenizer_gives_vocabulary_and_special_tokens(tokenizer):
    config = Recipe.load("tiny").model_config(tokenizer)
    assert isinstance(config, ConceptEncoderConfig)
    assert config.vocab_size == len(tokenizer)
    assert config.bos_token_id == tokenizer.cls_token_id and config.eos_token_id == tokenizer.sep_token_id
    with pytest.raises(ValueError, match=r"vocab_size \(10\) is smaller than the tokenizer's"):
        Recipe.load("tiny", vocab_size=10).model_config(tokenizer)
    with pytest.raises(ValueError, match=r"max_length \(256\) is larger than max_position_embeddings \(128\)"):
        Recipe.load("tiny", max_length=256).model_config(tokenizer)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["../tiny", "recipes/../tiny", "/etc/passwd", ".", "..", "../..yaml", "a/b"])
def test_names_that_lead_out_of_the_recipes_are_unknown(tmp_path, name):
    (tmp_path / "tiny.yaml").write_text("model: {}\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text("model: {}\n")
    (tmp_path / "..yaml").write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"Unknown recipe .*\. Available: tiny"):
        find_recipe(name, tmp_path / "recipes")


@pytest.mark.parametrize("base", ["../base.yaml", "/etc/base.yaml", "../base", "link.yaml"])
def test_a_recipe_extends_nothing_outside_its_folder(tmp_path, base):
    (tmp_path / "base.yaml").write_text("model: {}\n")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "link.yaml").symlink_to(tmp_path / "base.yaml")
    (folder / "own.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(ValueError, match=r"own\.yaml: extends: '.*' leads out of .*recipes"):
        Recipe.load(folder / "own.yaml")


# ------------------------------------------------------------------------------------------------------- command lines


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("--learning_rate 1e-4 --bf16 true --max_steps 5", {"learning_rate": 1e-4, "bf16": True, "max_steps": 5}),
        ("--bf16 --no_eval_on_start", {"bf16": True, "eval_on_start": False}),
        ("--max_steps=-1 --num_concepts 4 --max_steps 3", {"max_steps": 3, "num_concepts": 4}),
        (
            "--report_to wandb tensorboard --label_names a",
            {"report_to": ["wandb", "tensorboard"], "label_names": ["a"]},
        ),
        ("--report_to none --include_for_metrics", {"report_to": "none", "include_for_metrics": []}),
        ("--eval_strategy no --optim adafactor", {"eval_strategy": "no", "optim": "adafactor"}),
        ("--keep_rows label>=4 --dataset_revision 2024", {"keep_rows": "label>=4", "dataset_revision": "2024"}),
        ("--corruption tsdae --validation_size null", {"corruption": "tsdae", "validation_size": None}),
        ("--corruption {tsdae:} --regularizers {}", {"corruption": {"tsdae": None}, "regularizers": {}}),
    ],
)
def test_words_become_typed_fields(words, fields):
    assert fields_from_words(words.split()) == fields


def test_a_mapping_is_one_word():
    words = ["--corruption", "{tsdae: {deletion_rate: 6e-1}}", "--regularizers", "{variance: 1}"]
    recipe = Recipe.load("tiny", **fields_from_words(words), decoder_query="position")
    assert recipe.objective.built_corruption.deletion_rate == 0.6
    assert recipe.objective.regularizers == {"variance": 1.0}
    words = ["--lr_scheduler_kwargs", '{"num_cycles": 2}']
    assert fields_from_words(words) == {"lr_scheduler_kwargs": {"num_cycles": 2}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_concept 3", "unknown field 'num_concept'; did you mean num_concepts"),
        ("--num-concepts 3", "unknown field 'num-concepts'; did you mean num_concepts"),
        (
            "--t_min 0.1",
            "unknown field 't_min'; it is a setting of a corruption: corruption: {diffusion: {t_min: ...}}",
        ),
        ("--num_concepts many", "num_concepts must be a whole number, got 'many'"),
        ("--num_concepts 1 2", "num_concepts takes one value, got 1 2"),
        ("--num_concepts", "num_concepts takes one value, got none"),
        ("--bf16 perhaps", "bf16 must be true or false, got 'perhaps'"),
        ("--no_seed", "--no_seed needs a field that is true or false; seed is a whole number"),
        ("--packing loose", "packing must be one of packed, truncated, got 'loose'"),
        ("--max_grad_norm inf", "max_grad_norm must be finite, got inf"),
        ("--regularizers {a:", "regularizers cannot hold '{a:', which is not YAML: "),
        ("4 --seed 1", "'4' follows no field; write --field value"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fields_from_words(words.split())


def test_sections_can_be_chosen():
    assert fields_from_words(["--max_length", "32"], ["data"]) == {"max_length": 32}
    with pytest.raises(ValueError, match="unknown field 'num_concepts'"):
        fields_from_words(["--num_concepts", "4"], ["data"])


def test_help_lists_every_field_with_what_it_may_hold():
    listed = fields_help()
    for section, cls in SECTIONS.items():
        assert f"{section}:\n" in listed
        assert all(f"  --{field.name}  (" in listed for field in dataclasses.fields(cls) if field.init)
    assert "--decoder_context  (one of none, latent; default none)" in listed
    assert "model:" not in fields_help(["data"])


# ---------------------------------------------------------------------------------------------------------- properties


FIELDS = {name: sorted(annotations(cls)) for name, cls in SECTIONS.items()}
PLAIN = {
    "num_concepts": st.integers(1, 64),
    "hidden_dropout_prob": st.floats(0, 0.9),
    "decoder_context": st.sampled_from(["none", "latent"]),
    "final_layer_norm_eps": st.none() | st.floats(1e-12, 1e-3),
    "max_length": st.integers(3, 128),
    "keep_rows": st.none(),
    "corpus_seed": st.integers(0, 2**31),
    "corruption": st.sampled_from(["diffusion", "mlm", "prefix", {"tsdae": {"deletion_rate": 0.5}}]),
    "regularizers": st.dictionaries(st.sampled_from(["variance", "orthogonality"]), st.floats(1e-3, 1e3)),
    "label_smoothing": st.floats(0, 0.99),
    "learning_rate": st.floats(0, 1),
    "max_steps": st.integers(1, 10**6),
    "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant_with_warmup"]),
    "lr_scheduler_kwargs": st.none() | st.just({"num_cycles": 2}),
    "eval_steps": st.none() | st.integers(1, 100),
    "gradient_checkpointing": st.none() | st.booleans(),
    "label_names": st.none() | st.just(["labels"]),
    "run_name": st.none()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.slow
@cases(25)
@given(st.fixed_dictionaries({}, optional=PLAIN))
def test_what_is_saved_loads_as_the_same_recipe(tmp_path, fields):
    recipe = Recipe.load("tiny", use_cpu=True, **fields)
    recipe.save(tmp_path / "again.yaml")
    again = Recipe.load(tmp_path / "again.yaml", use_cpu=True)
    assert again.as_dict() == recipe.as_dict()
    assert (again.model, again.data, again.objective) == (recipe.model, recipe.data, recipe.objective)


@pytest.mark.slow
@cases(600)
@given(st.data())
def test_a_recipe_is_resolved_or_refused_by_name(tmp_path, data):
    section = st.sampled_from(["model", "data", "objective"])
    field = section.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(FIELDS[name]), VALUES))
    content = {"training": {"bf16": False, "use_cpu": True}}
    for name, key, value in data.draw(st.lists(field, max_size=3)):
        content.setdefault(name, {})[key] = value
    if not data.draw(st.integers(0, 3)):
        content = data.draw(mutated(content))
    path = tmp_path / "drawn.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        recipe = Recipe.load(path)
    except ValueError:
        return
    assert recipe.name == "drawn"
    yaml.safe_dump(recipe.as_dict())


@pytest.mark.slow
@cases(400)
@given(VALUES)
def test_the_data_section_of_a_checkpoint_is_a_mapping_or_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": content} if isinstance(content, str | dict) else content))
    try:
        read_data(tmp_path)
    except ValueError as error:
        names_one_of(error, [str(path)])


def test_the_corpus_of_a_checkpoint_is_read_with_fields_on_top(tmp_path):
    Recipe.load("tiny").save(tmp_path / "recipe.yaml")
    assert read_data(tmp_path, corpus_seed="3") == dataclasses.replace(Recipe.load("tiny").data, corpus_seed=3)
    with pytest.raises(ValueError, match="unknown field 'learning_rate'"):
        read_data(tmp_path, learning_rate=1)
