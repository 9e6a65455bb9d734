"""Files from elsewhere, read so that nothing in them runs, nothing outside their folder is touched, and what is wrong
with them has a name.

Pickles are not among them: weights are safetensors, and `use_safetensors=True` keeps transformers from taking the
pickle next to them.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HTTPError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .files import no_key_twice

MOST_CHARACTERS, MOST_VALUES, LONGEST_NUMBER = 500_000, 30_000, 100  # of a YAML file


def read_object(path: Path) -> dict[str, Any]:
    """The strict JSON object in a file; ValueError for anything else, OSError where it cannot be opened."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON; an unknown number is null")

    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse, object_pairs_hook=no_key_twice)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain values; ValueError where it is not YAML, OSError where it cannot be opened."""
    with path.open(encoding="utf-8") as file:
        try:
            return parse_yaml(file.read(MOST_CHARACTERS + 1))
        except ValueError as error:  # UnicodeDecodeError is one
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """What a YAML text holds, as plain values.

    A few lines can expand to more values than memory holds, or to themselves: their number, aliases written out, is
    bounded before any of them is made.

    Raises:
        ValueError: no YAML; a key written twice in one mapping; a merge key (`<<`); more than `MOST_CHARACTERS`, or
            than `MOST_VALUES` values.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has more than {MOST_CHARACTERS:,} characters")
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """Refuses what is legal YAML and never meant: keys written twice, and values without end."""

    def __init__(self, text: str):
        super().__init__(text)
        self._values = 0
        self._sizes: dict[int, int] = {}  # id of a node -> values in it

    def compose_node(self, parent, index):
        is_alias, before = self.check_event(yaml.AliasEvent), self._values
        node = super().compose_node(parent, index)
        if is_alias:
            self._values += self._sizes.get(id(node), MOST_VALUES)  # what it stands in has no size yet
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        line = node.start_mark.line + 1
        if node.tag == "tag:yaml.org,2002:merge" and isinstance(parent, yaml.MappingNode) and index is None:
            raise ValueError(f"line {line} has a merge key (<<); write its fields out")
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:  # 1:1:1 takes time by the square of its length
            raise ValueError(f"line {line} has a number of {len(node.value)} characters")
        if self._values > MOST_VALUES:
            raise ValueError(f"with its aliases written out it has more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node, deep=False):
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in lines:
                raise ValueError(f"line {line} has the key {key!r} again, which line {lines[key]} has; keep one")
            lines[key] = line
        return super().construct_mapping(node, deep)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`; ValueError for a name, or a link, that leads out of it.

    The Hub's cache is no way out: a snapshot's files are links to the `blobs` of their own repository.
    """
    path, home = folder / name, folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(path.resolve().is_relative_to(each) for each in homes):
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
