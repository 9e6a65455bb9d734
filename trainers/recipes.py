"""Recipes: one YAML file per run, with sections model, data, objective and training; any field can be overridden."""

import dataclasses
import json
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from transformers import HfArgumentParser, PreTrainedTokenizerBase

from ..configuration_concept import ConceptEncoderConfig
from ..utils.command_line import Parser, did_you_mean
from ..utils.tokenizer import vocabulary_size
from ..utils.untrusted import inside, read_yaml
from .data.corpora import DataArguments
from .objectives.objective import ObjectiveArguments
from .training.arguments import ConceptTrainingArguments

RECIPE_FILE = "recipe.yaml"
RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
# Taken from the tokenizer, so that they cannot contradict it.
_FROM_TOKENIZER = ("pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id")
# Of this machine or this call, not of the run.
_NOT_RECORDED = ("output_dir", "logging_dir", "resume_from_checkpoint", "disable_tqdm", "use_cpu")


def _model_arguments() -> type:
    """Dataclass with the configuration's own fields, so that each knob is declared once."""
    fields = []
    for name, annotation in ConceptEncoderConfig.__annotations__.items():
        if name in (*_FROM_TOKENIZER, "pooler_whitening", "auto_map"):
            continue
        default = getattr(ConceptEncoderConfig, name)
        if float in get_args(annotation):  # argparse knows float and float | None, not float | int
            annotation = float | None if type(None) in get_args(annotation) else float
        if name == "vocab_size":
            annotation, default = int | None, None  # None: the tokenizer's
        fields.append((name, annotation, dataclasses.field(default=default)))
    return dataclasses.make_dataclass("ModelArguments", fields)


ModelArguments = _model_arguments()
SECTIONS = {
    "model": ModelArguments,
    "data": DataArguments,
    "objective": ObjectiveArguments,
    "training": ConceptTrainingArguments,
}


@dataclass
class Recipe:
    """A resolved recipe: everything a pretraining run depends on."""

    name: str
    model: Any
    data: DataArguments
    objective: ObjectiveArguments
    training: ConceptTrainingArguments

    @classmethod
    def load(cls, name_or_path: str, **fields: Any) -> "Recipe":
        """A recipe of the package by its name, or a YAML file by its path, with `fields` in place of its own."""
        words = [word for name, value in fields.items() for word in _as_flags(name, value)]
        return load_recipe(find_recipe(str(name_or_path)), words, recipe_parser())

    def model_config(self, tokenizer: PreTrainedTokenizerBase) -> ConceptEncoderConfig:
        """The model's configuration, with vocabulary and special tokens of `tokenizer`; ValueError where it does not
        fit the tokenizer, the data or the objective."""
        fields, size = dataclasses.asdict(self.model), vocabulary_size(tokenizer)
        if fields["vocab_size"] is None:
            fields["vocab_size"] = size
        elif fields["vocab_size"] < size:
            raise ValueError(
                f"vocab_size ({fields['vocab_size']}) is smaller than the tokenizer's {size} tokens; "
                "leave it out to take the tokenizer's"
            )
        longest = fields["max_position_embeddings"]
        if fields["position_embedding_type"] == "learned" and self.data.max_length > longest:
            raise ValueError(
                f"max_length ({self.data.max_length}) is larger than max_position_embeddings ({longest}); "
                "lower the first or raise the second"
            )
        config = ConceptEncoderConfig(
            **fields,
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            bos_token_id=tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
            eos_token_id=tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        )
        self.objective.check(config, self.data.partner_column is not None)
        return config

    def as_dict(self) -> dict[str, Any]:
        """Sections of plain values: `training` as far as it differs from the defaults, without paths."""
        defaults = ConceptTrainingArguments(output_dir=self.training.output_dir)
        training = {}
        for name in (f.name for f in dataclasses.fields(ConceptTrainingArguments) if f.init):
            value = getattr(self.training, name)
            if value != getattr(defaults, name) and name not in _NOT_RECORDED:
                training[name] = getattr(value, "value", value)
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in ("model", "data", "objective")}
        return {**sections, "training": training}


def recipe_data(checkpoint: Path) -> dict[str, Any]:
    """The data section of a checkpoint's recipe, empty where there is none; ValueError for unknown fields."""
    path = checkpoint / RECIPE_FILE
    if not path.is_file():
        return {}
    content = read_yaml(path) or {}
    section = (content.get("data") or {}) if isinstance(content, dict) else content
    if not isinstance(section, dict):
        raise ValueError(f"{path} is not a recipe: its data section must map fields to values, got {section!r}")
    fields = [field.name for field in dataclasses.fields(DataArguments)]
    unknown = sorted(str(name) for name in set(section) - set(fields))
    if unknown:
        raise ValueError(
            f"{path} has unknown data fields: {', '.join(unknown)}. The known fields are: {', '.join(fields)}"
        )
    return section


class FieldParser(HfArgumentParser, Parser):
    """Parser of the fields of dataclasses, as `--field value`, each in the one spelling that recipes have too."""

    def __init__(self, *classes: type, prog: str):
        HfArgumentParser.__init__(self, classes, prog=prog)

    def add_argument(self, *names: Any, **kwargs: Any) -> Action:
        spelled = [name for name in names if "-" not in name[2:]]
        return super().add_argument(*spelled, **kwargs)


