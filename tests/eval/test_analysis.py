"""Analysis of checkpoints: loading, the three files written, the command line and every message."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import randomised
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from concept_encoder import (
    ConceptEncoderConfig,
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderModel,
)
from concept_encoder.eval.concepts.analysis import FILES, analyze
from concept_encoder.eval.concepts.attention import concept_reading
from concept_encoder.eval.concepts.ledger import concept_ledger
from concept_encoder.eval.loading.checkpoints import load, random_encoder
from concept_encoder.eval.metrics.concept_geometry import geometry_metrics
from concept_encoder.eval.metrics.concept_spectrum import spectrum_metrics
from concept_encoder.scripts import analyze as script
from concept_encoder.trainers.data.corpora import DataArguments
from concept_encoder.trainers.data.microworld import microworld_tokenizer
from concept_encoder.utils.results import GeometryResult

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
    randomised(ConceptEncoderForDiffusionMLM(make_config())).save_pretrained(folder)
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


def run(checkpoint: Path, corpus: Path, **changes) -> dict[str, dict]:
    counts = {"num_batches": 3, "batch_size": 3, "ledger_documents": 4}
    return analyze(checkpoint, data_arguments(corpus), **{**counts, **changes})


@pytest.mark.slow
def test_analyze_writes_what_the_functions_give(checkpoint: Path, corpus: Path) -> None:
    result = run(checkpoint, corpus)
    for name, file in FILES.items():
        found = getattr(result, name)
        assert type(found).load(checkpoint / file) == found
        assert found.kind == name
        assert found.checkpoint == checkpoint.name
        assert found.corpus.dataset_name == corpus.name
    assert os.fspath(result) == str(checkpoint) and result.files == list(FILES.values())
    assert [path.name for path in checkpoint.glob(".*.json*")] == []

    lines = (corpus / "validation.jsonl").read_text().splitlines()
    texts = [text for text in (json.loads(line)["text"] for line in lines) if text.strip()]
    inputs = dict(make_tokenizer()(texts, truncation=True, max_length=40, padding=True, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    assert inputs["input_ids"].shape == (9, 40)
    opened = load(checkpoint)
    encoder, head = opened.encoder, opened.diffusion
    with torch.no_grad():
        concepts = encoder(**inputs).last_hidden_state.numpy()
        twin = random_encoder(encoder.config).eval()(**inputs).last_hidden_state.numpy()
    expected = geometry_metrics(concepts, 3)
    assert result.geometry.metrics == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert result.geometry.num_samples == 9
    share = result.geometry.spectrum.content_share
    normal = 1 / encoder.norm.weight.detach().numpy()
    assert share.value == pytest.approx(spectrum_metrics(concepts, normal)["content_share"], rel=1e-4)
    assert share.nulls.random_encoder == pytest.approx(spectrum_metrics(twin)["content_share"], rel=1e-4)

    few = [{name: tensor[:4] for name, tensor in inputs.items()}]
    ledger = concept_ledger(head, make_tokenizer(), few, concepts[:4])
    assert result.ledger.num_documents == 4
    assert result.ledger.tokens == ledger.tokens
    null = ledger.bits_per_token.null.value
    assert result.ledger.bits_per_token.null.value == pytest.approx(null, rel=1e-3, abs=1e-6)
    reading = concept_reading(encoder, head.decoder, make_tokenizer(), [inputs])
    first, second = result.reading.concepts[0], reading.concepts[0]
    assert first.entropy_bits == pytest.approx(second.entropy_bits, rel=1e-4)
    assert first.share_read == pytest.approx(second.share_read, rel=1e-4)


@pytest.mark.slow
def test_isoscore_leaves_out_what_the_trained_layer_norm_removes(checkpoint: Path, corpus: Path) -> None:
    head = ConceptEncoderForDiffusionMLM.from_pretrained(checkpoint)
    weight = torch.linspace(0.2, 3, HIDDEN_SIZE)
    with torch.no_grad():
        head.encoder.norm.weight.copy_(weight)
    head.save_pretrained(checkpoint)
    figure = run(checkpoint, corpus).geometry.spectrum.views["within_raw"]["isoscore"].value
    lines = (corpus / "validation.jsonl").read_text().splitlines()
    texts = [text for text in (json.loads(line)["text"] for line in lines) if text.strip()]
    inputs = make_tokenizer()(texts, truncation=True, max_length=40, padding=True, return_tensors="pt")
    with torch.no_grad():
        concepts = load(checkpoint).encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.numpy()
    expected, *wrong = (
        spectrum_metrics(concepts, normal)["within_raw_isoscore"] for normal in (1 / weight.numpy(), weight, None)
    )
    assert figure == pytest.approx(expected, rel=1e-4)
    assert all(figure != pytest.approx(each, rel=1e-3) for each in wrong)


@pytest.mark.slow
def test_checkpoint_without_the_decoder(checkpoint: Path, corpus: Path) -> None:
    """An encoder has geometry and the encoder's reading; a ledger of other weights does not stay next to them."""
    run(checkpoint, corpus)
    assert (checkpoint / "ledger.json").exists()
    ConceptEncoderModel.from_pretrained(checkpoint).save_pretrained(checkpoint)
    result = run(checkpoint, corpus)
    assert result.ledger is None and result.files == ["geometry.json", "reading.json"]
    assert not (checkpoint / "ledger.json").exists()
    assert {row.share_read for row in result.reading.concepts} == {None}
    assert load(checkpoint).diffusion is None


