"""FSDP2 in two CPU processes: the losses of one process, and a checkpoint that loads anywhere."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from helpers import tiny_config
from small_runs import launch_two, losses, make_trainer, monitored, noise_by_text
from torch import nn
from transformers import Trainer

from concept_encoder import ConceptEncoderForDiffusionMLM
from concept_encoder.trainers.training.sharding import embeddings_apart, share_tied_embeddings

CONFIGURATIONS = Path(__file__).parents[2] / "scripts" / "accelerate"

# accelerate shards on devices other than the CPU only, and would train with DDP here without a word.
TWO_PROCESSES = """
import json, sys
sys.path[:0] = {tests!r}
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

plain, plugins = AcceleratorState.__init__, []


def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    plugins.extend([] if fsdp_plugin is None else [fsdp_plugin])
    if plugins:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[-1]


AcceleratorState.__init__ = with_fsdp
from small_runs import losses, make_trainer, monitored, noise_by_text
from concept_encoder.trainers.data.microworld import microworld_tokenizer

trainer = make_trainer(microworld_tokenizer(), {out!r}, per_device_train_batch_size=4, **monitored())
assert trainer.accelerator.num_processes == 2 and trainer.accelerator.is_fsdp2
noise_by_text(trainer).train()
assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
rank = trainer.args.process_index
again = make_trainer(microworld_tokenizer(), {out!r}, per_device_train_batch_size=4, **monitored())
noise_by_text(again).train(resume_from_checkpoint={out!r} + "/checkpoint-2")
result = {{"losses": losses(trainer), "eval_loss": trainer.evaluate()["eval_loss"], "resumed": losses(again)}}
result["logged"] = [row for row in trainer.state.log_history if "grad_norm" in row][-1]
trainer.save_model({out!r} + "/final")
with open({out!r} + f"/rank{{rank}}.json", "w") as file:
    json.dump(result, file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_fsdp2_trains_as_one_process_and_its_checkpoint_loads(tokenizer, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=sys.path, out=str(tmp_path)))
    launch_two(script, "--config_file", str(CONFIGURATIONS / "fsdp2.yaml"))
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    alone = make_trainer(tokenizer, tmp_path / "alone", **monitored())
    noise_by_text(alone).train()
    eval_loss = alone.evaluate()["eval_loss"]
    logged = [row for row in alone.state.log_history if "grad_norm" in row][-1]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(losses(alone), rel=1e-5)
        assert rank["resumed"] == rank["losses"]
        assert rank["eval_loss"] == pytest.approx(eval_loss, rel=1e-5)
        for name, value in logged.items():
            if name.startswith(("grad_norm", "loss")) or name == "num_input_tokens_seen":
                assert rank["logged"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name

    loaded, report = ConceptEncoderForDiffusionMLM.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for (name, own), other in zip(loaded.named_parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5, msg=name)
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert {"configuration_concept.py", "reading_concept.py", "modeling_concept.py"} <= names
    assert not {name for name in names if "fsdp" in name}
    auto_map = json.loads((tmp_path / "final" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForMaskedLM"] == "modeling_concept.ConceptEncoderForDiffusionMLM"


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tables_become_one_module_and_others_stay(tied):
    model = ConceptEncoderForDiffusionMLM(tiny_config(mask_token_id=3, tie_word_embeddings=tied))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = share_tied_embeddings(model)
    assert places == (["decoder.embeddings.tokens"] if tied else [])
    assert (model.decoder.embeddings.tokens is model.encoder.embeddings.tokens) == tied
    assert isinstance(model.lm_head, nn.Linear)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with embeddings_apart(model, places):
        assert model.decoder.embeddings.tokens is not model.encoder.embeddings.tokens
        assert (model.decoder.embeddings.tokens.weight is model.encoder.embeddings.tokens.weight) == tied
    assert (model.decoder.embeddings.tokens is model.encoder.embeddings.tokens) == tied


def test_what_fsdp_leaves_out_is_refused(tokenizer, tmp_path, monkeypatch):
    create = Trainer.create_accelerator_and_postprocess

    def sharding(self):
        create(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharding)
    with pytest.raises(ValueError, match="ema_decay needs whole weights on each device"):
        make_trainer(tokenizer, tmp_path, ema_decay=0.9)


def test_sharded_checkpoints_are_refused(tokenizer, tmp_path, monkeypatch):
    create = Trainer.create_accelerator_and_postprocess

    def sharding(self):
        create(self)
        self.is_fsdp_enabled = True
        monkeypatch.setattr(type(self.accelerator.state), "fsdp_plugin", plugin, raising=False)

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharding)
    with pytest.raises(
        ValueError, match="fsdp_state_dict_type must be FULL_STATE_DICT, got SHARDED_STATE_DICT: torch"
    ):
        make_trainer(tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "multinode"])
def test_configurations_say_how_they_are_launched(name):
    path = CONFIGURATIONS / f"{name}.yaml"
    header = "".join(line.lstrip("# ") for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"accelerate launch --config_file scripts/accelerate/{name}.yaml" in header
    loaded = load_config_from_file(str(path))
    assert loaded.num_processes == yaml.safe_load(path.read_text())["num_processes"]
    if name == "fsdp2":
        wrapped = loaded.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        model = ConceptEncoderForDiffusionMLM(tiny_config(mask_token_id=3))
        assert set(wrapped) <= {type(module).__name__ for module in model.modules()}
        assert loaded.fsdp_config["fsdp_version"] == 2


@pytest.mark.slow
def test_ddp_configuration_launches(tmp_path):
    script = tmp_path / "two.py"
    script.write_text("from accelerate import Accelerator\nassert Accelerator().num_processes == 2\n")
    launch_two(script, "--config_file", str(CONFIGURATIONS / "ddp.yaml"))
