"""Fields of dataclasses: values from YAML, keywords or command-line words, checked against the annotations."""

import dataclasses
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.dataclasses import type_validator

from .command_line import did_you_mean

_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def annotations(cls: type) -> dict[str, Any]:
    """Name -> annotation of the fields that the dataclass is constructed with."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def typed(name: str, value: Any, annotation: Any) -> Any:
    """`value` as the annotation has it: 1e-4, which YAML reads as a text, is a number, and 3 may be given for 3.0.

    Raises:
        ValueError: a value of another type, inf or nan; it names the field, the value and what is legal.
    """
    value = _converted(value, annotation)
    choices = _choices(annotation)
    legal = _in_words(annotation)
    try:
        type_validator(name, value, annotation)
    except TypeError:
        quoted = str in _alternatives(annotation) and isinstance(value, bool | int | float)
        hint = "; put it in quotes" if quoted else ""
        raise ValueError(f"{name} must be {legal}, got {value!r}{hint}") from None
    if choices and value not in choices:
        raise ValueError(f"{name} must be {legal}, got {value!r}{did_you_mean(value, choices)}")
    if not _is_finite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return value


def check_fields(instance: Any) -> None:
    """Of a dataclass, in its `__post_init__`: every field made `typed`."""
    for name, annotation in annotations(type(instance)).items():
        setattr(instance, name, typed(name, getattr(instance, name), annotation))


def words_to_fields(
    words: Sequence[str], known: Mapping[str, Any], hint: Callable[[str, Iterable[str]], str] = did_you_mean
) -> dict[str, Any]:
    """Typed fields of words such as `--learning_rate 1e-4 --bf16 --no_eval_on_start --report_to wandb tensorboard`.

    A field is followed by its value, by several for a list, by a mapping in the form `{name: value}`, or by nothing
    where it is true or false. `null` takes a field back to its default. Of a field given twice the last counts.

    Args:
        known: name -> annotation.
        hint: (unknown name, known ones) -> what to put behind the message.

    Raises:
        ValueError: a word that belongs to no field, an unknown field, a value that a field cannot have.
    """
    given: dict[str, list[str]] = {}
    own: list[str] | None = None
    for word in words:
        if not word.startswith("--"):
            if own is None:
                raise ValueError(f"{word!r} follows no field; write --field value")
            own.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name not in known and name.removeprefix("no_") in known and not equals:
            name, equals, value = name.removeprefix("no_"), "=", "false"
            if bool not in _alternatives(known[name]):
                kind = _in_words(known[name])
                raise ValueError(f"--no_{name} needs a field that is true or false; {name} is {kind}")
        if name not in known:
            raise ValueError(f"unknown field {name!r}{hint(name, known)}")
        own = given[name] = [value] if equals else []
    return {name: _from_words(name, values, known[name]) for name, values in given.items()}


def help_text(cls: type, besides: Iterable[str] = ()) -> str:
    """A paragraph per field of a dataclass: name, what it may hold, default, and its own help."""
    paragraphs = []
    kinds = annotations(cls)
    for field in dataclasses.fields(cls):
        if field.init and field.name not in besides:
            default = "" if field.default in (dataclasses.MISSING, None, "") else f"; default {_plain(field.default)}"
            text = " ".join(f"{field.metadata.get('help') or ''}".split())
            paragraphs.append(f"  --{field.name}  ({_in_words(kinds[field.name])}{default})")
            paragraphs += textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(paragraphs)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _choices(annotation: Any) -> list[str]:
    """The values of the Enum among the alternatives; none where there is none."""
    enums = [kind for kind in _alternatives(annotation) if isinstance(kind, type) and issubclass(kind, Enum)]
    return [member.value for enum in enums for member in enum]


def _in_words(annotation: Any) -> str:
    if choices := _choices(annotation):
        return f"one of {', '.join(choices)}"
    return " or ".join(dict.fromkeys(_kind_in_words(kind) for kind in _alternatives(annotation)))


def _kind_in_words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if kind is list or origin in (list, tuple):
        return f"a list of {_plural(args[0])}" if args else "a list"
    if kind is dict or origin is dict:
        return "a mapping"
    return _IN_WORDS.get(kind) or str(getattr(kind, "__name__", kind))


def _plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers", str: "texts"}.get(kind) or _in_words(kind)


def _converted(value: Any, annotation: Any) -> Any:
    """What YAML or Python may write for a value of the annotation, as such a value; anything else as it is."""
    kinds = _alternatives(annotation)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        for kind in kinds:
            if get_origin(kind) in (list, tuple):
                return get_origin(kind)(_converted(item, get_args(kind)[0]) for item in value)
    if isinstance(value, dict):
        for kind in kinds:
            if get_origin(kind) is dict:
                return {key: _converted(item, get_args(kind)[1]) for key, item in value.items()}
    if isinstance(value, str) and str not in kinds:
        if bool in kinds and value.lower() in ("true", "false"):
            return value.lower() == "true"
        value = _number(value, kinds)
    if float in kinds and int not in kinds and type(value) is int:
        return _number(str(value), kinds)
    if int in kinds and float not in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _number(text: str, kinds: Sequence[Any]) -> Any:
    """The number that a text spells, where a number is allowed; else the text."""
    for kind in (int, float):
        try:
            if kind in kinds:
                return kind(text)
        except ValueError:
            pass
    return text


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    return all(_is_finite(item) for item in value) if isinstance(value, list | tuple) else True


def _from_words(name: str, words: list[str], annotation: Any) -> Any:
    kinds = _alternatives(annotation)
    if words == ["null"]:
        return None
    several = any(kind is list or get_origin(kind) in (list, tuple) for kind in kinds)
    if not words and bool in kinds:
        return True
    if not several and len(words) != 1:
        raise ValueError(f"{name} takes one value, got {' '.join(words) or 'none'}")
    values = [_from_word(name, word, kinds) for word in words]
    if several and not (len(values) == 1 and (isinstance(values[0], list) or str in kinds)):
        return typed(name, values, annotation)
    return typed(name, values[0], annotation)


def _from_word(name: str, word: str, kinds: Sequence[Any]) -> Any:
    """A word as YAML reads it, or as it is where only a text can stand."""
    plain = all(kind in (str, type(None)) or (isinstance(kind, type) and issubclass(kind, Enum)) for kind in kinds)
    texts = all(get_origin(kind) is Literal and all(isinstance(arg, str) for arg in get_args(kind)) for kind in kinds)
    if plain or texts:
        return word
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} cannot hold {word!r}, which is not YAML: {' '.join(str(error).split())}") from None
    scalar = str in kinds and not isinstance(value, list | dict | bool)
    return word if scalar else value
