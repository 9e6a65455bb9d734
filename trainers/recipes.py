"""Recipes: one YAML file per run, with sections model, data, objective and training; any field can be overridden."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from transformers import PreTrainedTokenizerBase

from ..configuration_concept import ConceptEncoderConfig
from ..utils.command_line import did_you_mean
from ..utils.fields import annotations, help_text, typed, words_to_fields
from ..utils.files import at_home, recorded_source, write_atomically
from ..utils.tokenizer import vocabulary_size
from ..utils.untrusted import inside, read_yaml
from .data.corpora import DataArguments
from .objectives.corruptions import CORRUPTIONS
from .objectives.objective import ObjectiveArguments
from .training.arguments import ConceptTrainingArguments
from .training.memory import check_memory

RECIPE_FILE = "recipe.yaml"
RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"
OF_A_DATASET = ("dataset_config_name", "dataset_revision")
# Taken from the tokenizer, so that they cannot contradict it.
_FROM_TOKENIZER = ("pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id")
# Data sets, tokenizers and checkpoints, perhaps of this machine: named so that they say nothing about it.
_SOURCES = ("dataset_name", "tokenizer_name", "start_from", "warm_start_embeddings", "deepspeed", "fsdp_config")
# Of this machine or this call, not of the run.
_NOT_RECORDED = ("output_dir", "logging_dir", "resume_from_checkpoint", "disable_tqdm", "use_cpu")


def _model_arguments() -> type:
    """Dataclass with the configuration's own fields, so that each knob is declared once."""
    fields = []
    for name, annotation in ConceptEncoderConfig.__annotations__.items():
        if name in (*_FROM_TOKENIZER, "pooler_whitening", "auto_map"):
            continue
        default = getattr(ConceptEncoderConfig, name)
        if float in get_args(annotation):  # 0 and 0.0 are the same knob
            annotation = float | None if type(None) in get_args(annotation) else float
        if name == "vocab_size":
            annotation, default = int | None, None  # None: the tokenizer's
        fields.append((name, annotation, dataclasses.field(default=default)))
    return dataclasses.make_dataclass("ModelArguments", fields)


ModelArguments = _model_arguments()
SECTIONS: dict[str, type] = {
    "model": ModelArguments,
    "data": DataArguments,
    "objective": ObjectiveArguments,
    "training": ConceptTrainingArguments,
}
_ANNOTATIONS = {section: annotations(cls) for section, cls in SECTIONS.items()}


@dataclass
class Recipe:
    """A resolved recipe: everything a pretraining run depends on."""

    name: str
    model: Any
    data: DataArguments
    objective: ObjectiveArguments
    training: ConceptTrainingArguments

    @classmethod
    def load(cls, name_or_path: str | os.PathLike, **fields: Any) -> "Recipe":
        """A recipe of the package by its name, or a YAML file by its path, with `fields` in place of its own.

        A file has the sections model, data, objective and training. With `extends: other` it starts from the recipe
        `other` of the same folder, or of a path that begins there, and replaces the fields that it names. `None`, and
        `null` in a file, take a field back to its default; with another `dataset_name`, so are its configuration and
        revision.

        Args:
            name_or_path: such as "tiny", or a path that ends in .yaml; the name of the file is the recipe's.
            fields: each goes to its section by its name, such as `learning_rate=1e-4`.

        Raises:
            ValueError: unknown recipe, section or field; a field in the wrong section; a value that a field cannot
                have, inf and nan among them; fields that contradict each other; a recipe to extend that is missing, or
                extends this one.
            OSError: the file cannot be read.
        """
        path = find_recipe(name_or_path)
        sections = _read_sections(path)
        own: dict[str, dict[str, Any]] = {}
        for name, value in fields.items():
            section = next((each for each, known in _ANNOTATIONS.items() if name in known), None)
            if section is None:
                raise ValueError(f"unknown field {name!r}{_hint(name)}")
            own.setdefault(section, {})[name] = _typed(name, value, section)
        sections = {section: _over(sections.get(section, {}), own.get(section, {})) for section in SECTIONS}
        given = {
            section: {name: value for name, value in values.items() if value is not None}
            for section, values in sections.items()
        }
        given["training"].setdefault("output_dir", f"runs/{path.stem}")
        return cls(path.stem, **{section: SECTIONS[section](**values) for section, values in given.items()})

    def save(self, path: str | os.PathLike) -> None:
        """Write `as_dict` as a YAML file that `load` reads."""
        write_atomically(Path(path), yaml.safe_dump(self.as_dict(), sort_keys=False))

    def as_dict(self) -> dict[str, Any]:
        """Sections of plain values: `training` as far as it differs from the defaults, no path of this machine."""
        defaults = ConceptTrainingArguments(output_dir=self.training.output_dir).to_dict()
        training = {
            name: value
            for name, value in self.training.to_dict().items()
            if value != defaults[name] and name not in _NOT_RECORDED
        }
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in ("model", "data", "objective")}
        sections["training"] = training
        for fields in sections.values():
            fields |= {name: recorded_source(fields[name]) for name in _SOURCES if isinstance(fields.get(name), str)}
        return sections

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
        self.objective.check(config, self.data.columns, bool(self.data.teacher_columns))
        batch = self.training.per_device_train_batch_size
        check_memory(config, batch, self.data.max_length, self.training.device)
        return config


