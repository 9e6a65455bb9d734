"""The objective on the transformers Trainer: noise drawn by step, the loss and its parts, what evaluation measures."""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from ...utils.progress import progress
from ...utils.tokenizer import limit_length
from ..data.roles import VECTOR, roles_of_example
from ..objectives.codes import attach, encoder_inputs, training_head
from ..objectives.collators import DataCollatorForReconstruction, check_rebuilds, visible_concept_counts
from ..objectives.objective import ObjectiveArguments, with_partner
from .arguments import ConceptTrainingArguments
from .averaging import WeightAverage
from .checks import check_best, check_optimizer, check_schedule, check_trackers, refuse_replaced
from .data_wait import DataWait
from .evaluation import CodeEvaluator, ReconstructionEvaluator
from .kernels import liger_linear_cross_entropy
from .sharding import OwnClassName, share_tied_embeddings
from .stability import DivergenceError, DivergenceGuard, gradient_norms
from .stopping import StopOnSignal

logger = logging.getLogger(__name__)
WATCHED_TEXTS = 8  # per process, of the batch at a logged step
FULL_STATE = "FULL_STATE_DICT"
# (B, C, D) concepts of a training batch -> figures to log, and a warning in words or None.
ConceptMonitor = Callable[[Tensor], tuple[dict[str, float], str | None]]


