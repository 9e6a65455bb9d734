import json
import re
from pathlib import Path

import original_model
import pytest
import torch
from original_model import TIMESTEPS, build, noised, save, sinusoids, stored
from safetensors.torch import load_file

from concept_encoder import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
)
from concept_encoder.configuration_concept import ConceptEncoderConfig
from concept_encoder.scripts.import_checkpoint import main
from concept_encoder.trainers.weights.importing import CLASSES, convert, format_table, import_checkpoint

ENCODER, DIFFUSION = "ConceptEncoder", "ConceptEncoderForMaskedDiffusion"
MLM, POSITION_ONLY = "ConceptEncoderForMaskedLMPerceiver", "ConceptEncoderForMaskedLMPerceiverPosOnly"
CLASSIFIER = "ConceptEncoderForSequenceClassificationPerceiver"
VIA_DECODER = "ConceptEncoderForSequenceClassificationViaDecoder"
PAIR = "ConceptEncoderForSentencePairClassification"


def labels(count):
    names = {str(i): f"LABEL_{i}" for i in range(count)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


BIXT, NARROW = {"use_bixt": True}, {"token_embedding_dim": 16}
LEARNED, SINUSOIDAL = {"concept_position_type": "learned"}, {"concept_position_type": "sinusoidal"}
MULTI_LABEL = {"problem_type": "multi_label_classification"}
# Names as in the recorded list of tensor names, where it has them.
VARIANTS = {
    "encoder": (ENCODER, {}),
    "encoder_bixt": (ENCODER, BIXT),
    "encoder_bixt_tokdim_learned": (ENCODER, BIXT | NARROW | LEARNED),
    "encoder_learned": (ENCODER, LEARNED),
    "encoder_sinusoidal": (ENCODER, SINUSOIDAL),
    "encoder_tokdim": (ENCODER, NARROW),
    "encoder_one_layer_bixt": (ENCODER, BIXT | {"num_hidden_layers": 1}),
    "encoder_tied_flag_narrow": (ENCODER, NARROW | {"tie_word_embeddings": True}),
    "diffusion_small_bixt_sin_tip": (DIFFUSION, BIXT | SINUSOIDAL),
    "diffusion_tokdim": (DIFFUSION, NARROW),
    "diffusion_tied_flag": (DIFFUSION, {"tie_word_embeddings": True}),
    "mlm_perceiver": (MLM, {}),
    "mlm_perceiver_bixt_learned": (MLM, BIXT | LEARNED),
    "mlm_perceiver_tokdim": (MLM, NARROW),
    "mlm_perceiver_tied": (MLM, {"tie_word_embeddings": True}),
    "mlm_perceiver_tied_flag_narrow": (MLM, NARROW | {"tie_word_embeddings": True}),
    "mlm_posonly": (POSITION_ONLY, {}),
    "mlm_posonly_tokdim": (POSITION_ONLY, NARROW | {"decoder_posonly": True}),
    "cls_perceiver": (CLASSIFIER, labels(3)),
    "cls_perceiver_bixt_multilabel": (CLASSIFIER, BIXT | MULTI_LABEL | labels(4)),
    "cls_perceiver_tokdim_regression": (CLASSIFIER, NARROW | {"problem_type": "regression"} | labels(1)),
    "cls_viadecoder": (VIA_DECODER, labels(3)),
    "cls_viadecoder_tokdim": (VIA_DECODER, NARROW | labels(2)),
    "cls_viadecoder_posonly": (VIA_DECODER, {"decoder_posonly": True} | labels(2)),
    "pair_cls": (PAIR, labels(3)),
}


def batch():
    """Row 1 padded on the right, row 2 on the left, in the middle and on the right."""
    ids = torch.randint(5, 160, (3, 35), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 21:] = 0
    mask[2, [0, 1, 12, 34]] = 0
    return ids * mask, mask


def output(model, ids, mask):
    if isinstance(model, ConceptEncoderForSentencePairClassification):
        return model(ids, mask, ids.flip(0), None if mask is None else mask.flip(0)).logits
    if isinstance(model, ConceptEncoderForDiffusionMLM):
        noise = noised(ids)
        labelled = torch.zeros_like(ids)  # every position, so that no logit is left out
        return model(ids, mask, noise, TIMESTEPS, labels=labelled).logits.view(*ids.shape, -1)
    return model(ids, mask)[0]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_imported_checkpoint_gives_the_outputs_of_the_original(variant, tmp_path):
    name, changes = VARIANTS[variant]
    original, config = build(name, **changes)
    original.double()  # so that only a difference in what is computed shows, and no rounding
    tensors = stored(original)
    model, table = import_checkpoint(str(save(tensors, config, tmp_path / "source")), tmp_path / "out")
    loaded, info = CLASSES[name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, mask = batch()
    with torch.no_grad():
        for given in (mask, None):
            expected = original(ids, given)
            torch.testing.assert_close(output(model, ids, given), expected, rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(output(loaded, ids, given), expected, rtol=1e-5, atol=2e-5)
    # Every tensor of the source, once; every tensor of the import, from somewhere.
    assert [row.source for row in table] == sorted(tensors)
    assert {target for row in table for target in row.targets} == set(model.state_dict())
    assert all(row.reason if row.fate == "dropped" else row.targets for row in table)


def test_the_reference_has_the_tensors_of_the_original(shared):
    text = (shared / "parity" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\*\*(\w+)\*\* \((\w+), (\d+) tensors\): (.*)$", text, re.MULTILINE)
    recorded = {variant: rest for variant, *rest in rows if variant in VARIANTS and variant != "mlm_perceiver_tied"}
    assert len(recorded) == 17
    for variant, (listed_class, count, listed) in recorded.items():
        name, changes = VARIANTS[variant]
        tensors = original_model.build(name, **changes)[0].state_dict()
        assert (listed_class, int(count)) == (name, len(tensors)), variant
        shapes = dict(re.findall(r"`([^`]+)` \[([^\]]*)\]", listed))
        assert {re.sub(r"layers\.\d+", "layers.{i}", key) for key in tensors} == set(shapes), variant
        first = {key.replace("{i}", "0"): shape for key, shape in shapes.items()}
        assert {key: ", ".join(map(str, tensors[key].shape)) for key in first} == first, variant


def test_pair_checkpoint_in_cosine_mode(tmp_path):
    original, config = build(PAIR, **labels(3))
    import_checkpoint(str(save(stored(original), config, tmp_path / "source")), tmp_path / "out")
    model = ConceptEncoderForSentencePairClassification.from_pretrained(
        tmp_path / "out", pair_comparison="cosine", num_labels=1
    )
    ids, mask = batch()
    a, b = original.pool(ids, mask), original.pool(ids.flip(0), mask.flip(0))
    expected = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    got = model(ids, mask, ids.flip(0), mask.flip(0), labels=torch.tensor([0.2, 1.0, -0.3]))
    torch.testing.assert_close(got.logits[:, 0], expected, rtol=1e-4, atol=1e-4)
    loss = (expected - torch.tensor([0.2, 1.0, -0.3])).square().mean()
    torch.testing.assert_close(got.loss, loss, rtol=1e-4, atol=1e-4)


def test_the_last_norm_is_exact_for_concepts_of_small_variance():
    original, config = build(ENCODER)
    with torch.no_grad():
        for parameter in (original.concept_embeddings.weight, *original.layers.parameters()):
            parameter.mul_(1e-2)
    model, _ = convert(config, stored(original))
    ids, mask = batch()
    expected = original(ids, mask)
    torch.testing.assert_close(model(ids, mask).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    model.norm.eps = 1e-5
    assert (model(ids, mask).last_hidden_state - expected).abs().max() > 1e-2


# -------------------------------------------------------------------------------------------- what became of a tensor


def fates(name, tensors=None, **changes):
    original, config = build(name, **changes)
    model, table = convert(config, {**stored(original), **(tensors or {})})
    return model, {row.source: row for row in table}


def test_bixt_drops_the_token_update_of_the_last_layer_alone():
    _, rows = fates(ENCODER, **BIXT)
    dropped = {name for name, row in rows.items() if row.fate == "dropped"}
    assert len(dropped) == 6 and all(name.startswith("layers.1.") for name in dropped)
    assert {row.reason for row in rows.values()} >= {"updates the tokens of the last layer, which nothing reads"}
    assert rows["layers.0.pre_reverse_cross_norm.weight"].targets == ["layers.0.token_attn_norm.weight"]


def test_losses_in_the_checkpoint_are_dropped_with_their_reason():
    extra = {"loss_manager.weighting.log_vars": torch.zeros(2), "loss_log_vars": torch.zeros(2)}
    _, rows = fates(MLM, extra)
    assert {rows[name].fate for name in extra} == {"dropped"}
    assert rows["loss_log_vars"].reason == "weight of a training loss, not part of the model"


def test_attention_is_split_and_a_narrow_decoder_table_multiplied_out():
    model, rows = fates(DIFFUSION, **NARROW)
    row = rows["encoder.layers.0.concept_self_attn.in_proj_weight"]
    assert row.fate == "split" and [name.split(".")[-2] for name in row.targets] == ["q_proj", "k_proj", "v_proj"]
    merged = [name for name, row in rows.items() if row.fate == "merged"]
    assert merged == ["decoder.token_embed.weight", "decoder.token_proj.bias", "decoder.token_proj.weight"]
    assert model.decoder.embeddings.tokens.weight.shape == (160, 32)


def test_a_narrow_decoder_table_that_does_not_fit_its_projection_is_named():
    with pytest.raises(ValueError, match=r"do not multiply.*decoder.token_proj.bias \[31\]"):
        fates(DIFFUSION, {"decoder.token_proj.bias": torch.zeros(31)}, **NARROW)


def test_sinusoids_are_computed_and_changed_ones_kept():
    model, rows = fates(ENCODER, **SINUSOIDAL)
    assert model.config.concept_position_type == "sinusoidal"
    assert rows["concept_position_emb"].reason == "fixed sinusoids, computed from the configuration"
    changed = sinusoids(8, 32) + 0.5
    model, rows = fates(ENCODER, {"concept_position_emb": changed}, **SINUSOIDAL)
    assert model.config.concept_position_type == "learned"
    assert torch.equal(model.latents.positions, changed)
    assert rows["concept_position_emb"].targets == ["latents.positions"]


def test_a_projection_of_tokens_is_dropped_from_position_queries():
    extra = {"decoder_input_projection.weight": torch.zeros(32, 16), "decoder_input_projection.bias": torch.zeros(32)}
    _, rows = fates(POSITION_ONLY, extra, **NARROW)
    assert {rows[name].fate for name in extra} == {"dropped"}


@pytest.mark.parametrize("kept", ["encoder.token_embeddings.weight", "lm_head.weight", "both"])
def test_tied_weights_whichever_copy_the_file_holds(kept, tmp_path):
    original, config = build(MLM, tie_word_embeddings=True)
    tensors = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    for name in {"encoder.token_embeddings.weight", "lm_head.weight"} - {kept}:
        if kept != "both":
            del tensors[name]
    model, table = import_checkpoint(str(save(tensors, config, tmp_path / "source")), tmp_path / "out")
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.encoder.embeddings.tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    targets = [row.targets for row in table if row.source == kept]
    assert kept == "both" or len(targets[0]) == 2
    ids, mask = batch()
    model, original = model.double(), original.double()  # the order of products differs, not what they are
    torch.testing.assert_close(model(ids, mask).logits, original(ids, mask), rtol=1e-4, atol=1e-4)


def test_weights_that_a_flag_calls_tied_but_are_not_stay_apart():
    original, config = build(MLM)
    model, _ = convert({**config, "tie_word_embeddings": True}, stored(original))
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)


# ------------------------------------------------------------------------------------------------------ configuration


def test_the_configuration_is_carried_over():
    changes = {"hidden_act": "silu", "bos_token_id": None, "cls_token_id": 7, "eos_token_id": None, "sep_token_id": 8}
    original, config = build(CLASSIFIER, **labels(3), **changes, hidden_dropout_prob=0.2)
    imported = convert(config, stored(original))[0].config
    assert (imported.num_concepts, imported.max_position_embeddings, imported.num_labels) == (8, 40, 3)
    assert (imported.bos_token_id, imported.eos_token_id, imported.mask_token_id) == (7, 8, 4)
    assert (imported.hidden_dropout_prob, imported.initializer_range) == (0.2, 0.1)
    # The original never looks at its hidden_act, and its timestep has no scale.
    assert (imported.hidden_act, imported.timestep_scale, imported.final_layer_norm_eps) == ("gelu", 1.0, 1e-12)


def test_decoder_depth_comes_from_the_tensors():
    assert fates(DIFFUSION)[0].config.decoder_num_hidden_layers == 3


def test_half_precision_stays(tmp_path):
    original, config = build(CLASSIFIER, **labels(3))
    tensors = {name: tensor.bfloat16() for name, tensor in stored(original).items()}
    import_checkpoint(str(save(tensors, config, tmp_path / "source")), tmp_path / "out")
    loaded = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.classifier.weight, tensors["classifier.weight"])


# --------------------------------------------------------------------------------------------------------- the folder


@pytest.fixture
def source(tmp_path):
    original, config = build(MLM)
    return save(stored(original), config, tmp_path / "source")


def test_the_folder_holds_code_tokenizer_and_the_table(source, tmp_path):
    (source / "tokenizer.json").write_text("{}")
    (source / "optimizer.pt").write_text("not for a checkpoint to publish")
    _, table = import_checkpoint(str(source), tmp_path / "deep" / "out")
    held = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    code = {"configuration_concept.py", "reading_concept.py", "modeling_concept.py"}
    surfaces = {name.partition("/")[0] for name in ConceptEncoderConfig().sentence_transformers_files()}
    assert held == code | surfaces | {"config.json", "model.safetensors", "import.json", "tokenizer.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    kept = json.loads((tmp_path / "deep" / "out" / "import.json").read_text())
    assert (kept["source"], kept["source_class"]) == ("source", MLM)
    assert kept["source_config"] == json.loads((source / "config.json").read_text())
    assert [row["source"] for row in kept["tensors"]] == [row.source for row in table]
    config = json.loads((tmp_path / "deep" / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == f"modeling_concept.{MLM}"


def test_a_pickle_is_read_without_running_it(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    model, _ = import_checkpoint(str(source), tmp_path / "out")
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    torch.save({"lm_head.weight": Path}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read"):
        import_checkpoint(str(source), tmp_path / "other")


def test_import_from_the_hub(hub, source, tmp_path):
    from huggingface_hub import HfApi

    api = HfApi()
    repo = api.create_repo("me/original-mlm", exist_ok=True).repo_id
    api.upload_folder(repo_id=repo, folder_path=source)
    import_checkpoint(repo, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "import.json").read_text())["source"] == repo
    loaded = ConceptEncoderForMaskedLMPerceiver.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, load_file(source / "model.safetensors")["lm_head.weight"])


# -------------------------------------------------------------------------------------------------------------- errors


def spoil(source, tensors=None, without=(), **config):
    held = load_file(source / "model.safetensors")
    held = {name: tensor for name, tensor in (held | (tensors or {})).items() if name not in without}
    save(held, json.loads((source / "config.json").read_text()) | config, source)


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"tensors": {"what.is": torch.ones(2), "encoder.this": torch.ones(2)}}, "unknown.*encoder.this, what.is;"),
        ({"without": ["decoder_norm.bias"]}, "give nothing for: decoder.layer.cross_attn_norm.bias"),
        (
            {"tensors": {"decoder.positions.weight": torch.ones(40, 32)}},
            "several tensors.*decoder.positions.weight, dec",
        ),
        (
            {"tensors": {"decoder_cross_attn.in_proj_bias": torch.ones(2)}},
            r"in_proj_bias \[2\] gives .* asks for \[32\]",
        ),
        ({"without": ["lm_head.weight"]}, "give nothing for: lm_head.weight"),
        (
            {"tensors": {"lm_head.weight": torch.ones(9, 32)}},
            r"lm_head.weight \[9, 32\] gives .* for \[160, 32\]",
        ),
        (
            {"concept_num": 9},
            r"concept_embeddings.weight \[8, 32\] gives .*for \[9, 32\]",
        ),
        (
            {"architectures": ["ConceptEncoderForMaskedLMWeighted"]},
            "LMWeighted has no counterpart.*Supported",
        ),
        (
            {"architectures": ["RecursiveConceptEncoderForMaskedLM"]},
            "RecursiveConceptEncoderForMaskedLM has no",
        ),
        ({"architectures": ["BertModel"]}, "Unknown class 'BertModel'.*Supported: ConceptEncoder,"),
        ({"architectures": None}, "must name one class in architectures, got"),
        ({"num_concepts": 8}, "one of this package already; load it with from_pretrained"),
        ({"num_attention_heads": 5}, r"config.json is refused.*hidden_size \(32\) must be divisible"),
    ],
)
def test_what_cannot_be_imported_is_named_and_leaves_nothing(source, tmp_path, spoiled, message):
    spoil(source, **spoiled)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        import_checkpoint(str(source), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_missing_files_and_fields_are_named(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    del config["concept_num"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json lacks concept_num"):
        import_checkpoint(str(source), tmp_path / "out")
    (source / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        import_checkpoint(str(source), tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights in .*: expected model.safetensors or pytorch_model.bin"):
        import_checkpoint(str(source), tmp_path / "out")
    (source / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json in"):
        import_checkpoint(str(source), tmp_path / "out")
    with pytest.raises(ValueError, match=r"no folder \./nowhere"):
        import_checkpoint("./nowhere", tmp_path / "out")


def test_nothing_is_overwritten_but_an_empty_folder_is_filled(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    import_checkpoint(str(source), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        import_checkpoint(str(source), out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_killed_import_leaves_no_checkpoint(source, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("concept_encoder.trainers.weights.importing.write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        import_checkpoint(str(source), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


# -------------------------------------------------------------------------------------------------------- command line


def test_script_prints_the_table_and_bad_input_is_one_line(source, tmp_path, capsys):
    main([str(source), "--output_dir", str(tmp_path / "out")])
    printed, said = capsys.readouterr()
    assert "decoder_norm.bias" in printed and "decoder.layer.cross_attn_norm.bias" in printed
    assert "ConceptEncoderForMaskedLMPerceiver, 47,376 parameters" in said and "holds no tokenizer" in said
    with pytest.raises(SystemExit) as exit_info:
        main([str(source), "--output_dir", str(tmp_path / "out")])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("give a new one, nothing is overwritten")


def test_table_as_text():
    original, config = build(ENCODER, **BIXT)
    lines = format_table(convert(config, stored(original))[1]).splitlines()
    assert len(lines) == 53
    assert lines[0].split() == ["concept_embeddings.weight", "[8,", "32]", "used:", "latents.weight"]
    assert any(line.endswith("dropped: updates the tokens of the last layer, which nothing reads") for line in lines)
    assert any("layers.0.token_attn.v_proj.bias (queries, keys and values)" in line for line in lines)


def test_every_supported_class_is_tried():
    assert {name for name, _ in VARIANTS.values()} == set(CLASSES)
