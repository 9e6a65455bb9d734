"""Files from elsewhere, read so that nothing in them runs, nothing outside their folder is touched, and what is wrong
with them has a name.

Pickles are not among them: weights are safetensors, and `use_safetensors=True` keeps transformers from taking the
pickle beside them.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HTTPError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

MOST_VALUES = 100_000  # of a YAML file


def read_object(path: Path) -> dict[str, Any]:
    """The strict JSON object in a file; ValueError for anything else, OSError where it cannot be opened."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; an unknown number is null")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain values; ValueError where it is no YAML, OSError where it cannot be opened.

    A few lines of aliases can stand for more values than memory holds, or for themselves: `MOST_VALUES` are read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        waiting, seen = [content], 0
        while waiting:
            value, seen = waiting.pop(), seen + 1
            if seen > MOST_VALUES:
                raise ValueError(f"with its aliases written out it has more than {MOST_VALUES:,} values")
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list | tuple | set):
                waiting += value
        return content
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`; ValueError for a name, or a link, that leads out of it.

    In the cache of the Hub, files are links to the blobs of the same repository, next to the folders of its commits.
    """
    path, homes = folder / name, [folder.resolve()]
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parents[1] / "blobs")
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{name!r} leads out of {folder}; put the file itself into the folder")
    return path


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name, and is no path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def read_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder or Hub id, by the classes of transformers alone.

    Raises:
        ValueError: it needs code of its own, or its files are broken.
        OSError, HTTPError: it cannot be had, as transformers and the Hub say it.
    """
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, HTTPError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what tokenizers raises has no class of its own, and its panics are no Exception
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"the tokenizer of {source} needs code of its own, which is never run; save one of a class of "
                "transformers there, with a tokenizer.json"
            ) from error
        said = " ".join(str(error).split())
        raise ValueError(f"the tokenizer of {source} cannot be read ({type(error).__name__}): {said}") from error