class ObjectiveTrainer(Trainer):
    """Trains the head that an objective's corruption names, with that objective; see `ConceptTrainer`."""

    args: ConceptTrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: ConceptTrainingArguments,
        *,
        objective_args: ObjectiveArguments,
        processing_class: PreTrainedTokenizerBase | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        monitor: ConceptMonitor | None = None,
        **kwargs,
    ):
        if not isinstance(args, ConceptTrainingArguments):
            raise ValueError(f"ConceptTrainer needs args of ConceptTrainingArguments, got {type(args).__name__}")
        if processing_class is None:
            raise ValueError("ConceptTrainer needs processing_class: the tokenizer knows [MASK] and [PAD]")
        refuse_replaced(kwargs)
        teacher_size = _check_task(model, args, objective_args, train_dataset)
        processing_class = limit_length(processing_class, model.config)
        check_trackers(args)
        check_schedule(args)
        check_optimizer(args, model)
        self.settings = objective_args
        self.collator = DataCollatorForReconstruction(
            processing_class,
            objective_args.built_corruption,
            seed=args.seed,
        )
        if train_dataset is not None and objective_args.reconstruction:
            check_rebuilds(train_dataset, self.collator, "training")
        self.objective = objective_args.build_objective()
        self.evaluator: CodeEvaluator | ReconstructionEvaluator = CodeEvaluator(self.objective)
        if objective_args.reconstruction:
            self.evaluator = ReconstructionEvaluator(processing_class, objective_args)
        evaluated = kwargs.get("eval_dataset")
        each = evaluated if isinstance(evaluated, dict) else {} if evaluated is None else {"": evaluated}
        for texts in each.values():
            self.evaluator.check(texts)
        check_best(args, self.evaluator.measures(), [name for name in each if name])
        attach(model, objective_args.build_head(model.config, teacher_size))
        self.monitor = monitor
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
        if self.args.use_liger_kernel:
            self.objective.kernel = liger_linear_cross_entropy
        for callback in (self.data_wait, self.average, self.stop):
            if callback is not None:
                self.add_callback(callback)
        if self.is_fsdp_enabled:
            self._shared_embeddings = share_tied_embeddings(self.model)
            self.add_callback(OwnClassName(type(self.model)))

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """As the Trainer's; but DDP does not look for weights that the model's outputs are not made of, since those of
        a training head, and of texts that are read in other passes, get their gradients all the same."""
        outside = not self.settings.reconstruction or training_head(self.model) is not None
        with self._with_args(**{"ddp_find_unused_parameters": False} if outside else {}):
            return super()._build_accelerator_args(**kwargs)

    def _check_devices(self) -> None:
        """ValueError for settings that do not go with the devices that accelerate has found."""
        if self.args.use_liger_kernel and self.args.device.type != "cuda":
            raise ValueError(
                f"use_liger_kernel=True needs a CUDA device, and training runs on {self.args.device.type}; leave it "
                "out"
            )
        if self.is_fsdp_enabled and training_head(self.model) is not None:
            raise ValueError(
                "learn_temperature and distillation_map learn weights outside the model, which FSDP would shard with "
                "it; train with DDP, or leave them out"
            )
        if self.average is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("ema_decay needs whole weights on each device; FSDP and DeepSpeed shard them")
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            kind = plugin.state_dict_type.name
            if kind != FULL_STATE:
                raise ValueError(
                    f"fsdp_state_dict_type must be {FULL_STATE}, got {kind}: torch reads sharded checkpoints through "
                    "a pickle, which can run code; see scripts/accelerate/fsdp2.yaml"
                )
            if plugin.fsdp_version != 2:
                raise ValueError(
                    f"fsdp_version must be 2, got {plugin.fsdp_version}; see scripts/accelerate/fsdp2.yaml"
                )

    @contextmanager
    def _with_args(self, **fields: Any) -> Iterator[None]:
        """Within, the Trainer goes by other arguments; the user's own are never changed."""
        own = self.args
        self.args = copy.copy(own)
        for name, value in fields.items():
            setattr(self.args, name, value)
        try:
            yield
        finally:
            self.args = own

    # ------------------------------------------------------------------------------------------------------ training

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if self.average is not None:
            self.average.start(self.model)
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Corrupt the micro-batches of one optimizer step and count what their losses are divided by."""
        if self.state.global_step >= self.state.max_steps:  # killed after its last checkpoint: no step is left
            self.control.should_training_stop = True
            return [], None
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
        masks = encoder_inputs(batch, "attention_mask")
        every = self.args.include_num_input_tokens_seen == "all"
        return torch.stack([mask.new_tensor(mask.numel()) if every else mask.sum() for mask in masks]).sum()

    def _track_num_input_tokens(self, inputs: dict[str, Tensor]) -> None:
        # Once per step, where `_judge_step` has just waited for the device; the Trainer waits at each micro-step.
        if self.args.include_num_input_tokens_seen != "no" and self.accelerator.sync_gradients:
            self.state.num_input_tokens_seen += int(self._tokens_of_step)

    def _corrupted(self, batches: Iterator) -> Iterator[dict[str, Any]]:
        rank, world_size = self.args.process_index, self.args.world_size
        settings, step = self.settings, self.state.global_step
        for micro_step, batch in enumerate(batches):
            place, device = (step, micro_step, rank), batch["input_ids"].device
            if settings.reconstruction:
                noise = self.collator.draw(batch, *place, world_size)
                batch = batch | self.collator.corrupt(batch, noise.to(device))
            else:
                batch = batch | {"num_items": torch.ones(len(batch["input_ids"]), dtype=torch.long, device=device)}
            if settings.nested_concepts:
                uniform = self.collator.draw_rows(batch, *place)
                counts = visible_concept_counts(uniform, self.model.config.num_concepts)
                batch["num_visible_concepts"] = counts.to(device)
            if settings.token_dropout:
                batch = with_partner(batch) if settings.contrastive else batch
                batch = self.collator.without_tokens(batch, settings.token_dropout, *place)
            sizes = settings.matryoshka_concepts, settings.matryoshka_dims, settings.n_dims_per_step
            yield batch | self.collator.draw_size(*sizes, step, micro_step)

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
            self._judge_step()
        return loss

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
            if self.monitor is not None:
                self._watch_concepts(logs, self.monitor)
        if "train_loss" in logs:  # the Trainer divides by the steps of this call, though the sum is of all steps
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _watch_concepts(self, logs: dict[str, float], monitor: ConceptMonitor) -> None:
        concepts = self._watched_concepts()
        broken = self.accelerator.reduce((~concepts.isfinite().all()).float(), "sum")  # one verdict for all processes
        if broken:  # nothing can be measured; the guard speaks at the next step, evaluation after the last
            logger.warning(f"step {self.state.global_step}: the concepts are not finite, and were not measured")
        else:
            self._log_geometry(logs, *monitor(concepts))

    @torch.no_grad()
    def _watched_concepts(self) -> Tensor:
        """(B, C, D) concepts of a few texts of the latest batch, as evaluation would see them."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        # Through the whole model, around whose forward FSDP gathers the weights; cheap, as nothing has a label.
        no_labels = torch.full_like(self._watched["input_ids"], -100)
        with self.accelerator.autocast():
            if self.settings.reconstruction:
                concepts = model(**self._watched, labels=no_labels).concepts
            else:
                concepts = model(**self._watched).last_hidden_state
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

    # ---------------------------------------------------------------------------------------------------- evaluation

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied(self.model)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """As the Trainer's, except for `dataloader_drop_last`, which is about training: every text is evaluated."""
        with self._with_args(dataloader_drop_last=False):
            return super().get_eval_dataloader(eval_dataset)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As the Trainer's, of the average where there is one; random numbers of training are left as they were."""
        devices = [torch.cuda.current_device()] if self.args.device.type == "cuda" else []
        with self._averaged(), torch.random.fork_rng(devices):
            return super().evaluate(*args, **kwargs)

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """The metrics of the evaluator, over the texts of all processes."""
        # Not prepared by accelerate: a model once prepared for evaluation would later train without synchronisation.
        model = self.model.eval()

        totals: Tensor | float = 0.0
        num_texts = 0
        hide = self.args.disable_tqdm or not self.is_world_process_zero()
        for batch in progress(dataloader, desc=description, disable=hide, leave=False):
            with self.accelerator.autocast():
                scores = self.evaluator.score(model, batch)  # (B, ...)
            scores = self.accelerator.gather_for_metrics(scores)
            totals = totals + scores.double().sum(0).cpu()
            num_texts += len(scores)
        if not isinstance(totals, Tensor):
            raise ValueError("the evaluation dataset is empty")
        metrics = self.evaluator.metrics(totals)
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise DivergenceError(
                f"the evaluation loss is {metrics['loss']} after step {self.state.global_step}: training has "
                "diverged. Lower learning_rate or max_grad_norm, or warm up longer"
            )
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=num_texts,
        )


