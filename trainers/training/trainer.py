"""Pretraining on the transformers Trainer: noise drawn by step, loss parts logged, checkpoints that are whole."""

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo, HfApi
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    HubStrategy,
    TrainOutput,
    has_length,
)
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import PushInProgress

from ...modeling_concept import ConceptMaskedLMOutput
from ...utils.files import replaced_together
from ...utils.progress import progress
from ...utils.tokenizer import limit_length
from ..objectives.collators import PARTNER, DataCollatorForReconstruction, visible_concept_counts
from ..objectives.objective import ObjectiveArguments
from .arguments import ConceptTrainingArguments
from .averaging import TRAINING_WEIGHTS_FILE, WeightAverage
from .data_wait import DataWait
from .evaluation import ReconstructionEvaluator
from .kernels import liger_linear_cross_entropy
from .saving import STAGING_FOLDER, disk_trouble_named, last_complete, publish, remove_old
from .sharding import embeddings_apart, share_tied_embeddings
from .stability import MAX_ROLLBACKS, DivergenceError, DivergenceGuard, gradient_norms, set_base_rates
from .stopping import StopOnSignal

logger = logging.getLogger(__name__)
WATCHED_TEXTS = 8  # per process, of the batch at a logged step
OBJECTIVE_FILE = "objective.safetensors"  # parameters of the objective, in a checkpoint
SUMS_SINCE_LOG = "log_sums_{rank}.pth"  # what the next log entry will be the mean of, in a checkpoint, per process
FULL_STATE = "FULL_STATE_DICT"
# (B, C, D) concepts of a training batch -> figures to log, and a warning in words or None.
ConceptMonitor = Callable[[Tensor], tuple[dict[str, float], str | None]]
# (folder of a checkpoint, empty folder, repository) -> notes; copies what is published, card included.
UploadAssembler = Callable[[Path, Path, str], list[str]]


