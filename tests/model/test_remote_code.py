"""Checkpoints carry their code: the Auto classes of its map load every checkpoint in a process without the package."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_set import write
from helpers import run_without_package
from safetensors.torch import load_file, save_file

from concept_encoder.configuration_concept import AUTO_MAP, ConceptEncoderConfig
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
CODE = ("configuration_concept.py", "reading_concept.py", "modeling_concept.py")
HEADS = {
    "AutoModel": ConceptEncoderModel,
    "AutoModelForMaskedLM": ConceptEncoderForDiffusionMLM,
    "AutoModelForSequenceClassification": ConceptEncoderForSequenceClassificationPerceiver,
}
# Each checkpoint and the Auto class that it fills completely; the others of its map start from its encoder.
CHECKPOINTS = {
    "base": "AutoModel",
    "pretrained": "AutoModelForMaskedLM",
    "classifier": "AutoModelForSequenceClassification",
    "classifier-from-pretrained": "AutoModelForSequenceClassification",
    "concept-encoder-checkout": "AutoModelForMaskedLM",
    "mlm": "AutoModelForMaskedLM",
    "via-decoder-from-mlm": "AutoModelForSequenceClassification",
    "pair": "AutoModelForSequenceClassification",
}
# Where the Auto class of a checkpoint is not that of HEADS: a head points its own Auto class at itself.
OWN_HEADS = {
    "mlm": ConceptEncoderForMaskedLMPerceiver,
    "via-decoder-from-mlm": ConceptEncoderForSequenceClassificationViaDecoder,
    "pair": ConceptEncoderForSentencePairClassification,
}


def head(name: str, auto: str):
    return OWN_HEADS.get(name, HEADS[auto]) if auto == CHECKPOINTS[name] else HEADS[auto]


def auto_map(name: str) -> dict[str, str]:
    """What a save of this class leaves: all that starts from its encoder, and itself."""
    own = CHECKPOINTS[name]
    return AUTO_MAP | {own: f"modeling_concept.{head(name, own).__name__}"}


def batch(model) -> dict[str, torch.Tensor]:
    """INPUTS under the names of the model; a pair head compares them with themselves."""
    if model.main_input_name == "input_ids":
        return INPUTS
    return {f"{key}_{side}": tensor for key, tensor in INPUTS.items() for side in "ab"}


INPUTS = {
    "input_ids": torch.tensor([[2, 7, 1, 9, 3], [2, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}

# Runs where the package cannot be imported. Reads inputs.safetensors and the names of the checkpoints, writes what
# each Auto class made of each checkpoint.
CHILD = """
import json, os, sys
sys.modules["concept_encoder"] = None
try:
    import concept_encoder.modeling_concept
except ImportError:
    pass
else:
    raise SystemExit("concept_encoder is importable, so this process proves nothing")
import transformers
from safetensors.torch import load_file, save_file

transformers.logging.set_verbosity_error()
inputs = load_file("inputs.safetensors")
report, tensors = {}, {}

def look(name, path, auto):
    auto_class = getattr(transformers, auto)
    model, loading = auto_class.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    pair = {f"{key}_{side}": tensor for key, tensor in inputs.items() for side in "ab"}
    output = model(**(inputs if model.main_input_name == "input_ids" else pair))
    encoded = model.base_model(**inputs)
    tensors[f"{name}/{auto}/encoder"] = encoded.last_hidden_state.detach().contiguous()
    tensors[f"{name}/{auto}/output"] = output[0].detach().contiguous()
    report[f"{name}/{auto}"] = {
        "class": type(model).__name__, "module": type(model).__module__, "missing": sorted(loading["missing_keys"])
    }
    return model

checkpoints = sys.argv[1:]
for name in checkpoints:
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    report[f"{name}/AutoConfig"] = {"class": type(config).__name__, "module": type(config).__module__}
    for auto in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"):
        if auto in config.auto_map:
            look(name, name, auto)
        else:
            try:
                look(name, name, auto)
            except ValueError as error:
                report[f"{name}/{auto}"] = {"refused": str(error)}
