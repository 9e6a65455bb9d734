"""What a resumed run must share with the one that wrote its checkpoint: every field, except those in one table."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ...configuration_concept import ConceptEncoderConfig
from ...utils.files import write_json
from ...utils.untrusted import read_object
from ..data.corpora import DataArguments
from ..objectives.objective import ObjectiveArguments
from ..weights.warm_start import architecture
from .arguments import ConceptTrainingArguments

RECORD_FILE = "made_with.json"  # in a checkpoint

# Fields that may have another value when a run is resumed, since none of them changes what is learned.
FREE = {
    "where it runs": (
        "output_dir use_cpu local_rank ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_find_unused_parameters ddp_static_graph dataloader_num_workers dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
        "preprocessing_num_workers per_device_eval_batch_size torch_empty_cache_steps skip_memory_metrics debug"
    ),
    "memory for time, with the same numbers": (
        "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs"
    ),
    "what is logged, and where": (
        "logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node log_level "
        "log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id "
        "trackio_static_space_id"
    ),
    "when it is evaluated": "eval_strategy eval_steps eval_delay eval_on_start do_eval",
    "what is saved, and when": "save_strategy save_steps save_total_limit save_only_model save_on_each_node",
    "pushes": ("push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision hub_token"),
    "when it stops": "stop_on_collapse on_divergence divergence_ratio",
    "how it is resumed": "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint",
}
_FREE = frozenset(" ".join(FREE.values()).split())
# Fields of a length that may be made longer, where the rate of a step does not depend on how many there will be.
LENGTH = ("max_steps", "num_train_epochs")
RATE_WITHOUT_AN_END = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
RATE_BY_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
SHOWN = 3  # differences in a message
ROWS_OF_DIGEST = 64


def made_with(
    config: ConceptEncoderConfig,
    objective: ObjectiveArguments,
    args: ConceptTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset | IterableDataset | None,
    data: DataArguments | None,
) -> dict[str, Any]:
    """Section -> field -> value of all that a resumed run has to share, and of its length; no absolute path."""
    training = {name: value for name, value in args.to_dict().items() if name not in _FREE}
    if args.lr_scheduler_type in RATE_BY_EVALUATIONS or args.load_best_model_at_end:
        training |= {name: getattr(args, name) for name in ("eval_strategy", "eval_steps", "eval_delay")}
    if args.load_best_model_at_end:
        training |= {name: getattr(args, name) for name in ("save_strategy", "save_steps")}
    training |= {"number of processes": args.world_size, "devices of a process": max(1, args.n_gpu)}
    sources = {} if data is None else dataclasses.asdict(data)
    content = {
        "schema": 1,
        "model": architecture(config),
        "tokenizer": {"tokenizer": tokenizer_digest(tokenizer)},
        "objective": dataclasses.asdict(objective),
        "training": training,
        "data": {name: value for name, value in sources.items() if name not in _FREE}
        | {"training texts": _texts_digest(train_dataset)},
    }
    return json.loads(json.dumps(_without_folders(content), default=str))


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Into a checkpoint, what `made_with` gives."""
    write_json(folder / RECORD_FILE, dict(content))


def recorded(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint was made with; ValueError where it does not say."""
    path = checkpoint / RECORD_FILE
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no {RECORD_FILE}, which says what it was made with: another program wrote it; begin a "
            f"new run from its weights with start_from={checkpoint}"
        )
    return read_object(path)


def check_resumable(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """ValueError that names each field with another value than when the checkpoint was written."""
    then = recorded(checkpoint)
    step = int(read_object(checkpoint / "trainer_state.json")["global_step"])
    differing = [
        f"{name} was {_short(before)} when {checkpoint.name} was written, got {_short(after)}"
        for name, before, after in _differences(then, now)
        if name not in LENGTH or not _may_be(name, after, now["training"], step)
    ]
    if differing:
        more = f" (and {len(differing) - SHOWN} fields more)" if len(differing) > SHOWN else ""
        raise ValueError(
            f"{'; '.join(differing[:SHOWN])}{more}: continue with what it was made with, or begin a new run in "
            f"another folder from its weights with start_from={checkpoint}"
        )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for section, fields in now.items():
        before = then.get(section)
        if not isinstance(fields, Mapping) or not isinstance(before, Mapping):
            continue
        for name, value in fields.items():  # a field that another version added has no value to compare
            if name in before and before[name] != value:
                yield name, before[name], value


def _may_be(name: str, value: Any, training: Mapping[str, Any], step: int) -> bool:
    """Whether a length may be this one now."""
    if name == "num_train_epochs" and training["max_steps"] > 0:
        return True  # it plays no part
    in_share = 0 < training["warmup_steps"] < 1
    if in_share or training["lr_scheduler_type"] not in RATE_WITHOUT_AN_END:
        return False
    return name != "max_steps" or value < 0 or value >= step


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short SHA-256 of what a tokenizer makes of a text; its limit on length, and padding, are settings of a call."""
    content: dict[str, Any] = {"tokens": sorted(tokenizer.get_vocab().items())}
    content["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        content["rules"] = {
            name: rules.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "model")
        }
    return _digest(content)


def _texts_digest(dataset: Dataset | IterableDataset | None) -> str | None:
    """How many examples, and a digest of some of them; None for a stream, which would have to be read for it."""
    if not isinstance(dataset, Dataset):
        return None
    rows = np.linspace(0, len(dataset) - 1, min(ROWS_OF_DIGEST, len(dataset))).astype(int).tolist()
    some = [{name: np.asarray(value).tolist() for name, value in dataset[row].items()} for row in rows]
    return f"{len(dataset)} examples {_digest(some)}"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _without_folders(value: Any) -> Any:
    """Names in place of absolute paths: a checkpoint may be published."""
    if isinstance(value, Mapping):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