@pytest.mark.slow
def test_classifier_checkpoint_has_no_ledger(checkpoint: Path, corpus: Path) -> None:
    ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(checkpoint).save_pretrained(checkpoint)
    assert run(checkpoint, corpus).ledger is None


def test_missing_decoder_weights(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"decoder_num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"lacks weights of its .*: decoder\.layers\.1\."):
        _ = load(checkpoint).diffusion


def test_random_encoder_is_always_the_same() -> None:
    state = torch.random.get_rng_state()
    first, second = (random_encoder(make_config()).latents.weight for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_special_tokens_in_a_text_are_plain_characters(checkpoint: Path, corpus: Path) -> None:
    (corpus / "validation.jsonl").write_text(9 * (json.dumps({"text": "the [MASK] sees"}) + "\n"))
    tokens = run(checkpoint, corpus).reading.example.tokens
    assert tokens == ["[CLS]", "the", "[UNK]", "[UNK]", "[UNK]", "sees", "[SEP]"]


@pytest.mark.slow
def test_bfloat16_checkpoint_is_analysed_in_float32(checkpoint: Path, corpus: Path) -> None:
    ConceptEncoderForDiffusionMLM.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(checkpoint)
    assert next(load(checkpoint).encoder.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_analyze_takes_the_output_folder(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    run(checkpoint, corpus, output_dir=tmp_path / "new" / "a")
    assert sorted(path.name for path in (tmp_path / "new" / "a").iterdir()) == sorted(FILES.values())
    assert not list(checkpoint.glob("geometry*"))


@pytest.mark.slow
def test_too_few_documents_leaves_no_output(checkpoint: Path, corpus: Path) -> None:
    message = r"320 validation documents are needed .* the corpus has 9; give --num_batches 1 --batch_size 9, or"
    with pytest.raises(ValueError, match=message):
        analyze(checkpoint, data_arguments(corpus), 20, 16, 128)
    assert not list(checkpoint.glob("*geometry*"))


@pytest.mark.slow
def test_limits_of_the_training_run_do_not_bind(checkpoint: Path, corpus: Path) -> None:
    free = run(checkpoint, corpus, num_batches=2, batch_size=4).geometry
    assert free.num_samples == 8
    limited = data_arguments(corpus, max_validation_documents=1)
    assert analyze(checkpoint, limited, 2, 4, 4).geometry == free
    other = analyze(checkpoint, data_arguments(corpus, corpus_seed=1), 2, 4, 4).geometry
    assert other.metrics != free.metrics  # another sample of the nine


@pytest.mark.slow
def test_nothing_is_written_before_all_is_measured(checkpoint: Path, corpus: Path, monkeypatch) -> None:
    (checkpoint / "geometry.json").write_text("old")

    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("concept_encoder.eval.concepts.analysis.concept_reading", fails)
    with pytest.raises(RuntimeError):
        run(checkpoint, corpus)
    assert (checkpoint / "geometry.json").read_text() == "old"
    assert not list(checkpoint.glob(".geometry*"))
    assert not (checkpoint / "ledger.json").exists()


def test_counts_below_their_least(checkpoint: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match="num_batches must be at least 1, got 0"):
        run(checkpoint, corpus, num_batches=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        run(checkpoint, corpus, batch_size=-1)
    with pytest.raises(ValueError, match="ledger_documents must be at least 2, got 1"):
        run(checkpoint, corpus, ledger_documents=1)
    with pytest.raises(ValueError, match=r"num_batches \* batch_size must be at least 8, got 1 \* 7"):
        run(checkpoint, corpus, num_batches=1, batch_size=7)


def test_max_length_beyond_the_positions(checkpoint: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length \(64\) exceeds .*max_position_embeddings \(48\).*--max_length"):
        analyze(checkpoint, data_arguments(corpus, max_length=64), 2, 4, 4)


def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model of type 'bert'; only type 'concept_encoder'"):
        run(tmp_path, Path("unread.jsonl"))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        run(tmp_path, Path("unread.jsonl"))


def test_no_folder() -> None:
    with pytest.raises(ValueError, match="nowhere/at-all is not a folder to write results to; give --output_dir"):
        run("nowhere/at-all", Path("unread.jsonl"))


def test_missing_encoder_weights(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks weights of its .*: encoder\.layers\.2\."):
        _ = load(checkpoint).encoder


# --- command line ---


def run_script(checkpoint: Path, *flags: str) -> None:
    script.main([str(checkpoint), "--num_batches", "3", "--batch_size", "3", "--ledger_documents", "4", *flags])


@pytest.mark.slow
def test_script_takes_the_corpus_from_the_recipe(checkpoint: Path, corpus: Path, capsys) -> None:
    recipe = {"model": {}, "data": {"dataset_name": str(corpus), "max_length": 24, "packing": "packed"}}
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_script(checkpoint)
    result = GeometryResult.load(checkpoint / "geometry.json")
    assert result.corpus.dataset_name == corpus.name
    assert result.corpus.max_length == 24
    printed, said = capsys.readouterr()
    assert f"9 documents of {corpus.name}" in printed
    assert "global_effective_rank_normalized" in printed
    assert "fixed by the output LayerNorm" in printed
    assert "within_centred rankme" in printed
    assert "of 4 documents" in printed
    assert f"Written to {checkpoint}: geometry.json, ledger.json, reading.json." in said
    assert said.strip().endswith(f"concept-encoder report {checkpoint}")


@pytest.mark.slow
def test_script_says_that_there_is_no_decoder(checkpoint: Path, corpus: Path, capsys) -> None:
    ConceptEncoderModel.from_pretrained(checkpoint).save_pretrained(checkpoint)
    run_script(checkpoint, "--dataset_name", str(corpus), "--max_length", "40")
    printed, said = capsys.readouterr()
    assert f"{checkpoint} holds no decoder of masked diffusion: no ledger" in printed
    assert "geometry.json, reading.json." in said


@pytest.mark.slow
def test_flags_override_the_recipe(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump({"data": {"dataset_name": "absent", "max_length": 24}}))
    output = tmp_path / "other"
    run_script(checkpoint, "--dataset_name", str(corpus), "--output_dir", str(output))
    assert GeometryResult.load(output / "geometry.json").corpus.max_length == 24


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
    assert "unknown field 'datset_name' in section 'data'; did you mean dataset_name" in capsys.readouterr().err


def test_concepts_without_an_output_layernorm_are_refused(tmp_path):
    tokenizer = microworld_tokenizer(64)
    sums = ConceptEncoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=0,
        num_attention_heads=2,
        num_concepts=4,
        concept_aggregation="sum",
        position_embedding_type="none",
        pad_token_id=tokenizer.pad_token_id,
    )
    ConceptEncoderModel(sums).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without an output LayerNorm, .*; measure it with similarity or retrieval"):
        analyze(tmp_path, DataArguments(dataset_name="microworld", max_length=64))
