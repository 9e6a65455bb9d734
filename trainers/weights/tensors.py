"""The weights of a checkpoint, judged before they are used: there, whole, of the right shape, real numbers, finite."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ...utils.untrusted import inside, read_object


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights: one, or its index and the shards that this names.

    Raises:
        ValueError: there are none; the index is broken, or names something that is no safetensors file of this folder.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not index.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no model.safetensors")
    content = read_object(index)
    shards = content.get("weight_map")
    if not isinstance(content.get("metadata"), dict):
        raise ValueError(f"{index} has no metadata; save the model again")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} has no weight_map from weights to files; save the model again")
    names = sorted(set(shards.values()))
    for name in names:
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is not a .safetensors file")
        inside(folder, name)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{index} names {', '.join(absent)}, which {folder} does not hold")
    return [index.name, *names]


def check_weights(folder: Path, config: PreTrainedConfig, saved_by: type[PreTrainedModel]) -> dict[str, list[int]]:
    """Shapes by name of the weights in `folder`, which are those of `saved_by`, finite numbers, and of no other kind.

    Raises:
        ValueError: weights that are missing, broken, of other shapes than the configuration's, integer or complex,
            not finite, or of no part of the model; all of a kind are named.
    """
    held, wrong = read_headers(folder)
    layers = max(config.num_hidden_layers, getattr(config, "decoder_num_hidden_layers", 0))
    if layers > len(held):  # a model of so many would take long to make, only to lack them
        raise ValueError(f"{folder} lacks weights: its config.json says {layers} layers, it holds {len(held)} tensors")
    with torch.device("meta"), no_init_weights():
        model = saved_by(config)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    missing = [name for name in wanted if name not in held and not (name in tied and tied & held.keys())]
    extra = held.keys() - wanted.keys()
    if missing:
        raise ValueError(f"{folder} lacks weights of its {saved_by.__name__}: {listed(missing)}; they would be random")
    if extra:
        raise ValueError(f"{folder} holds weights of no part of its {saved_by.__name__}: {listed(extra)}")
    for name in sorted(held):
        if held[name] != wanted[name]:
            raise ValueError(
                f"{folder} has other shapes than its config.json says: {name} is {held[name]}, not {wanted[name]}"
            )
    if wrong:
        raise ValueError(f"{folder} holds weights that are not real numbers: {listed(wrong)}")
    check_finite(folder, held)
    return held


def read_headers(folder: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Shapes by name, and the tensors that are not of floating point, in words; ValueError for a broken file."""
    held: dict[str, list[int]] = {}
    wrong = []
    for path in _paths(folder):
        with _named_if_broken(path), safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no dict
                part = weights.get_slice(name)
                held[name] = list(part.get_shape())
                if not part.get_dtype().startswith(("F", "BF")):
                    wrong.append(f"{name} is {part.get_dtype()}")
    return held, wrong


def check_finite(folder: Path, names: Iterable[str]) -> None:
    """ValueError that names those of the weights in `folder` that are not finite."""
    broken, names = [], set(names)
    for path in _paths(folder):
        with _named_if_broken(path), safe_open(path, framework="pt") as weights:
            own = [name for name in weights.keys() if name in names]  # noqa: SIM118
            broken += [name for name in own if not weights.get_tensor(name).isfinite().all()]
    if broken:
        raise ValueError(f"{folder} holds weights that are not finite: {listed(broken)}; take another checkpoint")


def listed(names: Iterable[str]) -> str:
    """At most ten of the names, in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in weight_files(folder) if name.endswith(".safetensors")]


@contextmanager
def _named_if_broken(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is broken: {error}; fetch or save it again") from error
