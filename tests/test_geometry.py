"""Analysis of checkpoints: grades, encoding, the written JSON, the command line and every message."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from concept_encoder import ConceptEncoderConfig, ConceptEncoderForDiffusionMLM, ConceptEncoderModel
from concept_encoder.eval.concept_geometry import geometry_metrics
from concept_encoder.eval.geometry import GRADES, analyze, collect_concepts, concept_attention, grade, load_encoder
from concept_encoder.scripts import analyze as script
from concept_encoder.trainers.data import DataArguments

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "diffusion_l2.json"
WORDS = "the a cat dog bird sees hears likes red small old house tree street".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NUM_CONCEPTS, HIDDEN_SIZE = 6, 16


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


def make_config(**changes) -> ConceptEncoderConfig:
    return ConceptEncoderConfig(
        **{
            "vocab_size": len(SPECIAL) + len(WORDS),
            "hidden_size": HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_concepts": NUM_CONCEPTS,
            "max_position_embeddings": 48,
            "decoder_num_hidden_layers": 1,
            "mask_token_id": 4,
            **changes,
        }
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "run"
    ConceptEncoderForDiffusionMLM(make_config()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 9)):
        texts = [" ".join(rng.choice(WORDS, size=rng.integers(3, 60))) for _ in range(count)]
        lines = [
            json.dumps({"text": text}) for text in (*texts[:2], "", "  ", *texts[2:])
        ]  # blank ones are no documents
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def data_arguments(corpus: Path, **changes) -> DataArguments:
    return DataArguments(**{"dataset_name": str(corpus), "max_length": 40, "packing": "truncated", **changes})


# --- grades ---


def graded(name: str, value: float, num_concepts: int = 128, hidden_size: int = 512) -> str:
    metrics = dict.fromkeys(GRADES, 0.0) | {name: value}
    return grade(metrics, num_concepts, hidden_size)[name]


@pytest.mark.parametrize(
    ("name", "good", "ok", "poor"),
    [
        ("global_effective_rank", 90.1, 90, 40),
        ("global_effective_rank_normalized", 0.71, 0.7, 0.3),
        ("effective_rank_normalized", 0.71, 0.7, 0.3),
        ("participation_ratio_normalized", 0.31, 0.3, 0.1),
        ("dimensions_for_95_variance", 51, 50, 10),
        ("collapsed_dimensions_ratio", 0.009, 0.01, 0.1),
        ("isotropy", 0.011, 0.01, 0.001),
        ("mean_concept_similarity", 0.29, 0.3, 0.5),
        ("max_concept_similarity", 0.59, 0.6, 0.8),
        ("uniformity_loss", 0.29, 0.3, 0.6),
        ("mean_dimension_std", 0.81, 0.8, 0.3),
        ("min_dimension_std", 0.11, 0.1, 0.01),
        ("top_1_dominance_ratio", 0.29, 0.3, 0.5),
    ],
)
def test_reference_thresholds(name: str, good: float, ok: float, poor: float) -> None:
    assert [graded(name, value) for value in (good, ok, poor)] == ["GOOD", "OK", "POOR"]


def test_every_rule_is_tested_above() -> None:
    assert len(GRADES) == 13


def test_rank_thresholds_scale_with_the_rank_bound() -> None:
    assert graded("global_effective_rank", 11.3, num_concepts=16, hidden_size=64) == "GOOD"  # 90 * 16 / 128 = 11.25
    assert graded("global_effective_rank", 11.2, num_concepts=16, hidden_size=64) == "OK"
    assert graded("dimensions_for_95_variance", 1, num_concepts=16, hidden_size=64) == "POOR"  # 10 * 16 / 128 = 1.25
    assert graded("global_effective_rank", 11.3, num_concepts=128, hidden_size=16) == "GOOD"
    assert graded("mean_dimension_std", 0.5, num_concepts=16, hidden_size=64) == "OK"


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/reference is absent")
def test_grades_of_the_reference_run() -> None:
    figures = json.loads(REFERENCE.read_text())["geometry"]
    grades = grade(figures, 128, 512)
    for name in ("global_effective_rank", "isotropy", "max_concept_similarity", "participation_ratio_normalized"):
        assert grades[name] == "POOR"
    assert grades["dimensions_for_95_variance"] == "OK"
    assert grades["mean_concept_similarity"] == grades["mean_dimension_std"] == "GOOD"


def test_grade_names_missing_metrics() -> None:
    with pytest.raises(ValueError, match=r"lack global_effective_rank, .*geometry_metrics"):
        grade({}, 128, 512)


# --- encoding ---


def test_collect_concepts_is_deterministic_and_restores_the_mode() -> None:
    torch.manual_seed(0)
    model = ConceptEncoderModel(make_config(hidden_dropout_prob=0.5)).train()
    ids = torch.randint(5, 19, (5, 7))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(2)]
    concepts = collect_concepts(model, batches, "cpu")
    assert concepts.shape == (5, NUM_CONCEPTS, HIDDEN_SIZE)
    assert concepts.dtype == np.float32
    assert model.training
    np.testing.assert_array_equal(concepts, collect_concepts(model, batches, "cpu"))
    with torch.no_grad():
        expected = model.eval()(ids).last_hidden_state.numpy()
    np.testing.assert_allclose(concepts, expected, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_collect_concepts_restores_the_mode_after_an_error() -> None:
    model = ConceptEncoderModel(make_config()).train()
    bad = {"input_ids": torch.full((1, 3), 10_000), "attention_mask": torch.ones(1, 3)}
    with pytest.raises(ValueError, match="token ids must lie in"):
        collect_concepts(model, [bad], "cpu")
    assert model.training


def test_collect_concepts_without_batches() -> None:
    with pytest.raises(ValueError, match="no batches"):
        collect_concepts(ConceptEncoderModel(make_config()), [], "cpu")


def test_concept_attention_is_a_distribution_over_the_tokens() -> None:
    model = ConceptEncoderModel(make_config()).eval()
    attention = concept_attention(model, make_tokenizer(), "the cat sees " * 20, 32)
    weights = np.array(attention["weights"])
    assert attention["tokens"][:3] == ["[CLS]", "the", "cat"]
    assert attention["tokens"][-1] == "[SEP]"
    assert weights.shape == (NUM_CONCEPTS, 32) == (NUM_CONCEPTS, len(attention["tokens"]))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=2e-3)  # 32 entries of four decimals


# --- analysis ---


def test_analyze_writes_what_the_functions_give(checkpoint: Path, corpus: Path) -> None:
    result = analyze(checkpoint, data_arguments(corpus), num_batches=3, batch_size=3)
    assert json.loads((checkpoint / "geometry.json").read_text()) == result
    assert [path.name for path in checkpoint.glob(".geometry*")] == []
    assert result["kind"] == "geometry"
    assert (result["num_samples"], result["num_batches"], result["batch_size"]) == (9, 3, 3)
    assert (result["num_concepts"], result["hidden_size"]) == (NUM_CONCEPTS, HIDDEN_SIZE)
    assert result["corpus"]["dataset_name"] == str(corpus)
    assert set(result["grades"]) == set(GRADES)
    assert result["by_construction"] == ["collapsed_dimensions_ratio", "isotropy"]
    assert len(result["singular_values"]) == NUM_CONCEPTS
    assert len(result["dimension_std"]) == HIDDEN_SIZE
    assert np.array(result["similarity_matrix"]).shape == (NUM_CONCEPTS, NUM_CONCEPTS)
    assert np.diag(result["similarity_matrix"]) == pytest.approx(1)

    lines = (corpus / "validation.jsonl").read_text().splitlines()
    texts = [text for text in (json.loads(line)["text"] for line in lines) if text.strip()]
    inputs = make_tokenizer()(texts, truncation=True, max_length=40, padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (9, 40)
    with torch.no_grad():
        concepts = load_encoder(checkpoint)(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    expected = geometry_metrics(concepts.numpy(), 3)
    assert result["metrics"] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_special_tokens_in_a_text_are_plain_characters(checkpoint: Path, corpus: Path) -> None:
    (corpus / "validation.jsonl").write_text(json.dumps({"text": "the [MASK] sees"}) + "\n")
    tokens = analyze(checkpoint, data_arguments(corpus), 1, 1)["concept_attention"]["tokens"]
    assert tokens == ["[CLS]", "the", "[UNK]", "[UNK]", "[UNK]", "sees", "[SEP]"]


def test_bfloat16_checkpoint_is_analysed_in_float32(checkpoint: Path, corpus: Path) -> None:
    ConceptEncoderForDiffusionMLM.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(checkpoint)
    assert next(load_encoder(checkpoint).parameters()).dtype == torch.float32


def test_analyze_takes_the_output_path(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    analyze(checkpoint, data_arguments(corpus), 1, 2, output=tmp_path / "new" / "a.json")
    assert (tmp_path / "new" / "a.json").exists()
    assert not (checkpoint / "geometry.json").exists()


def test_too_few_documents_leaves_no_output(checkpoint: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"320 validation documents are needed .* the corpus has 9; .*--num_batches"):
        analyze(checkpoint, data_arguments(corpus), 20, 16)
    assert not list(checkpoint.glob("*geometry*"))


def test_limits_of_the_training_run_do_not_bind(checkpoint: Path, corpus: Path) -> None:
    free = analyze(checkpoint, data_arguments(corpus), 2, 3)
    assert free["num_samples"] == 6
    assert analyze(checkpoint, data_arguments(corpus, max_validation_documents=1), 2, 3) == free
    other = analyze(checkpoint, data_arguments(corpus, corpus_seed=1), 2, 3)
    assert other["metrics"] != free["metrics"]  # another sample of the nine


def test_failed_write_keeps_the_old_file(checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / "geometry.json").write_text("old")
    monkeypatch.setattr("concept_encoder.eval.geometry.dimension_std", lambda concepts: np.array([np.nan]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        analyze(checkpoint, data_arguments(corpus), 1, 2)
    assert (checkpoint / "geometry.json").read_text() == "old"
    assert not list(checkpoint.glob(".geometry*"))


def test_counts_below_one(checkpoint: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        analyze(checkpoint, data_arguments(corpus), 0, 4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        analyze(checkpoint, data_arguments(corpus), 4, -1)


def test_max_length_beyond_the_positions(checkpoint: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length \(64\) exceeds .*max_position_embeddings \(48\).*--max_length"):
        analyze(checkpoint, data_arguments(corpus, max_length=64), 1, 4)


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'bert'; only 'concept_encoder' can be analysed"):
        load_encoder(tmp_path)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_encoder(tmp_path)


def test_no_folder() -> None:
    with pytest.raises(ValueError, match=r"must be a folder, got 'nowhere/at-all'; .*hf download"):
        load_encoder("nowhere/at-all")


def test_missing_encoder_weights(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks encoder weights \(.*layers\.2\."):
        load_encoder(checkpoint)


# --- command line ---


def run_script(checkpoint: Path, *flags: str) -> None:
    script.main([str(checkpoint), "--num_batches", "3", "--batch_size", "3", *flags])


def test_script_takes_the_corpus_from_the_recipe(checkpoint: Path, corpus: Path, capsys) -> None:
    recipe = {"model": {}, "data": {"dataset_name": str(corpus), "max_length": 24, "packing": "packed"}}
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_script(checkpoint)
    result = json.loads((checkpoint / "geometry.json").read_text())
    assert result["corpus"]["dataset_name"] == str(corpus)
    assert result["corpus"]["max_length"] == 24
    printed = capsys.readouterr().out
    assert f"9 documents of {corpus}" in printed
    assert "global_effective_rank_normalized" in printed
    assert "(fixed by the output LayerNorm)" in printed
    assert printed.strip().endswith(f"Next: python scripts/report.py {checkpoint}")


def test_flags_override_the_recipe(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump({"data": {"dataset_name": "absent", "max_length": 24}}))
    output = tmp_path / "other.json"
    run_script(checkpoint, "--dataset_name", str(corpus), "--output", str(output))
    assert json.loads(output.read_text())["corpus"]["max_length"] == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_batches", "200"], "600 validation documents are needed"),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0"),
    ],
)
def test_script_errors_are_one_line(checkpoint: Path, corpus: Path, capsys, flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run_script(checkpoint, "--dataset_name", str(corpus), "--max_length", "40", *flags)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_script_rejects_unknown_recipe_fields(checkpoint: Path, capsys) -> None:
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump({"data": {"datset_name": "x"}}))
    with pytest.raises(SystemExit):
        run_script(checkpoint)
    assert "unknown data fields: datset_name. The known fields are: dataset_name" in capsys.readouterr().err