class ConceptTrainer(Trainer):
    """Trains the head that an objective's corruption names, with that objective.

    The noise of a micro-batch is a function of (seed, step, micro-step, rank) alone, so that a resumed run continues
    bit for bit and processes never share noise.

    With `ema_decay` the model is the average of the weights wherever it is evaluated, saved, pushed or left behind;
    see `WeightAverage`. Parameters of the objective are trained along, without weight decay, and are no part of the
    model. A diverging step never reaches the weights; see `DivergenceGuard`.

    Args:
        objective_args: the objective's settings.
        monitor: measures concepts of the latest training batch at every logged step, encoded again without dropout,
            whose noise would pass for diversity; see `ConceptMonitor`.
        assemble: chooses what a push to the Hub holds; see `UploadAssembler`. Needed with `push_to_hub=True`.
        Everything else as in `transformers.Trainer`; `processing_class` is the tokenizer and is required.
    """

    def __init__(
        self,
        model: nn.Module,
        args: ConceptTrainingArguments,
        *,
        objective_args: ObjectiveArguments,
        processing_class: PreTrainedTokenizerBase | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        monitor: ConceptMonitor | None = None,
        assemble: UploadAssembler | None = None,
        **kwargs,
    ):
        if processing_class is None:
            raise ValueError("ConceptTrainer needs processing_class: the tokenizer knows [MASK] and [PAD]")
        if args.push_to_hub and assemble is None:
            raise ValueError("push_to_hub=True needs assemble, such as that of concept_encoder.eval.hub.publishing")
        _check_task(model, args, objective_args, train_dataset)
        limit_length(processing_class, model.config)
        self.settings = objective_args
        self.collator = DataCollatorForReconstruction(
            processing_class,
            objective_args.build_corruption(),
            position_share=objective_args.position_share,
            seed=args.seed,
        )
        self.evaluator = ReconstructionEvaluator(processing_class, objective_args)
        self.objective = objective_args.build_objective(model.config.hidden_size, processing_class)
        self.monitor = monitor
        self.assemble = assemble
        self.api = HfApi()
        self.push_in_progress: PushInProgress | None = None
        self.data_wait = DataWait()
        self.guard = DivergenceGuard(args.divergence_ratio, clipped=args.max_grad_norm > 0)
        self.average = WeightAverage(args.ema_decay) if args.ema_decay else None
        self.stop = StopOnSignal()
        self._parts: dict[str, list[Tensor]] = {}
        self._watched: dict[str, Tensor] = {}
        self._collapsed_in_a_row = 0
        self._loss_of_step: Tensor | float = 0.0
        self._gradient_norms: dict[str, Tensor] = {}
        self._tokens_of_step = torch.tensor(0)
        self._shared_embeddings: list[str] = []
        self._rollbacks = 0
        self._base_rates: list[float] | None = None
        self._staging: Path | None = None
        super().__init__(
            model,
            args,
            data_collator=self.collator.pad,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._check_devices()
        self.loss_is_scaled_for_ga = True
        self.objective.learned.to(self.args.device)
        if self.args.use_liger_kernel:
            self.model.loss_kernel = liger_linear_cross_entropy
        for callback in (self.average, self.stop):
            if callback is not None:
                self.add_callback(callback)

    def _check_devices(self) -> None:
        """ValueError for settings that do not go with the devices that accelerate has found."""
        if self.args.use_liger_kernel and self.args.device.type != "cuda":
            raise ValueError(
                f"use_liger_kernel=True needs a CUDA device, and training runs on {self.args.device.type}; leave it "
                "out"
            )
        if self.is_fsdp_enabled and list(self.objective.learned.parameters()):
            raise ValueError(
                f"term_weighting={self.settings.term_weighting!r} with distil_from={self.settings.distil_from!r} "
                "trains parameters outside the model, which FSDP leaves out; launch with DDP, or set 'fixed' and ''"
            )
        if self.average is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("ema_decay needs whole weights on each device; FSDP and DeepSpeed shard them")
        if self.is_fsdp_enabled:
            kind = self.accelerator.state.fsdp_plugin.state_dict_type.name
            if kind != FULL_STATE:
                raise ValueError(
                    f"fsdp_state_dict_type must be {FULL_STATE}, got {kind}: torch reads sharded checkpoints through "
                    "a pickle, which can run code; see scripts/accelerate/fsdp2.yaml"
                )

    # ------------------------------------------------------------------------------------------------------ training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Train; with `on_divergence="rollback"`, again from the last checkpoint at half the rate when it diverges.

        `True` resumes from the newest checkpoint of the output folder that is whole.

        Source: of going back and lowering the rate, OPT (Zhang et al. 2022, arXiv:2205.01068), section 2.5.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} has no checkpoint-N folder that is whole; train from the start"
                )
        while True:
            self._parts.clear()
            self._loss_of_step = 0.0
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except UnpicklingError as error:
                raise ValueError(
                    f"{resume_from_checkpoint} holds a state of training that is broken, or would run code when it is "
                    f"read, and was not read: {str(error).splitlines()[0]} Resume from another checkpoint"
                ) from error
            except DivergenceError as error:
                if self.args.on_divergence == "stop":
                    raise
                resume_from_checkpoint = self._rollback(error)

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

    def _prepare_for_training(self, *args, **kwargs):
        own_class = type(self.model)
        if self.is_fsdp_enabled:
            self._shared_embeddings = share_tied_embeddings(self.model)
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled:
            # FSDP2 gives the model a class of its own, after which saving would name and copy code.
            sharded_class = type(self.model)
            sharded_class.__name__, sharded_class.__module__ = own_class.__name__, own_class.__module__
        return prepared

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        learned = list(self.objective.learned.parameters())
        if new and learned:
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0})
        if self.average is not None:
            self.average.start(self.model)
        return optimizer

    def _init_training_state(self, max_steps: int, num_update_steps_per_epoch: int, *args) -> tuple[int, int]:
        epochs, micro_steps = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args)
        if self.state.global_step and not has_length(self.train_dataset) and not self.args.ignore_data_skip:
            # The Trainer takes a stream for one epoch that never ends; the state knows in which it really was.
            whole, part = divmod(self.state.epoch, 1)
            epochs = int(whole)
            micro_steps = round(part * num_update_steps_per_epoch * self.args.gradient_accumulation_steps)
        return epochs, micro_steps

    def _run_epoch(self, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # killed after its last checkpoint; one more step otherwise
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Corrupt the micro-batches of one optimizer step and count what their losses are divided by."""
        self.objective.learned.zero_grad()  # the Trainer does it for the model alone
        with self.data_wait.getting_data():
            batches, _ = super().get_batch_samples(self._corrupted(epoch_iterator), num_batches, device)
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batches:
            counts += torch.stack([batch["num_items"].sum(), self._num_tokens(batch)]).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts).view(-1, 2).sum(0)
        num_items, self._tokens_of_step = counts
        return batches, num_items.clamp_min(1)

    def _num_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        return mask.new_tensor(mask.numel()) if self.args.include_num_input_tokens_seen == "all" else mask.sum()

    def _track_num_input_tokens(self, inputs: dict[str, Tensor]) -> None:
        # Once per step, where `_judge_step` has just waited for the device; the Trainer waits at each micro-step.
        if self.args.include_num_input_tokens_seen != "no" and self.accelerator.sync_gradients:
            self.state.num_input_tokens_seen += int(self._tokens_of_step)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        self.data_wait.step_ends()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _corrupted(self, batches: Iterator) -> Iterator[dict[str, Tensor]]:
        rank, world_size = self.args.process_index, self.args.world_size
        for micro_step, batch in enumerate(batches):
            noise = self.collator.draw(batch, self.state.global_step, micro_step, rank, world_size)
            device = batch["input_ids"].device
            corrupted = self.collator.corrupt(batch, noise.to(device))
            corrupted |= {key: batch[key] for key in PARTNER.values() if key in batch}
            if self.settings.nested_concepts:
                uniform = self.collator.draw_rows(batch, self.state.global_step, micro_step, rank)
                counts = visible_concept_counts(uniform, self.model.config.num_concepts)
                corrupted["num_visible_concepts"] = counts.to(device)
            yield corrupted

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        result = self.objective(model, inputs, num_items_in_batch)
        self._watched = {name: inputs[name][:WATCHED_TEXTS] for name in ("input_ids", "attention_mask")}
        for name, (total, count) in result.parts.items():
            kept = self._parts.setdefault(name, [torch.zeros_like(total), torch.zeros_like(count)])
            kept[0] += total
            kept[1] += count
        # Gradients are averaged over processes, while num_items_in_batch counts the items of all of them.
        return result.loss * self.args.world_size

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._loss_of_step = self._loss_of_step + loss
        if self.accelerator.sync_gradients:  # the last micro-batch of the step
            self._share_objective_gradients()
            self._judge_step()
        return loss

    def _share_objective_gradients(self) -> None:
        for parameter in self.objective.learned.parameters():
            if parameter.grad is not None:  # the distributed wrapper knows the model's parameters only
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def _judge_step(self) -> None:
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._gradient_norms = {name: norm / scale for name, norm in gradient_norms(self.model).items()}
        norm = torch.stack(list(self._gradient_norms.values())).norm()
        loss, self._loss_of_step = torch.as_tensor(self._loss_of_step, device=norm.device), 0.0
        # One verdict for all processes, whose losses differ, and which signals reach at different times.
        asked = torch.tensor(float(self.stop.asked), device=norm.device)
        judged = self.accelerator.reduce(torch.stack([loss.float(), norm.float(), asked]), "mean")
        loss, norm, asked = judged.tolist()
        self.stop.agreed = asked > 0
        if scaler is not None and math.isfinite(loss) and not math.isfinite(norm):
            return  # float16: the loss scaler skips this step and lowers its scale
        self.guard.check(self.state.global_step + 1, loss, norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            totals = self.accelerator.reduce(torch.stack([torch.stack(pair) for pair in self._parts.values()]), "sum")
            for name, (total, count) in zip(self._parts, totals.tolist(), strict=True):
                if count:
                    logs[name] = total / count
            self._parts.clear()
            logs.update({f"grad_norm_{name}": norm.item() for name, norm in self._gradient_norms.items()})
            logs["data_wait_share"] = self.data_wait.share_since_last_call()
            logs.update({name: value.item() for name, value in self.objective.weighting.figures().items()})
            if self.monitor is not None:
                self._log_geometry(logs, *self.monitor(self._watched_concepts()))
        super().log(logs, start_time)

    @torch.no_grad()
    def _watched_concepts(self) -> Tensor:
        """(B, C, D) concepts of a few texts of the latest batch, as evaluation would see them."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        # Through the whole model, around whose forward FSDP gathers the weights; cheap, as nothing has a label.
        no_labels = torch.full_like(self._watched["input_ids"], -100)
        with self.accelerator.autocast():
            concepts = model(**self._watched, labels=no_labels).concepts
        model.train(training)
        return concepts

    def _log_geometry(self, logs: dict[str, float], figures: dict[str, float], warning: str | None) -> None:
        # Every process measures its own texts; the verdict has to be one, so that all stop together.
        collapsed = float(warning is not None)
        values = torch.tensor([*figures.values(), collapsed], device=self.args.device)
        *means, collapsed = self.accelerator.reduce(values, "mean").tolist()
        logs.update(zip(figures, means, strict=True))
        self._collapsed_in_a_row = self._collapsed_in_a_row + 1 if collapsed > 0.5 else 0
        if self._collapsed_in_a_row == 1 and warning is not None:
            logger.warning(f"step {self.state.global_step}: {warning}")
        if self.args.stop_on_collapse and self._collapsed_in_a_row >= self.args.stop_on_collapse:
            logger.warning(f"stopped: concepts collapsed at {self._collapsed_in_a_row} logged steps in a row")
            self.control.should_training_stop = True

    def largest_data_wait_share(self) -> float:
        """Share of training spent on data, in [0, 1], of the process that spent most; all processes call it."""
        share = torch.tensor([self.data_wait.share()], device=self.args.device)
        return self.accelerator.gather(share).max().item()

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self._averaged():
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self._staging is not None or not self.args.should_save:
            self._save_without_pickle(folder, state_dict)
            return
        # Weights last: a folder that has them has the configuration, code and tokenizer that belong to them.
        with disk_trouble_named(folder / SAFE_WEIGHTS_NAME), replaced_together(folder, SAFE_WEIGHTS_NAME) as staged:
            self._save_without_pickle(staged, state_dict)

    def _save_without_pickle(self, folder: Path, state_dict: dict | None) -> None:
        super()._save(str(folder), state_dict)
        # Nothing reads it, recipe.yaml says how the run was made; and of several processes one alone writes it.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As the Trainer does, but aside: it gets its name, is pushed and may replace older ones when it is whole.

        The folder in which it is written has to be one that all processes of a machine see.

        Raises:
            OSError: it could not be written; what was written of it is removed, the earlier ones are as they were.
        """
        run_dir, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = staging = run_dir / STAGING_FOLDER
        if self.args.local_process_index == 0:
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        try:
            with disk_trouble_named(run_dir / name):
                super()._save_checkpoint(model, trial)
                self._name_best(staging / name, run_dir / name)
                self.accelerator.wait_for_everyone()
                with self.accelerator.main_process_first():
                    if self.args.local_process_index == 0 and staging.is_dir():  # still, where each machine has a disk
                        publish(staging / name, run_dir / name)
        finally:
            self._staging = None
            if self.args.local_process_index == 0:
                shutil.rmtree(staging, ignore_errors=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            remove_old(run_dir, self.args.save_total_limit, self.state.global_step, best)

    def _name_best(self, staged: Path, final: Path) -> None:
        """The Trainer took the place where the best checkpoint is written for its own."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        sums = {
            "loss": self._tr_loss,
            "last_logged": self._globalstep_last_logged,
            "parts": self._parts,
            "collapsed_in_a_row": self._collapsed_in_a_row,
            "rollbacks": self._rollbacks,
        }
        torch.save(sums, Path(output_dir) / SUMS_SINCE_LOG.format(rank=self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called before the first step of a resumed run, when the Trainer has set its sums to zero."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / SUMS_SINCE_LOG.format(rank=self.args.process_index)
        if not file.is_file():  # of fewer processes, so there is nothing to be exact about
            return
        device, sums = self.args.device, torch.load(file, map_location="cpu", weights_only=True)
        self._tr_loss, self._globalstep_last_logged = sums["loss"].to(device), sums["last_logged"]
        self._parts = {name: [tensor.to(device) for tensor in pair] for name, pair in sums["parts"].items()}
        self._collapsed_in_a_row = sums["collapsed_in_a_row"]
        self._rollbacks = max(self._rollbacks, sums["rollbacks"])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        self.guard.save(output_dir)
        if self.average is not None:
            self.average.save(self.model, output_dir)
        if list(self.objective.learned.parameters()):
            save_model(self.objective.learned, str(Path(output_dir) / OBJECTIVE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        averaged = (Path(checkpoint) / TRAINING_WEIGHTS_FILE).exists()
        if averaged != (self.average is not None):
            was, now = ("with", "off") if averaged else ("without", f"{self.args.ema_decay}")
            raise ValueError(f"{checkpoint} was trained {was} ema_decay, which is {now} now; resume as it was")
        super()._load_optimizer_and_scheduler(checkpoint)
        self.guard.load(checkpoint)
        if self.average is not None:
            self.average.load(self.model, checkpoint)
        if list(self.objective.learned.parameters()):
            load_model(self.objective.learned, Path(checkpoint) / OBJECTIVE_FILE)
        if self._base_rates is not None:
            set_base_rates(self.optimizer, self.lr_scheduler, self._base_rates)
            self._base_rates = None
            self.log({"rollback": self._rollbacks, "learning_rate": self._get_learning_rate()})

    def _load_from_checkpoint(self, *args, **kwargs) -> None:
        with embeddings_apart(self.model, self._shared_embeddings):
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.reset(self.model)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.state.global_step:  # `eval_on_start`: a resumed run has it in its log
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """The metrics of `ReconstructionEvaluator`, over the texts of all processes."""
        # Not prepared by accelerate: a model once prepared for evaluation would later train without synchronisation.
        model = self.model.eval()

        def autocast(**inputs) -> ConceptMaskedLMOutput:
            with self.accelerator.autocast():
                return model(**inputs)

        totals: Tensor | float = 0.0
        num_texts = 0
        hide = self.args.disable_tqdm or not self.is_world_process_zero()
        for batch in progress(dataloader, desc=description, disable=hide, leave=False):
            scores = self.accelerator.gather_for_metrics(self.evaluator.score(autocast, batch))  # (B, P, 5)
            totals = totals + scores.double().sum(0).cpu()
            num_texts += len(scores)
        if not isinstance(totals, Tensor):
            raise ValueError("the evaluation dataset is empty")
        metrics = self.evaluator.metrics(totals)
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=num_texts,
        )

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
        if self.assemble is None:
            raise ValueError("push_to_hub needs ConceptTrainer(assemble=...): it chooses what is published")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        push = self._start_push(Path(self.args.output_dir), commit_message, token, revision)
        return push.result() if blocking else push

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy, args = self.args.hub_strategy, self.args
        if self._staging is not None:  # the Trainer's own call, before the checkpoint is whole
            return
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress
        busy = running is not None and not running.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        jobs: list[Any] = [self._start_push(Path(checkpoint_folder), message)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            state = self.api.upload_folder(
                repo_id=self.hub_model_id,
                folder_path=checkpoint_folder,
                path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                commit_message=f"{message}, checkpoint",
                run_as_future=True,
                revision=args.hub_revision,
            )
            jobs.append(state)
        if running is not None and busy:
            running.jobs.extend(jobs)
            return
        self._finish_current_push()
        self.push_in_progress = PushInProgress(jobs)

    def _start_push(
        self, source: Path, message: str | None, token: str | None = None, revision: str | None = None
    ) -> Future:
        """Lay out the upload set of `source` now, since it may be removed soon, and upload it in the background."""
        assert self.assemble is not None
        scratch = tempfile.TemporaryDirectory(prefix="push-")
        self.assemble(source, Path(scratch.name), self.hub_model_id)

        def upload() -> CommitInfo:
            with scratch:
                return self.api.upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=scratch.name,
                    commit_message=message,
                    token=token,
                    revision=revision or self.args.hub_revision,
                )

        return self.api.run_as_future(upload)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        push = self.push_in_progress
        for error in [job.exception() for job in push.jobs] if push is not None else []:
            if error is not None:
                logger.warning(
                    f"a push during training failed ({type(error).__name__}); the next one brings all of it"
                )
        self.push_in_progress = None


def _check_task(
    model: nn.Module,
    args: ConceptTrainingArguments,
    settings: ObjectiveArguments,
    train_dataset: Dataset | IterableDataset | None,
) -> None:
    """ValueError if the model, or the batches, are not what the objective needs."""
    head = settings.build_corruption().head.__name__
    # By name: a class loaded with a checkpoint's own code is another object. A model that is none of the heads says
    # which one it can be trained as.
    own = getattr(model, "trained_as", type(model).__name__)
    if own != head:
        raise ValueError(f"corruption {settings.corruption!r} trains a {head}, got a {own}")
    columns = getattr(train_dataset, "column_names", None) or ()  # a stream may not know its own
    settings.check(model.config, paired="partner_ids" in columns)
    if settings.contrastive and args.per_device_train_batch_size * args.world_size < 2:
        raise ValueError("contrastive needs other texts as negatives: raise per_device_train_batch_size to 2 or more")