# What was loaded as remote code is saved, and loads, as remote code again.
look("again", "classifier", "AutoModelForSequenceClassification").save_pretrained("resaved")
look("resaved", "resaved", "AutoModelForSequenceClassification")
look("again-via", "via-decoder-from-mlm", "AutoModelForSequenceClassification").save_pretrained("resaved-via")
look("resaved-via", "resaved-via", "AutoModelForSequenceClassification")
here = os.getcwd()
os.chdir("concept-encoder-checkout")
look("dot", ".", "AutoModelForMaskedLM")
os.chdir(here)
save_file(tensors, "outputs.safetensors")
with open("report.json", "w") as file:
    json.dump(report, file)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder of checkpoints, one of them laid out as a clone of the repository with weights next to the code."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"intermediate_size": 32, "num_concepts": 4, "max_position_embeddings": 16}
    config |= {"decoder_num_hidden_layers": 1, "mask_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    for name in ("base", "pretrained", "classifier", "mlm", "pair"):
        head(name, CHECKPOINTS[name])(ConceptEncoderConfig(**config, num_labels=3)).save_pretrained(folder / name)
    classifier = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(folder / "pretrained", num_labels=3)
    classifier.save_pretrained(folder / "classifier-from-pretrained")
    via_decoder = ConceptEncoderForSequenceClassificationViaDecoder.from_pretrained(folder / "mlm", num_labels=3)
    via_decoder.save_pretrained(folder / "via-decoder-from-mlm")
    checkout = folder / "concept-encoder-checkout"
    checkout.mkdir()
    for path in [*ROOT.glob("*.py"), folder / "pretrained/config.json", folder / "pretrained/model.safetensors"]:
        shutil.copy(path, checkout)
    return folder


@pytest.fixture(scope="module")
def remote(checkpoints) -> tuple[dict, dict[str, torch.Tensor]]:
    """(report, tensors) of the process without the package."""
    save_file(INPUTS, checkpoints / "inputs.safetensors")
    run_without_package(CHILD, checkpoints, *CHECKPOINTS)
    return json.loads((checkpoints / "report.json").read_text()), load_file(checkpoints / "outputs.safetensors")


def assert_carries_map_and_code(checkpoint: Path, name: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["auto_map"] == auto_map(name)
    for file in CODE:
        assert (checkpoint / file).read_bytes() == (ROOT / file).read_bytes()
    assert (checkpoint / "model.safetensors").is_file()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_carries_the_whole_map_and_its_code(checkpoints, name):
    assert_carries_map_and_code(checkpoints / name, name)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_auto_config_is_the_checkpoints_own(remote, name):
    report, _ = remote
    assert report[f"{name}/AutoConfig"]["class"] == "ConceptEncoderConfig"
    assert report[f"{name}/AutoConfig"]["module"].startswith("transformers_modules.")


@pytest.mark.parametrize("auto", HEADS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_auto_class_loads_what_is_there_or_refuses(checkpoints, remote, name, auto):
    report, tensors = remote
    seen = report[f"{name}/{auto}"]
    if auto not in auto_map(name):  # a decoder that is not in the file would be random
        assert seen["refused"].startswith("Unrecognized configuration class")
        return
    assert seen["class"] == head(name, auto).__name__
    assert seen["module"].startswith("transformers_modules.")
    model = head(name, auto).from_pretrained(checkpoints / name)
    with torch.no_grad():
        torch.testing.assert_close(tensors[f"{name}/{auto}/encoder"], model.base_model(**INPUTS).last_hidden_state)
        if auto in ("AutoModel", CHECKPOINTS[name]):
            assert seen["missing"] == []
            torch.testing.assert_close(tensors[f"{name}/{auto}/output"], model(**batch(model))[0])
    assert all(key.startswith(("pooling.", "classifier.")) for key in seen["missing"])


@pytest.mark.parametrize(("resaved", "name"), [("resaved", "classifier"), ("resaved-via", "via-decoder-from-mlm")])
def test_remote_code_saves_itself(checkpoints, remote, resaved, name):
    report, tensors = remote
    auto = "AutoModelForSequenceClassification"
    assert_carries_map_and_code(checkpoints / resaved, name)
    assert report[f"{resaved}/{auto}"]["missing"] == []
    assert report[f"{resaved}/{auto}"]["class"] == head(name, auto).__name__
    torch.testing.assert_close(tensors[f"{resaved}/{auto}/output"], tensors[f"{name}/{auto}/output"])


def test_the_repository_root_loads_as_dot(remote):
    report, tensors = remote
    assert report["dot/AutoModelForMaskedLM"]["missing"] == []
    expected = tensors["concept-encoder-checkout/AutoModelForMaskedLM/output"]
    torch.testing.assert_close(tensors["dot/AutoModelForMaskedLM/output"], expected)


def test_the_tests_of_all_versions_pass_with_this_one(tmp_path, monkeypatch):
    """`make versions` runs them with old ones and the newest."""
    monkeypatch.setenv("CHECKPOINTS", str(write(tmp_path / "checkpoints")))
    shutil.copy(ROOT / "tests" / "model" / "versions.py", tmp_path)
    run_without_package(
        """
import sys
sys.modules["concept_encoder"] = None
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "versions.py"]))
""",
        tmp_path,
    )
