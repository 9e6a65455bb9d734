import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from fuzzing import VALUES, cases, mutated, names_one_of
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st

from concept_encoder import ConceptEncoderConfig
from concept_encoder.trainers.recipes import SECTIONS, find_recipe, load_recipe, recipe_data, recipe_parser

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"


def read(name, *overrides):
    return load_recipe(find_recipe(name, RECIPES), list(overrides), recipe_parser())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_builds_and_its_header_says_how_to_run_it(path, tokenizer):
    recipe = load_recipe(path, ["--bf16", "false"], recipe_parser())
    assert recipe.name == path.stem
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(f"# {word}:" in header for word in ("command", "hardware", "expected"))
    assert re.search(rf"scripts/pretrain(_twin)?\.py {path.stem}\b", header)
    assert recipe.model_config(tokenizer).mask_token_id == tokenizer.mask_token_id


def test_the_reference_recipe_holds_every_published_hyper_parameter(shared):
    import json

    reference = json.loads((shared / "reference" / "diffusion_l2.json").read_text())
    architecture, published = reference["architecture"], reference["training"]
    recipe = read("diffusion_l2", "--bf16", "false")
    for name in ("hidden_size", "num_hidden_layers", "num_concepts", "num_attention_heads", "intermediate_size"):
        assert getattr(recipe.model, name) == architecture[name]
    assert recipe.model.decoder_num_hidden_layers == architecture["decoder_num_layers"]
    assert recipe.data.dataset_name == published["dataset"]
    assert recipe.data.tokenizer_name == published["tokenizer"]
    assert recipe.data.max_length == published["max_seq_length"]
    assert recipe.objective.label_smoothing == published["label_smoothing"]
    assert (recipe.objective.t_min, recipe.objective.t_max) == (published["t_min"], published["t_max"])
    training = recipe.training
    assert training.num_train_epochs == published["epochs"]
    assert training.lr_scheduler_type.value == published["lr_scheduler"]
    assert training.per_device_train_batch_size == published["per_device_batch_size"]
    for name in ("learning_rate", "warmup_steps", "gradient_accumulation_steps", "weight_decay", "max_grad_norm"):
        assert getattr(training, name) == published[name]
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * published["devices"]
    assert batch == published["effective_batch_size"]


def test_overrides_reach_every_section():
    recipe = read("tiny", "--num_concepts", "4", "--max_length", "64", "--t_min", "0.1", "--learning_rate", "1e-5")
    assert recipe.model.num_concepts == 4
    assert recipe.data.max_length == 64
    assert recipe.objective.t_min == 0.1
    assert recipe.training.learning_rate == 1e-5
    assert recipe.training.output_dir == "runs/tiny"


def test_a_resolved_recipe_reads_back_the_same_and_holds_no_path(tmp_path):
    recipe = read("tiny", "--output_dir", str(tmp_path / "out"))
    text = yaml.safe_dump(recipe.as_dict())
    assert str(tmp_path) not in text
    (tmp_path / "tiny.yaml").write_text(text)
    again = load_recipe(tmp_path / "tiny.yaml", [], recipe_parser())
    assert again.as_dict() == recipe.as_dict()


def test_a_recipe_may_extend_another(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "model: {num_concepts: 4, hidden_size: 64}\ntraining: {max_steps: 3, seed: 7}\nobjective: {t_min: 0.2}\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base\nmodel: {num_concepts: 5}\ndata: {max_length: 32}\n")
    (tmp_path / "top.yaml").write_text("extends: middle.yaml\nobjective: {t_min: null, corruption: mlm}\n")
    recipe = load_recipe(tmp_path / "top.yaml", ["--seed", "9"], recipe_parser())
    assert (recipe.name, recipe.model.num_concepts, recipe.model.hidden_size) == ("top", 5, 64)
    assert (recipe.data.max_length, recipe.training.max_steps, recipe.training.seed) == (32, 3, 9)
    assert recipe.objective.t_min == 0.0 and recipe.objective.corruption == "mlm"
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
        load_recipe(tmp_path / "bad.yaml", [], recipe_parser())


# Against `diffusion_small`, which they extend.
DIFFERENCES = {
    "all_positions": {"position_share"},
    "bixt": {"token_update"},
    "coding_rate": {"regularizers"},
    "contrastive_pairs": {
        *("contrastive", "dataset_name", "text_column", "partner_column", "keep_rows", "packing"),
    },
    "diffusion_contrastive": {"contrastive", "hidden_dropout_prob", "attention_probs_dropout_prob"},
    "diffusion_l6": {"num_hidden_layers"},
    "latent": {"decoder_context"},
    "mlm_perceiver": {"corruption", "corruption_settings", "position_share"},
    "nested": {"nested_concepts"},
    "orthogonal_latents": {"latent_init"},
    "orthogonality": {"regularizers"},
    "prefix": {"corruption", "corruption_settings"},
    "slot": {"concept_attention"},
    "slot_vicreg": {"regularizers"},
    "tsdae": {"decoder_query", "corruption", "corruption_settings"},
    "two_view": {"decoder_context", "corruption", "corruption_settings"},
}


