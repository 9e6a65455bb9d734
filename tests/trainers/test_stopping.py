import os
import signal
import threading

import pytest
import torch
from small_runs import make_trainer, parameters, tiny_recipe
from transformers import TrainerCallback

from concept_encoder.trainers import pretraining
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.saving import damage, find_checkpoints
from concept_encoder.trainers.training.stopping import EXIT_STATUS, StopOnSignal, TrainingStopped

SETTINGS = {"max_steps": 8, "dropout": 0.1, "ema_decay": 0.9, "gradient_accumulation_steps": 2}


class SignalAt(TrainerCallback):
    def __init__(self, step, early=False):
        self.step = step
        self.early = early

    def on_step_begin(self, args, state, control, **kwargs):
        if self.early and state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_substep_end(self, args, state, control, **kwargs):  # between two micro-batches of the step
        if not self.early and state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_sigterm_ends_the_step_and_the_run_resumes_exactly(tokenizer, tmp_path):
    straight = make_trainer(tokenizer, tmp_path / "straight", **SETTINGS)
    straight.train()
    stopped = make_trainer(tokenizer, tmp_path / "stopped", **SETTINGS)
    stopped.add_callback(SignalAt(5))
    before = signal.getsignal(signal.SIGTERM)
    with stopped.stop.listening():
        stopped.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped.stop.agreed and stopped.state.global_step == 5
    ((step, folder),) = find_checkpoints(tmp_path / "stopped")  # though save_strategy is "no"
    assert step == 5 and damage(folder) is None
    assert not torch.equal(parameters(stopped), parameters(straight))
    resumed = make_trainer(tokenizer, tmp_path / "stopped", **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(parameters(resumed), parameters(straight))
    rows = [
        [{"loss": row["loss"], "step": row["step"]} for row in trainer.state.log_history if "loss" in row]
        for trainer in (straight, resumed)
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "evaluations"), [(3, 0), (4, 1)])
def test_an_epoch_cut_short_is_not_evaluated_as_a_whole_one(tokenizer, tmp_path, step, evaluations):
    settings = {**SETTINGS, "per_device_train_batch_size": 8, "eval_strategy": "epoch"}  # of 4 steps
    trainer = make_trainer(tokenizer, tmp_path, rows=64, **settings)
    trainer.add_callback(SignalAt(step))
    with trainer.stop.listening():
        trainer.train()
    assert sum("eval_loss" in row for row in trainer.state.log_history) == evaluations
    resumed = make_trainer(tokenizer, tmp_path, rows=64, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert [row["step"] for row in resumed.state.log_history if "eval_loss" in row] == [4, 8]


def test_a_second_signal_is_not_caught():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("previous"))
    try:
        stop = StopOnSignal()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked and not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == ["previous"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone():
    handlers = []

    def listen():
        with StopOnSignal().listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_the_other_way_to_save_on_sigterm_is_refused(tmp_path):
    with pytest.raises(ValueError, match="enable_jit_checkpoint must be False, got True: it may save between a"):
        ConceptTrainingArguments(output_dir=str(tmp_path), enable_jit_checkpoint=True)


@pytest.mark.slow
def test_pretrain_raises_what_the_command_makes_its_exit_status_of(tmp_path, monkeypatch, capsys):
    plain = pretraining.ConceptTrainer.__init__

    def stopping(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.add_callback(SignalAt(2, early=True))

    monkeypatch.setattr(pretraining.ConceptTrainer, "__init__", stopping)
    capsys.readouterr()
    recipe = tiny_recipe(tmp_path / "run", "--max_steps", "4")
    with pytest.raises(TrainingStopped) as stop:
        pretraining.pretrain(recipe)
    assert isinstance(stop.value, Exception) and stop.value.exit_status == 143 == EXIT_STATUS
    assert stop.value.step == 2 and stop.value.checkpoint == tmp_path / "run" / "checkpoint-2"
    assert damage(stop.value.checkpoint) is None
    assert str(stop.value) == (
        f"stopped by SIGTERM after step 2; {stop.value.checkpoint} is whole, the same command continues"
    )
    assert capsys.readouterr().out == ""  # no library function prints there
    monkeypatch.undo()
    assert pretraining.pretrain(recipe).steps == 4
