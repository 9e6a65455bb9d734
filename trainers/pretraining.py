"""One pretraining run from a recipe: checks, data, model, training, evaluation, and the files a run leaves."""

import dataclasses
import logging
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from huggingface_hub.errors import HTTPError
from transformers import PreTrainedTokenizerBase, TrainerState, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..configuration_concept import ConceptEncoderConfig
from ..modeling_concept import ConceptEncoderPreTrainedModel
from ..utils.files import alone_in, check_writable, recorded_source
from ..utils.results import (
    DataFacts,
    Environment,
    Evaluation,
    ModelFacts,
    Parameters,
    PretrainResult,
    Rebuilding,
    TimestepLoss,
    TrainingFacts,
    facts,
)
from .data.corpora import Data, load_pretraining_data, load_tokenizer, rows_in_memory, source_fields
from .objectives.codes import detach
from .recipes import RECIPE_FILE, Recipe
from .training.arguments import ConceptTrainingArguments
from .training.objective_trainer import ConceptMonitor
from .training.saving import damage, find_checkpoints, last_complete
from .training.stopping import TrainingStopped
from .training.trainer import ConceptTrainer
from .training.uploads import UploadAssembler
from .weights.warm_start import architecture, start_from_checkpoint, warm_start_embeddings

logger = logging.getLogger(__name__)

RESULT_FILE = "pretrain.json"


def checkpoint_to_resume(output_dir: str, named: str | None) -> str | None:
    """The checkpoint that training in `output_dir` continues from: the one that is named, else the last that is whole.

    Returns:
        Its folder; None in a folder without checkpoints, where training begins.

    Raises:
        ValueError: the folder holds a finished run, or torn checkpoints only; the checkpoint that is named is torn.
    """
    if (Path(output_dir) / RESULT_FILE).exists():
        raise ValueError(
            f"{output_dir} already holds a finished run; choose another --output_dir or remove the folder"
        )
    if named is not None:
        trouble = damage(Path(named)) if Path(named).is_dir() else "there is no such folder"
        if trouble is not None:
            raise ValueError(
                f"resume_from_checkpoint={named} is not a whole checkpoint: {trouble}; leave it out to continue from "
                f"the last one of {output_dir} that is whole"
            )
        return named
    names = [folder.name for _, folder in find_checkpoints(output_dir)]
    last = last_complete(output_dir)
    if names and last is None:
        raise ValueError(
            f"every checkpoint in {output_dir} is torn ({', '.join(names)}); remove the folder and begin again"
        )
    return last


def _claim(training: ConceptTrainingArguments, held: ExitStack) -> str | None:
    """The checkpoint to continue from, in a folder that is locked now; the main process looks, the others follow."""
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            held.enter_context(alone_in(Path(training.output_dir)))
            found[0] = checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint)
        except (ValueError, OSError) as error:
            found[1] = error
        if found[0] is not None and training.resume_from_checkpoint is None:
            logger.warning(f"{training.output_dir} holds an unfinished run; continuing from {Path(found[0]).name}")
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def pretrain(
    recipe: Recipe | str | os.PathLike,
    monitor: ConceptMonitor | None = None,
    assemble: UploadAssembler | None = None,
    head: type[ConceptEncoderPreTrainedModel] | None = None,
    data: Data | None = None,
    **fields: Any,
) -> PretrainResult:
    """Train `recipe` and leave model, tokenizer, `recipe.yaml` and `pretrain.json` in its output folder.

    Called again with the same recipe after it was stopped, it continues from the last checkpoint, bit for bit.

    Args:
        recipe: from `Recipe.load`; or, with `fields`, what that takes.
        monitor: watches the geometry of the concepts while training; passed in, since it belongs to evaluation.
        assemble: chooses what is pushed to the Hub; passed in, since the card is made of what was measured.
        head: class to train in place of the corruption's own, which its `trained_as` names; with a configuration
            class of its own, which takes the fields of the recipe's.
        data: texts to train on in place of the recipe's: a Hub id, a path, or rows in memory. A `DatasetDict` has a
            validation split; a `Dataset` needs `validation_size`. What is in memory has to be given again to resume.
        fields: of the recipe, such as `max_steps=100`.

    Returns:
        What `pretrain.json` holds.

    Raises:
        ValueError: bad input, raised before anything is written; the folder holds a finished run, one of another
            recipe, or one that another process is at work on.
        OSError: the folder cannot be written to, before anything is done; a checkpoint could not be written; a data
            worker was killed; the host of a stream was lost.
        MemoryError: it does not fit, in this process or in a data worker.
        TrainingStopped: a SIGTERM came while training; the last checkpoint is of the step in which it came.
        KeyboardInterrupt: at once, with the last checkpoint in its words.
    """
    recipe = _resolved(recipe, data, fields)
    check_writable(Path(recipe.training.output_dir))
    with ExitStack() as held:
        checkpoint = _claim(recipe.training, held)
        return _pretrain(recipe, rows_in_memory(data), checkpoint, monitor, assemble, head)


