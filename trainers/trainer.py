"""Pretraining on the transformers Trainer: noise drawn by step, loss parts logged, evaluation as a NELBO."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, HubStrategy
from transformers.utils.hub import PushInProgress

from .collators import DataCollatorForMaskedDiffusion
from .objectives import DiffusionObjective, ObjectiveArguments

logger = logging.getLogger(__name__)
# (B, C, D) concepts of a training batch -> figures to log, and a warning in words or None.
ConceptMonitor = Callable[[Tensor], tuple[dict[str, float], str | None]]
# (folder of a checkpoint, empty folder, repository) -> notes; copies what is published, card included.
UploadAssembler = Callable[[Path, Path, str], list[str]]


@dataclass
class ConceptTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that pretraining needs."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator draws its own columns."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the loss before any learning."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A non-finite loss raises instead."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pinned memory serves a GPU only."}
    )
    stop_on_collapse: int = field(
        default=0, metadata={"help": "Stop after so many logged steps in a row with collapsed concepts; 0 = never."}
    )
    include_num_input_tokens_seen: str = field(default="non_padding", metadata={"help": "Count real tokens."})

    def __post_init__(self):
        if self.hub_token is not None:
            raise ValueError(
                "hub_token would be written into training_args.bin; log in with `hf auth login`, or set HF_TOKEN"
            )
        super().__post_init__()


class ConceptTrainer(Trainer):
    """Trains a `ConceptEncoderForDiffusionMLM` with an objective.

    The noise of a micro-batch is a function of (seed, step, micro-step, rank) alone, so that a resumed run continues
    bit for bit and processes never share noise.

    Args:
        objective_args: the objective's settings.
        monitor: measures the concepts of the latest training batch at every logged step; see `ConceptMonitor`.
        assemble: chooses what a push to the Hub holds; see `UploadAssembler`. Needed with `push_to_hub=True`.
        Everything else as in `transformers.Trainer`; `processing_class` is the tokenizer and is required.
    """

    def __init__(
        self,
        *args,
        objective_args: ObjectiveArguments,
        monitor: ConceptMonitor | None = None,
        assemble: UploadAssembler | None = None,
        **kwargs,
    ):
        tokenizer = kwargs.get("processing_class")
        if tokenizer is None:
            raise ValueError("ConceptTrainer needs processing_class: the tokenizer knows [MASK] and [PAD]")
        settings = objective_args
        training_args = kwargs["args"] if "args" in kwargs else args[1]
        if training_args.push_to_hub and assemble is None:
            raise ValueError("push_to_hub=True needs assemble, for instance concept_encoder.eval.publishing.assemble")
        self.collator = DataCollatorForMaskedDiffusion(
            tokenizer,
            schedule=settings.schedule,
            t_min=settings.t_min,
            t_max=settings.t_max,
            t_sampling=settings.t_sampling,
            weighting=settings.weighting,
            position_share=settings.position_share,
            seed=training_args.seed,
        )
        # Evaluation always weighs by the bound, over all of (0, 1] and all positions, whatever training does.
        self.eval_collator = replace(self.collator, t_min=0.0, t_max=1.0, weighting="elbo", position_share=1.0, seed=0)
        self.num_eval_timesteps = settings.num_eval_timesteps
        self.objective = DiffusionObjective(settings.label_smoothing, settings.regularizer_weights())
        self.monitor = monitor
        self.assemble = assemble
        self.api = HfApi()
        self.push_in_progress: PushInProgress | None = None
        self._parts: dict[str, list[Tensor]] = {}
        self._concepts: Tensor | None = None
        self._collapsed_in_a_row = 0
        super().__init__(*args, data_collator=self.collator.pad, **kwargs)
        self.loss_is_scaled_for_ga = True

    # ------------------------------------------------------------------------------------------------------ training

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Corrupt the micro-batches of one optimizer step and count what their losses are divided by."""
        batches, _ = super().get_batch_samples(self._corrupted(epoch_iterator), num_batches, device)
        num_items = sum((batch["num_items"].sum() for batch in batches), torch.tensor(0)).to(device)
        if self.args.world_size > 1:
            num_items = self.accelerator.gather(num_items).sum()
        return batches, num_items.clamp_min(1)

    def _corrupted(self, batches: Iterator) -> Iterator[dict[str, Tensor]]:
        rank, world_size = self.args.process_index, self.args.world_size
        for micro_step, batch in enumerate(batches):
            timesteps, noise = self.collator.draw(batch, self.state.global_step, micro_step, rank, world_size)
            device = batch["input_ids"].device
            yield self.collator.corrupt(batch, timesteps.to(device), noise.to(device))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        result = self.objective(model, inputs, num_items_in_batch)
        self._concepts = result.concepts
        for name, (total, count) in result.parts.items():
            kept = self._parts.setdefault(name, [torch.zeros_like(total), torch.zeros_like(count)])
            kept[0] += total
            kept[1] += count
        # Gradients are averaged over processes, while num_items_in_batch counts the items of all of them.
        return result.loss * self.args.world_size

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; the weights are still those of the "
                "step before. Lower learning_rate or max_grad_norm, or warm up longer."
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            totals = self.accelerator.reduce(torch.stack([torch.stack(pair) for pair in self._parts.values()]), "sum")
            for name, (total, count) in zip(self._parts, totals.tolist(), strict=True):
                if count:
                    logs[name] = total / count
            self._parts.clear()
            if self.monitor is not None:
                self._log_geometry(logs, *self.monitor(self._concepts))
        super().log(logs, start_time)

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

    # ---------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Conditional NELBO on a fixed t-grid, and cross-entropy and accuracy of masked tokens at each t.

        The grid holds the midpoints of `num_eval_timesteps` equal parts of (0, 1]. The noise is a function of the
        text and the grid point alone, independent between points: nested masks would leave the bound more variance.
        Metrics: `loss` (the NELBO in nats per token), `nelbo_bits_per_token`, and for each grid point
        `nll_bits_t_*`, `accuracy_t_*`, `tokens_t_*`.
        """
        # Not prepared by accelerate: a model once prepared for evaluation would later train without synchronisation.
        model = self.model.eval()
        grid = (torch.arange(self.num_eval_timesteps) + 0.5) / self.num_eval_timesteps
        totals = torch.zeros(len(grid), 5, dtype=torch.float64)
        num_texts = 0
        hide = self.args.disable_tqdm or not self.is_world_process_zero()
        for batch in tqdm(dataloader, desc=description, disable=hide, leave=False):
            sums = torch.stack(
                [self._score(model, batch, k, t) for k, t in enumerate(grid.tolist())], dim=1
            )  # (B, T, 5)
            sums = self.accelerator.gather_for_metrics(sums)
            totals += sums.double().sum(0).cpu()
            num_texts += len(sums)
        if num_texts == 0:
            raise ValueError("the evaluation dataset is empty")
        metrics = self._eval_metrics(grid.tolist(), totals)
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=num_texts,
        )

    def _score(self, model: nn.Module, batch: dict[str, Tensor], draw: int, t: float) -> Tensor:
        """(B, 5): weighted NLL, tokens that could be masked, NLL, hits and number of masked tokens, per text."""
        device = batch["input_ids"].device
        noise = self.eval_collator.fixed_noise(batch, draw)[:, 1:].to(device)
        noised = self.eval_collator.corrupt(batch, torch.full((len(noise),), t, device=device), noise)
        eligible = noised.pop("num_items")
        with self.accelerator.autocast():
            output = model(**noised)
        labelled, drawn = noised["labels"] != -100, noised["loss_weights"] > 0
        right = output.logits.argmax(-1) == noised["labels"][labelled]
        hits = torch.zeros_like(labelled).masked_scatter(labelled, right) & drawn
        bound = (output.token_losses * noised["loss_weights"]).sum(-1)
        nll = (output.token_losses * drawn).sum(-1)
        return torch.stack([bound, eligible.float(), nll, hits.sum(-1).float(), drawn.sum(-1).float()], dim=-1)

    @staticmethod
    def _eval_metrics(grid: list[float], totals: Tensor) -> dict[str, float]:
        bound, eligible, nll, hits, masked = totals.T.tolist()
        nelbo = sum(b / max(e, 1) for b, e in zip(bound, eligible, strict=True)) / len(grid)
        metrics = {"loss": nelbo, "nelbo_bits_per_token": nelbo / math.log(2)}
        for k, t in enumerate(grid):
            if masked[k]:
                metrics[f"nll_bits_t_{t:g}"] = nll[k] / masked[k] / math.log(2)
                metrics[f"accuracy_t_{t:g}"] = hits[k] / masked[k]
            metrics[f"tokens_t_{t:g}"] = int(masked[k])
        return metrics

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
