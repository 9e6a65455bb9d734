"""A checkpoint as remote code, with any version of transformers from the lowest on: what `make versions` runs.

`CHECKPOINTS` names the folder that tests/support/checkpoint_set.py has written in another environment; nothing of the
package is here. tests/model/test_remote_code.py runs it with the version that is installed.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, Trainer, TrainingArguments, pipeline
from transformers.utils import versions

MASKED = "the dog [MASK] ."
TEXTS = ["the cat sleeps in the barn .", MASKED]
AUTO = {
    "encoder": "AutoModel",
    "slots": "AutoModel",
    "bixt": "AutoModel",
    "diffusion": "AutoModelForMaskedLM",
    "mlm": "AutoModelForMaskedLM",
    "classifier": "AutoModelForSequenceClassification",
    "via-decoder": "AutoModelForSequenceClassification",
    "pair": "AutoModelForSequenceClassification",
}
OF_THE_SAVING = {"transformers_version": None, "_name_or_path": None}


@pytest.fixture(scope="session")
def folder() -> Path:
    with pytest.raises(ImportError):
        import concept_encoder  # noqa: F401
    return Path(os.environ["CHECKPOINTS"])


@pytest.fixture
def load(folder):
    """Function: name of a checkpoint, or its path, to its model in the class that it was saved from."""

    def load(name: str, path: Path | None = None, auto: str | None = None, **kwargs):
        model, report = getattr(transformers, auto or AUTO[name]).from_pretrained(
            path or folder / name, trust_remote_code=True, output_loading_info=True, **kwargs
        )
        assert type(model).__module__.startswith("transformers_modules.")
        assert not set(report["unexpected_keys"])
        assert auto is not None or not set(report["missing_keys"])
        return model.eval()

    return load


@pytest.fixture
def batch(folder) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder", trust_remote_code=True)
    return dict(tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False))


def run(model, name: str, batch: dict, **kwargs):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    inputs = (ids, mask, ids.flip(0), mask.flip(0)) if name == "pair" else (ids, mask)
    with torch.no_grad():
        return model(*inputs, **kwargs)


def assert_close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", AUTO)
def test_outputs_are_those_of_the_version_that_wrote_it(folder, load, batch, name, implementation):
    expected = load_file(folder / name / f"{implementation}.safetensors")
    model = load(name, attn_implementation=implementation)
    output = run(model, name, batch, output_hidden_states=True, output_attentions=implementation == "eager")
    found = {}
    for key, value in output.items():
        found |= {f"{key}{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {key: value}
    assert_close(found, expected)


@pytest.mark.parametrize("name", AUTO)
def test_it_saves_what_it_has_read(folder, load, batch, tmp_path, name):
    model = load(name)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folder / name / "model.safetensors").keys()
    written, given = (
        AutoConfig.from_pretrained(path, trust_remote_code=True).to_dict() for path in (tmp_path, folder / name)
    )
    assert {**written, **OF_THE_SAVING} == {**given, **OF_THE_SAVING}
    code = ("modeling_concept.py", "reading_concept.py", "configuration_concept.py")
    for file in (*code, "modules.json", "sentence_bert_config.json"):
        assert (tmp_path / file).read_bytes() == (folder / name / file).read_bytes()
    assert_close(run(load(name, tmp_path), name, batch)[0], run(model, name, batch)[0])


@pytest.mark.parametrize(
    ("task", "name"),
    [("feature-extraction", "encoder"), ("fill-mask", "diffusion"), ("text-classification", "classifier")],
)
def test_pipelines(folder, task, name):
    expected = json.loads((folder / "pipelines.json").read_text())[task]
    found = pipeline(task, model=str(folder / name), trust_remote_code=True)(MASKED)
    if task == "feature-extraction":
        assert_close(torch.tensor(found), torch.tensor(expected))
        return
    assert_close(*(torch.tensor([answer.pop("score") for answer in answers]) for answers in (found, expected)))
    assert found == expected


def test_trainer_fine_tunes(load, batch, folder, tmp_path):
    rows = [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(*batch.values(), strict=True)]
    rows = [{**row, "labels": label} for label, row in enumerate(rows)] * 8
    model = load("diffusion", auto="AutoModelForSequenceClassification", num_labels=2)
    torch.manual_seed(0)
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=12,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="steps",
        save_steps=6,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    last = load("classifier", tmp_path / "run/checkpoint-12")
    assert_close(run(last, "", batch).logits, run(model.eval(), "", batch).logits)


def test_masked_language_modelling_under_the_trainer(load, batch, tmp_path):
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": ids} for ids, mask in zip(*batch.values(), strict=True)
    ]
    model = load("diffusion")
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=12,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows * 8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert model.lm_head.weight is model.encoder.embeddings.tokens.weight is model.decoder.embeddings.tokens.weight


def test_abilities_of_its_own(load, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    slots, diffusion = load("slots"), load("diffusion")
    with torch.no_grad():
        whole = slots(ids, mask)
        assert_close(slots(ids, mask, chunk_length=3).pooler_output, whole.pooler_output)
        few = slots(ids, mask, num_concepts="auto", dim=3)
        assert few.pooler_output.shape == (2, 4 * 3)
        assert (few.last_hidden_state[1] == 0).all(-1).tolist() == [False, False, False, True]  # six tokens, two each
        first = diffusion(ids, mask, num_visible_concepts=2).logits
    assert not torch.allclose(first, diffusion(ids, mask).logits)
    filled = diffusion.generate(ids, mask, num_steps=2, temperature=0)
    kept = ids != diffusion.config.mask_token_id
    assert torch.equal(filled[kept], ids[kept])
    assert (filled[~kept] != diffusion.config.mask_token_id).all()


def test_new_weights_and_new_tokens(folder):
    config = AutoConfig.from_pretrained(folder / "diffusion", trust_remote_code=True)
    model = transformers.AutoModelForMaskedLM.from_config(config, trust_remote_code=True)
    assert not any(gate.any() for layer in model.decoder.layers for gate in layer.modulation.parameters())
    assert model.encoder.latents.weight.std().item() == pytest.approx(2 * config.initializer_range, rel=0.2)
    assert (model.encoder.norm.weight == 1).all()
    model.resize_token_embeddings(20)
    tables = [model.lm_head.weight, model.encoder.embeddings.tokens.weight, model.decoder.embeddings.tokens.weight]
    assert tables[0] is tables[1] is tables[2]
    assert len(tables[0]) == model.config.vocab_size == 20


def test_configuration_refuses_what_it_refuses_elsewhere(folder):
    config = AutoConfig.from_pretrained(folder / "encoder", trust_remote_code=True)
    with pytest.raises(Exception, match=r"hidden_size \(30\) must be divisible by num_attention_heads \(4\)"):
        type(config)(hidden_size=30, num_attention_heads=4)
    assert (type(config)().pad_token_id, type(config)(num_labels=3).num_labels) == (0, 3)


def test_a_version_below_the_lowest_is_refused_by_name(folder, monkeypatch):
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda package: "4.56.2")
    path = folder / "encoder/configuration_concept.py"
    spec = importlib.util.spec_from_file_location("too_old", path)
    with pytest.raises(ImportError) as refusal:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    message = str(refusal.value)
    assert "transformers>=4.57 is required" in message
    assert "found transformers==4.56.2" in message
    assert message.endswith("pip install --upgrade transformers")


def test_sentence_transformers(folder, load, batch):
    library = pytest.importorskip("sentence_transformers")
    if Version(library.__version__) < Version("5.4"):
        pytest.skip("modules.json names classes that sentence-transformers has from 5.4 on")
    found = library.SentenceTransformer(str(folder / "encoder"), trust_remote_code=True).encode(TEXTS)
    mean = run(load("encoder"), "encoder", batch).pooler_output
    assert_close(torch.tensor(found), torch.nn.functional.normalize(mean, dim=-1))