def _resolved(recipe: Recipe | str | os.PathLike, data: Data | None, fields: dict[str, Any]) -> Recipe:
    """The recipe with its fields, and its data named."""
    source = source_fields(data)
    if not isinstance(recipe, Recipe):
        return Recipe.load(recipe, **{**source, **fields})
    if fields:
        raise ValueError(f"{', '.join(fields)}: give fields to Recipe.load, or the recipe by its name")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **source))


def _pretrain(
    recipe: Recipe,
    rows: Dataset | DatasetDict | None,
    checkpoint: str | None,
    monitor: ConceptMonitor | None,
    assemble: UploadAssembler | None,
    head: type[ConceptEncoderPreTrainedModel] | None,
) -> PretrainResult:
    training = recipe.training
    tokenizer = load_tokenizer(recipe.data)
    config = recipe.model_config(tokenizer)
    train, validation = load_pretraining_data(recipe.data, tokenizer, rows)
    trainer = ConceptTrainer(
        model=_initial_model(recipe, config, tokenizer, head, fresh=checkpoint is None),
        args=training,
        objective_args=recipe.objective,
        monitor=monitor,
        assemble=assemble,
        data_args=recipe.data,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
    )
    resumed_at = 0
    if checkpoint is not None:  # now, since save_total_limit may remove it
        resumed_at = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step
    start = time.perf_counter()
    with trainer.stop.listening(), _way_on_named(recipe):
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    if trainer.stop.agreed:
        step = trainer.state.global_step
        raise TrainingStopped(step, Path(training.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}")
    trainer.evaluate()
    trainer.save_model(_internal_call=True)  # without the push, which waits for the files below
    detach(trainer.model)
    result = _result(recipe, trainer, seconds, outcome.global_step - resumed_at)
    result.folder = Path(training.output_dir)
    if trainer.is_world_process_zero():
        folder = Path(training.output_dir)
        best = recorded_source(trainer.state.best_model_checkpoint)
        state = dataclasses.replace(trainer.state, best_model_checkpoint=best)
        state.save_to_json(str(folder / "trainer_state.json"))
        recipe.save(folder / RECIPE_FILE)
        result.save(folder / RESULT_FILE)
    if training.push_to_hub:
        trainer.push_to_hub()
    PartialState().wait_for_everyone()
    return result


def _initial_model(
    recipe: Recipe,
    config: ConceptEncoderConfig,
    tokenizer: PreTrainedTokenizerBase,
    head: type[ConceptEncoderPreTrainedModel] | None,
    fresh: bool,
) -> ConceptEncoderPreTrainedModel:
    """What training starts from; when it is not `fresh`, a checkpoint will overwrite every weight."""
    training = recipe.training
    set_seed(training.seed)
    if head is None:
        head = recipe.objective.head
    else:
        config = head.config_class(**architecture(config))
    if training.start_from is not None and fresh:
        return start_from_checkpoint(head, config, tokenizer, training.start_from)
    model = head(config)
    if training.warm_start_embeddings is not None and fresh:
        warm_start_embeddings(model, tokenizer, training.warm_start_embeddings)
    return model


@contextmanager
def _way_on_named(recipe: Recipe) -> Iterator[None]:
    """What the machine or the network ends training by, as errors that say what is kept and the way out."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted{_kept(recipe)}") from error
    except Exception as error:
        if recipe.training.dataloader_num_workers:
            _hear_no_more_of_workers()
        said, go_on = _in_one_line(error), _kept(recipe)
        lost = _lost_worker(error)
        if lost is not None:
            raise ChildProcessError(
                f"a data worker was lost, perhaps killed for lack of memory: {lost}. "
                f"Lower dataloader_num_workers{go_on}"
            ) from error
        if isinstance(error, ConnectionError | HTTPError) and recipe.data.streaming:
            raise ConnectionError(f"the corpus cannot be read any further: {said}{go_on}") from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search("can't allocate|MemoryError", said):
            raise MemoryError(
                f"out of memory: {said}. Lower per_device_train_batch_size and raise "
                f"gradient_accumulation_steps by the same factor{go_on}"
            ) from error
        raise


def _kept(recipe: Recipe) -> str:
    """What to say of the last checkpoint, and nothing where there is none."""
    last = next((folder.name for _, folder in reversed(find_checkpoints(recipe.training.output_dir))), None)
    return "" if last is None else f"; {last} is kept, the same command continues from it"


def _hear_no_more_of_workers() -> None:
    """torch raises for a lost data worker at every SIGCHLD, and that may come while this is being reported."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, lambda *_: None)


def _in_one_line(error: BaseException) -> str:
    """What an error says, without a worker's traceback."""
    lines = str(error).strip().splitlines() or ["no more is said"]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def _lost_worker(error: BaseException | None) -> str | None:
    """What is said of a data worker that is gone, None where that is not what an error comes from.

    torch raises that from a signal handler, wherever the process happens to be: what is interrupted may make an error
    of its own of it. And before the signal comes, what the worker was handing over may break off.
    """
    while error is not None:
        said = re.search(r"DataLoader worker .* (killed|exited)[^.]*", _in_one_line(error))
        if said is not None:
            return said[0]
        if isinstance(error, ConnectionError | EOFError) and any(
            frame.f_globals.get("__name__", "").startswith("multiprocessing.")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        ):
            return f"{type(error).__name__} while it was handing over a batch"
        error = error.__cause__ or error.__context__
    return None


def _result(recipe: Recipe, trainer: ConceptTrainer, seconds: float, steps: int) -> PretrainResult:
    """Content of `pretrain.json`; `seconds` and `steps` are of this process's part of a resumed run.

    `train_seconds` of such a run is what all its steps would have taken at that part's rate, None if it had no step.
    """
    state, model = trainer.state, trainer.accelerator.unwrap_model(trainer.model)
    history = [row for row in state.log_history if "loss" in row or "eval_loss" in row]
    train = [row["loss"] for row in history if "loss" in row]
    evaluations = [row for row in history if "eval_loss" in row]
    norms = [row["grad_norm"] for row in history if row.get("grad_norm") is not None]
    args = trainer.args
    names = "learning_rate lr_scheduler_type warmup_steps per_device_train_batch_size gradient_accumulation_steps "
    names += "world_size num_train_epochs max_steps weight_decay max_grad_norm seed bf16 "
    names += "gradient_checkpointing torch_compile optim"
    training = {name: getattr(args, name) for name in names.split()}
    training = {name: getattr(value, "value", value) for name, value in training.items()}
    texts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    recorded = recipe.as_dict()
    return PretrainResult(
        recipe=recipe.name,
        model=facts(ModelFacts, architecture(model.config)),
        data=facts(DataFacts, recorded["data"]),
        objective=recorded["objective"],
        training=TrainingFacts(**training, texts_per_step=texts),
        parameters=Parameters(
            total=model.num_parameters(),
            encoder=model.base_model.num_parameters(),
            trainable=model.num_parameters(only_trainable=True),
        ),
        steps=state.global_step,
        epochs=state.epoch,
        train_seconds=seconds * state.global_step / steps if steps else None,
        steps_per_second=steps / seconds,
        tokens_seen=int(state.num_input_tokens_seen),
        data_wait_share=trainer.largest_data_wait_share(),
        train_loss=(train[0], train[-1]),
        eval_loss=(evaluations[0]["eval_loss"], evaluations[-1]["eval_loss"]),
        grad_norm_peak=max(norms),
        grad_norm_final=norms[-1],
        log_history=history,
        evaluation=_evaluation(evaluations[-1]),
        environment=Environment.of(args.device, args.world_size),
    )


def _evaluation(row: dict[str, float]) -> Evaluation:
    grid = [name.removeprefix("eval_tokens_t_") for name in row if name.startswith("eval_tokens_t_")]
    tokens = row.get("eval_rebuilt_tokens")
    rebuilding = None
    if tokens is not None:
        bits, accuracy = row["eval_rebuilt_bits_per_token"], row["eval_rebuilt_accuracy"]
        rebuilding = Rebuilding(bits_per_token=bits, accuracy=accuracy, tokens=int(tokens))
    return Evaluation(
        nelbo_bits_per_token=row.get("eval_nelbo_bits_per_token"),
        rebuilding=rebuilding,
        by_timestep=[
            TimestepLoss(
                timestep=float(t),
                nll_bits=row.get(f"eval_nll_bits_t_{t}"),
                accuracy=row.get(f"eval_accuracy_t_{t}"),
                tokens=int(row[f"eval_tokens_t_{t}"]),
            )
            for t in grid
        ],
    )
