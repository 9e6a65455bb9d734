"""The Trainer of this package: an objective, checkpoints that are whole and resume bit for bit, and pushes."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length
from transformers.utils import SAFE_WEIGHTS_NAME

from ...utils.files import disk_trouble_named, replaced_together
from ...utils.progress import TrainingProgress
from ...utils.tokenizer import fit_saved_tokenizer
from ..data.corpora import DataArguments
from ..objectives.codes import HEAD, training_head
from ..objectives.objective import ObjectiveArguments
from .arguments import ConceptTrainingArguments
from .objective_trainer import ObjectiveTrainer
from .resuming import check_resumable, made_with, recorded, write_record
from .saving import STAGING_FOLDER, best_checkpoint, damage, last_complete, publish, remove_old
from .sharding import embeddings_apart
from .stability import MAX_ROLLBACKS, DivergenceError, set_base_rates
from .uploads import HubUploads, UploadAssembler

logger = logging.getLogger(__name__)
# What the Trainer says where nothing is wrong: of a best checkpoint that is named without its folder, of tied weights.
FALSE_ALARMS = ("recorded in the resumed state does not exist", "There were missing keys in the checkpoint")
SUMS_SINCE_LOG = "log_sums_{rank}.pth"  # what the next log entry will be the mean of, in a checkpoint, per process


@contextmanager
def _no_false_alarms() -> Iterator[None]:
    def is_true(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in FALSE_ALARMS)

    library = logging.getLogger("transformers.trainer")
    library.addFilter(is_true)
    try:
        yield
    finally:
        library.removeFilter(is_true)


class ConceptTrainer(ObjectiveTrainer):
    """Trains the head that an objective's corruption names, with that objective.

    The noise of a micro-batch is a function of (seed, step, micro-step, rank) alone, so that a resumed run continues
    bit for bit and processes never share noise. A checkpoint remembers what it was made with, and is resumed with
    nothing else; see `resuming`.

    With `ema_decay` the model is the average of the weights wherever it is evaluated, saved, pushed or left behind;
    see `WeightAverage`. A diverging step never reaches the weights; see `DivergenceGuard`.

    Args:
        objective_args: the objective's settings.
        monitor: measures concepts of the latest training batch at every logged step, encoded again without dropout,
            whose noise would pass for diversity; see `ConceptMonitor`.
        assemble: chooses what a push to the Hub holds; see `UploadAssembler`. Needed with `push_to_hub=True`.
        data_args: where the datasets come from; a resumed run has to have the same.
        Everything else as in `transformers.Trainer`; `processing_class` is the tokenizer and is required.
    """

    def __init__(
        self,
        model: nn.Module,
        args: ConceptTrainingArguments,
        *,
        objective_args: ObjectiveArguments,
        assemble: UploadAssembler | None = None,
        data_args: DataArguments | None = None,
        **kwargs,
    ):
        if args.push_to_hub and assemble is None:
            raise ValueError("push_to_hub=True needs assemble, such as that of concept_encoder.eval.hub.publishing")
        self.data_args = data_args
        self.uploads = HubUploads(self, assemble)
        self._checkpoint: Path | None = None  # that this training continues from
        self._record: dict[str, Any] = {}
        self._rollbacks = 0
        self._base_rates: list[float] | None = None
        self._saving = False
        super().__init__(model, args, objective_args=objective_args, **kwargs)
        for display in (ProgressCallback, PrinterCallback):  # on stderr: stdout is for results
            if self.pop_callback(display) is not None:
                self.add_callback(TrainingProgress())
        self.add_callback(_Resuming(self))
        self.add_callback(self.uploads)

    # ------------------------------------------------------------------------------------------------------ training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Train; with `on_divergence="rollback"`, again from the last checkpoint at half the rate when it diverges.

        `True` resumes from the newest checkpoint of the output folder that is whole.

        Returns:
            As the Trainer; the loss is the mean over all steps, those before a resume too.

        Raises:
            ValueError: the checkpoint was made with other settings, each named; its state is broken or missing.
            DivergenceError: see `DivergenceGuard`.

        Source: of going back and lowering the rate, OPT (Zhang et al. 2022, arXiv:2205.01068), section 2.5.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} has no checkpoint-N folder that is whole; train from the start"
                )
        while True:
            try:
                return self._train_from(resume_from_checkpoint or None, *args, **kwargs)
            except UnpicklingError as error:
                raise ValueError(
                    f"{resume_from_checkpoint} holds a state of training that is broken, or would run code when it is "
                    f"read, and was not read: {str(error).splitlines()[0]} Resume from another checkpoint"
                ) from error
            except DivergenceError as error:
                if self.args.on_divergence == "stop":
                    raise
                resume_from_checkpoint = self._rollback(error)

    def _train_from(self, checkpoint: str | None, *args, **kwargs) -> TrainOutput:
        self._parts.clear()
        self._loss_of_step = 0.0
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._record = self._made_with()
        again = {}
        if self._checkpoint is not None:
            check_resumable(self._checkpoint, self._record)
            best = best_checkpoint(self._checkpoint)
            if self.args.load_best_model_at_end and best is not None and damage(best) is not None:
                raise ValueError(
                    f"load_best_model_at_end=True needs {best}, the best so far, and {damage(best)}; put it back, or "
                    f"begin a new run in another folder with start_from={self._checkpoint}"
                )
            self.guard.load(str(self._checkpoint))
            again = {"eval_on_start": False}  # it is in the log
        with self._with_args(**again), _no_false_alarms():
            output = super().train(checkpoint, *args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _made_with(self) -> dict[str, Any]:
        return made_with(
            self.accelerator.unwrap_model(self.model).config,
            self.settings,
            self.args,
            self.processing_class,
            self.train_dataset,
            self.data_args,
        )

    def _rollback(self, error: DivergenceError) -> str:
        checkpoint = last_complete(self.args.output_dir, at_most=self.state.global_step)
        if checkpoint is None:
            raise DivergenceError(f"{error} There is no checkpoint yet to roll back to: lower save_steps.") from error
        if self._rollbacks == MAX_ROLLBACKS:
            raise DivergenceError(f"{error} Rolled back {MAX_ROLLBACKS} times already.") from error
        self._rollbacks += 1
        assert self.lr_scheduler is not None
        self._base_rates = [rate / 2 for rate in self.lr_scheduler.base_lrs]
        if self.is_world_process_zero():
            logger.warning(
                f"diverged: {error}\nrollback {self._rollbacks} of at most {MAX_ROLLBACKS} to {checkpoint}, with the "
                f"learning rate halved to {self._base_rates[0]:g}"
            )
        return checkpoint

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch: int, *args) -> tuple[int, int]:
        epochs, micro_steps = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args)
        if self._checkpoint is None:
            return epochs, micro_steps
        self.state.compute_steps(self.args, max_steps)  # when it logs, evaluates and saves: as it is asked to now
        if not has_length(self.train_dataset) and not self.args.ignore_data_skip:
            # The Trainer takes a stream for one epoch that never ends; the state knows in which it really was, and
            # counts an epoch for as many steps as the run was to have then.
            whole, part = divmod(self.state.epoch, 1)
            epochs = int(whole)
            steps = recorded(self._checkpoint)["training"]["max_steps"]
            micro_steps = round(part * steps * self.args.gradient_accumulation_steps)
        return epochs, micro_steps

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer does, the average where there is one, and without a pickle of the arguments.

        Weights come last: a folder that has them has the configuration, code and tokenizer that belong to them.
        """
        folder = Path(output_dir or self.args.output_dir)
        with self._averaged():
            if self._saving or not self.args.should_save:
                self._save_without_pickle(folder)
            else:
                weights = folder / SAFE_WEIGHTS_NAME
                with disk_trouble_named(weights), replaced_together(folder, SAFE_WEIGHTS_NAME) as staged:
                    self._save_without_pickle(staged)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_without_pickle(self, folder: Path) -> None:
        super().save_model(str(folder), _internal_call=True)
        # Nothing reads it, recipe.yaml says how the run was made; and of several processes one alone writes it.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if self.args.should_save:
            fit_saved_tokenizer(folder, self.model.config)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As the Trainer does, but aside: it gets its name and may replace older ones when it is whole.

        The folder in which it is written has to be one that all processes of a machine see.

        Raises:
            OSError: it could not be written; what was written of it is removed, the earlier ones are as they were.
        """
        run_dir, name = Path(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = run_dir / STAGING_FOLDER
        if self.args.local_process_index == 0:
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            with disk_trouble_named(run_dir / name):
                # It neither pushes nor removes: here that comes when the checkpoint is whole.
                with self._with_args(output_dir=str(staging), push_to_hub=False, save_total_limit=None):
                    super()._save_checkpoint(model, trial)
                self._save_own_state(staging / name)
                self._name_best(staging / name, run_dir / name)
                self.accelerator.wait_for_everyone()
                with self.accelerator.main_process_first():
                    if self.args.local_process_index == 0 and staging.is_dir():  # still, where each machine has a disk
                        publish(staging / name, run_dir / name)
        finally:
            self._saving = False
            if self.args.local_process_index == 0:
                shutil.rmtree(staging, ignore_errors=True)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            remove_old(run_dir, self.args.save_total_limit, self.state.global_step, best)

    def _save_own_state(self, folder: Path) -> None:
        """What the Trainer does not know of: that of each process, and of the run."""
        if self.args.should_save:
            write_record(folder, self._record)
        if self.args.save_only_model:
            return
        sums = {
            "loss": self._tr_loss,
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "parts": self._parts,
            "collapsed_in_a_row": self._collapsed_in_a_row,
            "rollbacks": self._rollbacks,
        }
        head = training_head(self.model)
        if head is not None:  # like the model in a checkpoint, which does not hold it: the average where there is one
            with self._averaged():
                sums[HEAD] = {name: weight.clone() for name, weight in head.state_dict().items()}
        torch.save(sums, folder / SUMS_SINCE_LOG.format(rank=self.args.process_index))
        if not self.args.should_save:
            return
        self.guard.save(str(folder))
        if self.average is not None:
            self.average.save(self.model, str(folder))

    def restore_own_state(self) -> None:
        """Load what `_save_own_state` wrote, once the Trainer has loaded the rest and set its sums to zero."""
        if self._checkpoint is None:
            return
        best = best_checkpoint(self._checkpoint)  # the Trainer looked for its name in the working folder
        self.state.best_model_checkpoint = None if best is None else str(best)
        file = self._checkpoint / SUMS_SINCE_LOG.format(rank=self.args.process_index)
        device, sums = self.args.device, torch.load(file, map_location="cpu", weights_only=True)
        head = training_head(self.model)
        if head is not None:
            head.load_state_dict(sums[HEAD])
        if self.average is not None:
            self.average.load(self.model, str(self._checkpoint))
        self._tr_loss, self._globalstep_last_logged = sums["loss"].to(device), sums["last_logged"]
        self._total_loss_scalar = sums["total_loss"]
        self._parts = {name: [tensor.to(device) for tensor in pair] for name, pair in sums["parts"].items()}
        self._collapsed_in_a_row = sums["collapsed_in_a_row"]
        self._rollbacks = max(self._rollbacks, sums["rollbacks"])
        if self._base_rates is not None:
            set_base_rates(self.optimizer, self.lr_scheduler, self._base_rates)
            self._base_rates = None
            self.log({"rollback": self._rollbacks, "learning_rate": self._get_learning_rate()})

    def _name_best(self, staged: Path, final: Path) -> None:
        """The Trainer took the place where the best checkpoint is written for its own; the file has its name alone."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None:
            state = dataclasses.replace(self.state, best_model_checkpoint=Path(best).name)
            state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, *args, **kwargs) -> None:
        with embeddings_apart(self.model, self._shared_embeddings):
            super()._load_from_checkpoint(*args, **kwargs)

    # --------------------------------------------------------------------------------------------------------- the Hub

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """Push the model as `assemble` lays it out, card included; arguments as in `transformers.Trainer`.

        Returns:
            The commit, or a future of it when not `blocking`; None on every process but the first.
        """
        if self.uploads.assemble is None:
            raise ValueError("push_to_hub needs ConceptTrainer(assemble=...): it chooses what is published")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.uploads.finish()
        push = self.uploads.start(Path(self.args.output_dir), commit_message, token, revision)
        return push.result() if blocking else push


class _Resuming(TrainerCallback):
    """Moments of a resumed training: its first, and an epoch with nothing left to train."""

    def __init__(self, trainer: ConceptTrainer):
        self.trainer = trainer
        self.nothing_left = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.restore_own_state()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.nothing_left = state.global_step >= state.max_steps

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self.nothing_left:
            control.should_log = control.should_evaluate = control.should_save = False