def recipe_names() -> list[str]:
    """Names of the recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def fields_from_words(words: Sequence[str], sections: Iterable[str] = tuple(SECTIONS)) -> dict[str, Any]:
    """Typed fields of command-line words, as `Recipe.load` takes them; see `words_to_fields`."""
    known = {name: kind for each in sections for name, kind in _ANNOTATIONS[each].items()}
    return words_to_fields(words, known, hint=_hint)


def fields_help(sections: Iterable[str] = tuple(SECTIONS)) -> str:
    """Every field of the sections: what it may hold, its default and what it is for."""
    return "\n\n".join(f"{section}:\n{help_text(SECTIONS[section])}" for section in sections)


def read_data(checkpoint: str | os.PathLike, **fields: Any) -> DataArguments:
    """The corpus of a checkpoint's recipe, with `fields` in place of its own; ValueError as from `Recipe.load`."""
    path = Path(checkpoint) / RECIPE_FILE
    recorded = _read_sections(inside(path.parent, RECIPE_FILE)).get("data", {}) if path.is_file() else {}
    for name in fields:
        if name not in _ANNOTATIONS["data"]:
            raise ValueError(f"unknown field {name!r}{did_you_mean(name, _ANNOTATIONS['data'])}")
    recorded = _over(recorded, {name: _typed(name, value, "data") for name, value in fields.items()})
    return DataArguments(**{name: value for name, value in recorded.items() if value is not None})


def find_recipe(name: str | os.PathLike, folder: Path = RECIPES) -> Path:
    """`name` as a path that ends in .yaml, or as the name of a recipe in `folder`; ValueError that lists them
    otherwise."""
    name = at_home(name)
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    is_name = name.endswith((".yaml", ".yml")) or path.parent == folder
    # The stem names the folder of the run.
    if not is_name or not path.is_file() or not path.stem.strip("."):
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"Unknown recipe {name!r}. Available: {known}; or give the path of a .yaml file")
    return path


def _read_sections(path: Path, below: tuple[Path, ...] = ()) -> dict[str, dict[str, Any]]:
    """Section -> field -> typed value of a recipe and of what it extends, its own values on top."""
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
            inside(path.parent, str(found.relative_to(path.parent)))  # a name without a suffix may be a link's
        except ValueError as error:
            raise ValueError(f"{path}: extends: {error}") from None
        sections = _read_sections(found, (*below, path.resolve()))
    for section, fields in content.items():
        if section not in SECTIONS:
            legal = ", ".join(SECTIONS)
            raise ValueError(
                f"{path}: unknown section {section!r}. Sections: {legal}{did_you_mean(section, SECTIONS)}"
            )
        if not isinstance(fields, dict | None):
            raise ValueError(f"{path}: section {section!r} must map fields to values, got {fields!r}")
        try:
            own = {name: _typed(name, value, section) for name, value in (fields or {}).items()}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        sections[section] = _over(sections.get(section, {}), own)
    return sections


def _over(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `own` on top; a configuration and a revision belong to the data set that they were named with."""
    if "dataset_name" in own:
        fields = {name: value for name, value in fields.items() if name not in OF_A_DATASET}
    return {**fields, **own}


def _typed(name: Any, value: Any, section: str) -> Any:
    """The value of a field of a section; None takes it back to its default."""
    own = _ANNOTATIONS[section]
    if name in own:
        return None if value is None else typed(f"{section}.{name}", value, own[name])
    for other, names in _ANNOTATIONS.items():
        if name in names:
            raise ValueError(f"field {name!r} belongs in section {other!r}, not {section!r}")
    raise ValueError(f"unknown field {name!r} in section {section!r}{_hint(name, own)}")


def _hint(name: Any, known: Iterable[str] | None = None) -> str:
    """What to put behind an unknown field: where it stands, or those that are like it."""
    owner = next((each for each, cls in CORRUPTIONS.items() if name in annotations(cls)), None)
    if owner is not None:
        return f"; it is a setting of a corruption: corruption: {{{owner}: {{{name}: ...}}}}"
    return did_you_mean(name, [field for each in _ANNOTATIONS.values() for field in each] if known is None else known)