def _check_task(
    model: nn.Module,
    args: ConceptTrainingArguments,
    settings: ObjectiveArguments,
    train_dataset: Dataset | IterableDataset | None,
) -> int | None:
    """ValueError if the model, or the batches, are not what the objective needs.

    Returns:
        How many numbers a teacher's vector has; None where there is none.
    """
    # By name: a class loaded with a checkpoint's own code is another object. A model that is none of the heads says
    # which one it can be trained as.
    own, head = getattr(model, "trained_as", type(model).__name__), settings.head.__name__
    if own != head:
        task = f"corruption {settings.built_corruption.name!r}" if settings.reconstruction else "reconstruction 0"
        raise ValueError(f"{task} trains a {head}, got a {own}")
    columns = getattr(train_dataset, "column_names", None) or ()  # a stream may not know its own
    vectors = [column for column in columns if column.endswith(VECTOR)]
    settings.check(model.config, roles_of_example(columns), bool(vectors))
    if any((settings.contrastive, settings.similarity_distillation)) and (
        args.per_device_train_batch_size * args.world_size < 2
    ):
        raise ValueError("contrastive needs other texts as negatives: raise per_device_train_batch_size to 2 or more")
    if not vectors:
        return None
    assert train_dataset is not None
    teacher_size = len(next(iter(train_dataset))[vectors[0]])
    settings.check_teacher(model.config, teacher_size)
    return teacher_size
