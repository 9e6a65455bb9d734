"""What ConceptTrainer takes of transformers.Trainer: a new version that moves any of it fails here, by name."""

import inspect

import pytest
import transformers
from transformers import Trainer

from concept_encoder.trainers.training.objective_trainer import ObjectiveTrainer
from concept_encoder.trainers.training.trainer import ConceptTrainer

# Every method of Trainer that is overridden, with the parameters that it is called with.
HOOKS = {
    "train": "resume_from_checkpoint trial ignore_keys_for_eval",
    "create_optimizer": "model",
    "get_batch_samples": "epoch_iterator num_batches device",
    "get_eval_dataloader": "eval_dataset",
    "compute_loss": "model inputs return_outputs num_items_in_batch",
    "training_step": "model inputs num_items_in_batch",
    "log": "logs start_time",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
    "evaluation_loop": "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
    "save_model": "output_dir _internal_call",
    "push_to_hub": "commit_message blocking token revision private kwargs",
    "_build_accelerator_args": "kwargs",
    "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
    "_track_num_input_tokens": "inputs",
    "_save_checkpoint": "model trial",
    "_load_from_checkpoint": "resume_from_checkpoint model",
}
# Lines of private methods that are counted on: the sums that a checkpoint keeps, and when they are set to zero.
LINES = {
    "_inner_training_loop": (
        "self._tr_loss = torch.tensor(0.0",
        "self._total_loss_scalar = 0.0",
        "self._globalstep_last_logged = self.state.global_step",
        "self.callback_handler.on_train_begin(",
        "self._run_epoch(",
    ),
    "_maybe_log_save_evaluate": ("self._total_loss_scalar += ", "self._save_checkpoint(", "callback_handler.on_save("),
    "_finalize_training": ("self._total_loss_scalar += ", 'metrics["train_loss"] = ', "self.log(metrics)"),
    "_get_output_dir": ("self.args.output_dir",),
    "_run_epoch": ("self.get_batch_samples(", "self.training_step(", "self.control.should_training_stop:"),
}


def said_of(name: str) -> str:
    return f"transformers {transformers.__version__}: Trainer.{name}, which ConceptTrainer needs, "


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_there_with_its_parameters(name):
    method = getattr(Trainer, name, None)
    assert method is not None, said_of(name) + "is gone or has another name"
    own = " ".join(list(inspect.signature(method).parameters)[1:])
    assert own == HOOKS[name], said_of(name) + f"takes ({own}) now"


def test_nothing_else_is_overridden():
    ours = {name for owner in (ObjectiveTrainer, ConceptTrainer) for name in vars(owner)}
    overridden = {name for name in ours if hasattr(Trainer, name) and not name.startswith("__")}
    assert overridden == set(HOOKS)
    assert sum(name.startswith("_") for name in overridden) == 5  # private ones: the fewer the better


@pytest.mark.parametrize("name", LINES)
def test_what_is_counted_on_is_done_in_that_order(name):
    method = getattr(Trainer, name, None)
    assert method is not None, said_of(name) + "is gone or has another name"
    source, at = inspect.getsource(method), -1
    for line in LINES[name]:
        at = source.find(line, at + 1)
        assert at >= 0, said_of(name) + f"has no `{line}` in its place"