def read_data(checkpoint: str | Path, **fields: Any) -> DataArguments:
    """The corpus of a checkpoint's recipe, with `fields` in place of its own; ValueError as from `recipe_data`."""
    parser = _Refusing(DataArguments, prog="")
    parser.set_defaults(**recipe_data(Path(checkpoint)))
    words = [word for name, value in fields.items() for word in _as_flags(name, value)]
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)[0]


class _Refusing(FieldParser):
    def error(self, message: str):
        raise ValueError(message)


def recipe_names() -> list[str]:
    """Names of the recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def fields_from_words(words: Sequence[str], sections: Iterable[str] = tuple(SECTIONS)) -> dict[str, Any]:
    """Typed fields of command-line words, as `Recipe.load` takes them."""
    parser = _Refusing(*(SECTIONS[name] for name in sections), prog="")
    for action in parser._actions:
        action.default = SUPPRESS
    found, unknown = parser.parse_known_args(words)
    if unknown:
        known = [name.lstrip("-") for name in parser._option_string_actions]
        field = unknown[0].removeprefix("--").partition("=")[0]
        raise ValueError(f"unknown field {field!r}{did_you_mean(field, known)}")
    return vars(found)


def fields_help(sections: Iterable[str] = tuple(SECTIONS)) -> str:
    """Every field of the sections: what it may hold, its default and what it is for."""
    return FieldParser(*(SECTIONS[name] for name in sections), prog="FIELDS").format_help()


def recipe_parser(prog: str = "RECIPE") -> FieldParser:
    """Parser of every field of every section."""
    return FieldParser(*SECTIONS.values(), prog=prog)


def find_recipe(name: str, folder: Path = RECIPES) -> Path:
    """`name` as a path, or as the name of a recipe in `folder`; ValueError that lists them otherwise."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    is_name = name.endswith((".yaml", ".yml")) or path.parent == folder
    # The stem names the folder of the run.
    if not is_name or not path.is_file() or not path.stem.strip("."):
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"Unknown recipe {name!r}. Available: {known}; or give the path of a .yaml file")
    return path


def load_recipe(path: Path, overrides: list[str], parser: FieldParser) -> Recipe:
    """Read a recipe and apply command-line `overrides` such as `["--learning_rate", "1e-4"]`.

    A recipe with `extends: other` starts from the recipe `other` of the same folder (or a path that begins there) and
    replaces the fields that it names; `null` takes a field back to its default.

    Raises:
        ValueError: not a mapping of sections; unknown section or field; a field in the wrong section; a recipe to
            extend that is missing, or extends this one.
        SystemExit: an override that argparse refuses (it prints why).
    """
    argv = []
    for fields in _read_sections(path).values():
        for name, value in fields.items():
            if value not in (None, []):  # argparse has no empty list
                argv += _as_flags(name, value)
    defaults = ["--output_dir", f"runs/{path.stem}"]
    known = {f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls) if f.init}
    for word in overrides:
        field = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and field not in known | {f"no_{name}" for name in known}:
            raise ValueError(f"unknown field {field!r}{did_you_mean(field, known)}")
    parsed = parser.parse_args_into_dataclasses(defaults + argv + overrides, look_for_args_file=False)
    return Recipe(path.stem, *parsed)


def _read_sections(path: Path, below: tuple[Path, ...] = ()) -> dict[str, dict[str, Any]]:
    """Section -> field -> value of a recipe and of what it extends, its own values on top."""
    if path.resolve() in below:
        chain = " extends ".join(each.stem for each in (*below, path))
        raise ValueError(f"{path}: a recipe cannot extend itself: {chain}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a recipe: expected the sections {', '.join(SECTIONS)}")
    base = content.pop("extends", None)
    sections: dict[str, dict[str, Any]] = {}
    if base is not None:
        try:
            named = str(inside(path.parent, str(base)))
            found = find_recipe(named if named.endswith((".yaml", ".yml")) else str(base), path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: extends: {error}") from None
        sections = _read_sections(found, (*below, path.resolve()))
    for section, fields in content.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: unknown section {section!r}. Sections: {', '.join(SECTIONS)}")
        if not isinstance(fields, dict | None):
            raise ValueError(f"{path}: section {section!r} must map fields to values, got {fields!r}")
        for name, value in (fields or {}).items():
            _check_field(path, section, name, value)
        sections[section] = {**sections.get(section, {}), **(fields or {})}
    return sections


def _as_flags(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *(str(item) for item in value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _check_field(path: Path, section: str, name: str, value: Any) -> None:
    owners = {key: [f.name for f in dataclasses.fields(cls) if f.init] for key, cls in SECTIONS.items()}
    if name in owners[section]:
        many = next(f for f in dataclasses.fields(SECTIONS[section]) if f.name == name).default_factory is list
        # The Trainer's own fields may be mappings, or either of one value and several.
        wrong = dict if many else (dict, list)
        if section != "training" and isinstance(value, wrong):
            raise ValueError(f"{path}: field {name!r} takes {'a list' if many else 'one value'}, got {value!r}")
        for item in value if isinstance(value, list) else []:
            if str(item).startswith("--"):  # would be read as another field
                raise ValueError(f"{path}: field {name!r} cannot hold {item!r}")
        return
    for other, names in owners.items():
        if name in names:
            raise ValueError(f"{path}: field {name!r} belongs in section {other!r}, not {section!r}")
    raise ValueError(f"{path}: unknown field {name!r} in section {section!r}{did_you_mean(name, owners[section])}")