def test_the_compared_recipes_differ_where_they_say():
    extending = {p.stem for p in RECIPES.glob("*.yaml") if "extends: diffusion_small" in p.read_text()}
    assert extending == set(DIFFERENCES)
    base = read("diffusion_small").as_dict()
    for name, expected in DIFFERENCES.items():
        own = read(name).as_dict()
        assert {f for s in base for f in base[s] | own[s] if base[s].get(f) != own[s].get(f)} == expected, name


def test_scientific_notation_without_a_dot_is_a_number(tmp_path):
    (tmp_path / "x.yaml").write_text("training:\n  learning_rate: 3e-4\n")
    assert load_recipe(tmp_path / "x.yaml", [], recipe_parser()).training.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "is not a recipe: expected the sections model, data, objective, training"),
        ("modle: {}\n", "unknown section 'modle'. Sections: model, data, objective, training"),
        ("model: {num_concept: 3}\n", "unknown field 'num_concept' in section 'model'; did you mean num_concepts"),
        ("model: {learning_rate: 3}\n", "field 'learning_rate' belongs in section 'training', not 'model'"),
        ("objective: {label_smoothing: 2.0}\n", "label_smoothing must lie in"),
        ("model: [1, 2]\n", r"section 'model' must map fields to values, got \[1, 2\]"),
        ("model: {num_concepts: [1, 2]}\n", "field 'num_concepts' takes one value, got"),
        ("model: {num_concepts: {a: 1}}\n", "field 'num_concepts' takes one value, got"),
        ("objective: {regularizers: [variance=1, --seed=7]}\n", "field 'regularizers' cannot hold '--seed=7'"),
        ("objective: {regularizers: {a: 1}}\n", "field 'regularizers' takes a list, got"),
        ("? [1]\n: x\n", "cannot be read as YAML: "),
        ("model: !!python/name:os.system\n", "cannot be read as YAML: could not determine a constructor"),
        ("{1: {}}\n", "unknown section 1"),
        ("model: {1: 2}\n", "unknown field 1 in section 'model'"),
    ],
)
def test_bad_recipes_are_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "bad.yaml", [], recipe_parser())


def test_unknown_recipe_and_override_are_named():
    with pytest.raises(ValueError, match=r"Unknown recipe 'tyni'\. Available: .*tiny"):
        find_recipe("tyni", RECIPES)
    with pytest.raises(ValueError, match="unknown field 'num_concept'; did you mean num_concepts"):
        read("tiny", "--num_concept", "3")


def test_a_value_of_the_wrong_type_is_refused(capsys):
    with pytest.raises(SystemExit):
        read("tiny", "--num_concepts", "many")
    assert "invalid int value: 'many'" in capsys.readouterr().err


def test_the_tokenizer_gives_vocabulary_and_special_tokens(tokenizer):
    config = read("tiny").model_config(tokenizer)
    assert isinstance(config, ConceptEncoderConfig)
    assert config.vocab_size == len(tokenizer)
    assert config.bos_token_id == tokenizer.cls_token_id and config.eos_token_id == tokenizer.sep_token_id
    with pytest.raises(ValueError, match=r"vocab_size \(10\) is smaller than the tokenizer's"):
        read("tiny", "--vocab_size", "10").model_config(tokenizer)
    with pytest.raises(ValueError, match=r"max_length \(256\) is larger than max_position_embeddings \(128\)"):
        read("tiny", "--max_length", "256").model_config(tokenizer)


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
        load_recipe(folder / "own.yaml", [], recipe_parser())


PARSER = recipe_parser()
FIELDS = {name: sorted(f.name for f in dataclasses.fields(cls) if f.init) for name, cls in SECTIONS.items()}


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
        recipe = load_recipe(path, [], PARSER)
    except (ValueError, StrictDataclassError):
        return
    except SystemExit as stopped:  # argparse has named the field on stderr
        assert stopped.code == 2  # noqa: PT017
        return
    assert recipe.name == "drawn"
    yaml.safe_dump(recipe.as_dict())


@cases(400)
@given(VALUES)
def test_the_data_section_of_a_checkpoint_is_a_mapping_or_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": content} if isinstance(content, str | dict) else content))
    try:
        assert isinstance(recipe_data(tmp_path), dict)
    except ValueError as error:
        names_one_of(error, [str(path)])
