"""Arguments of the Trainer that a run would be recorded with and not follow, or would fail by at its end: refused."""

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_optimizer import is_optimizer_factory

_EVALUATION = "evaluation has measures of its own and keeps no predictions"
# Field -> the values that it may have, and the reason, or what to set in its place.
UNUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": ((0,), "the objective smooths: set label_smoothing"),
    "neftune_noise_alpha": ((None,), "a corruption is the noise here: set corruption"),
    "auto_find_batch_size": (
        (False,),
        "noise and record go by the batch: lower per_device_train_batch_size, raise gradient_accumulation_steps",
    ),
    "average_tokens_across_devices": ((True,), "a loss is divided by the items of all processes"),
    "logging_nan_inf_filter": ((False,), "a loss that is not finite ends the training"),
    "remove_unused_columns": ((False,), "the collator draws its own columns"),
    "label_names": ((None, ["labels"]), "the collator names its labels"),
    "train_sampling_strategy": (("random", "sequential"), "an order by length could not be resumed"),
    "length_column_name": (("length",), "no order goes by length"),
    "dataloader_in_order": ((True,), "the order in which workers finish could not be resumed"),
    "use_cache": ((False,), "an encoder has no cache"),
    "liger_kernel_config": ((None,), "of Liger only the kernel of the loss is used: set use_liger_kernel"),
    "parallelism_config": ((None,), "launch with DDP or FSDP2, see scripts/accelerate"),
    "bf16_full_eval": ((False,), "evaluation computes as training does: set bf16"),
    "fp16_full_eval": ((False,), "evaluation computes as training does: set fp16"),
    "do_predict": ((False,), "there is nothing to predict"),
    "prediction_loss_only": ((False,), _EVALUATION),
    "include_for_metrics": (([],), _EVALUATION),
    "batch_eval_metrics": ((False,), _EVALUATION),
    "eval_do_concat_batches": ((True,), _EVALUATION),
    "eval_use_gather_object": ((False,), _EVALUATION),
    "eval_accumulation_steps": ((None,), _EVALUATION),
    "include_num_input_tokens_seen": (
        ("non_padding", "all", "no", True, False),
        "what is counted",
    ),
    "enable_jit_checkpoint": (
        (False,),
        "it may save between a gradient and its update, and does not resume exactly; SIGTERM ends a run after its "
        "step, with a checkpoint",
    ),
}
# Arguments of Trainer itself, which ConceptTrainer replaces.
REPLACED = {
    "compute_loss_func": "the objective is the loss: set objective_args",
    "compute_metrics": _EVALUATION,
    "preprocess_logits_for_metrics": _EVALUATION,
    "model_init": "give the model itself",
    "data_collator": "the objective brings its own",
}
NO_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
OF_SOME_OPTIMIZERS = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules")
EXTRAS = ("tensorboard", "trackio", "wandb")  # of this package


def refuse_unused(args: TrainingArguments) -> None:
    """ValueError for a field that nothing would follow; called before the Trainer's own checks change any."""
    for name, (legal, reason) in UNUSED.items():
        value = getattr(args, name)
        if value not in legal:
            raise ValueError(f"{name} must be {' or '.join(map(repr, legal))}, got {value!r}: {reason}")
    checkpointing = args.gradient_checkpointing or args.activation_checkpointing
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if getattr(args, name) is not None and not checkpointing:
            raise ValueError(f"{name}={getattr(args, name)!r} would be ignored: set gradient_checkpointing too")
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if args.warmup_steps and schedule in NO_WARM_UP:
        raise ValueError(
            f"warmup_steps={args.warmup_steps} would be ignored: lr_scheduler_type={schedule!r} has no warm-up; "
            "constant_with_warmup has"
        )


def refuse_replaced(options: dict[str, Any]) -> None:
    """ValueError for an argument of Trainer that ConceptTrainer would not follow."""
    for name, reason in REPLACED.items():
        if options.get(name) is not None:
            raise ValueError(f"ConceptTrainer does not take {name}: {reason}")


def check_best(args: TrainingArguments, measures: list[str], datasets: list[str]) -> None:
    """ValueError for a `metric_for_best_model` that evaluation will not give.

    Args:
        args: of the run.
        measures: that evaluation gives, without their prefix.
        datasets: names of the evaluation datasets where there are several.
    """
    given = args.metric_for_best_model
    legal = [f"{name}_{measure}" for name in datasets for measure in measures] or measures
    if given is not None and given.removeprefix("eval_") not in legal:
        raise ValueError(f"metric_for_best_model must be one of {', '.join(legal)}, got {given!r}")


def check_trackers(args: TrainingArguments) -> None:
    """ValueError for a tracker whose package is not installed, with what to install."""
    for name in args.report_to:
        for callback in get_reporting_integration_callbacks([name]):  # ValueError with those that there are
            try:
                callback()
            except (ImportError, RuntimeError) as error:
                package = f"'concept-encoder[{name}]'" if name in EXTRAS else name
                raise ValueError(
                    f"report_to={name!r} needs a package that is not installed: pip install {package}"
                ) from error


def check_schedule(args: TrainingArguments) -> None:
    """ValueError where the schedule cannot be made of its arguments, or gives no rate at some step."""
    steps = args.max_steps if args.max_steps > 0 else 1000  # else known when the corpus is
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    warm_up = args.get_warmup_steps(steps)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warm_up,
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        rates = [
            rate(step) for rate in getattr(schedule, "lr_lambdas", []) for step in {0, 1, warm_up, steps // 2, steps}
        ]
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise _bad_schedule(args, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    if not all(math.isfinite(rate) for rate in rates):
        raise _bad_schedule(args, "the rate of some step is not finite")


def _bad_schedule(args: TrainingArguments, said: str) -> ValueError:
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    return ValueError(
        f"lr_scheduler_type={schedule!r} cannot go by lr_scheduler_kwargs={args.lr_scheduler_kwargs}: {said}"
    )


def check_optimizer(args: TrainingArguments, model: nn.Module) -> None:
    """ValueError for an optimizer that is not installed or cannot be made, and for settings it has no use for."""
    name = getattr(args.optim, "value", args.optim)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not is_optimizer_factory(kind) and not {"params", "model", "optimizer_dict"} & options.keys():
            kind([nn.Parameter(torch.zeros(1, 1))], **options)
    except (ImportError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"optim={name!r} cannot be made: {' '.join(str(error).split())}") from error
    fields = {field.name: field.default for field in dataclasses.fields(args)}
    without = [({each: fields[each]}, each) for each in OF_SOME_OPTIMIZERS if getattr(args, each) != fields[each]]
    given = [each for each in (args.optim_args or "").replace(" ", "").split(",") if each]
    for each in given:
        rest = ",".join(other for other in given if other != each)
        without.append(({"optim_args": rest or None}, f"optim_args={each!r}"))
    for changes, what in without:
        other = copy.copy(args)
        for field, value in changes.items():
            setattr(other, field, value)
        if Trainer.get_optimizer_cls_and_kwargs(other, model) == (kind, options):
            raise ValueError(f"{what} would be ignored: optim={name!r} has no use for it; leave it out")
