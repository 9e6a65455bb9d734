"""The code that travels with a checkpoint, compared with this package's own: by hash, and line by line."""

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import HfApi, snapshot_download

from ... import configuration_concept, modeling_concept, reading_concept
from ...utils.command_line import printable
from ...utils.untrusted import is_hub_id

logger = logging.getLogger(__name__)
CODE = tuple(Path(module.__file__ or "") for module in (configuration_concept, reading_concept, modeling_concept))
COMMAND = "concept-encoder check-code"
# Fields of config.json by which transformers fetches or runs what is neither here nor in this package.
FOREIGN_FIELDS = ("attn_implementation", "_attn_implementation", "quantization_config", "custom_pipelines")


# Keys of any JSON file by which a library fetches or runs what this package has no file of.
CODE_FIELDS = (
    *(*FOREIGN_FIELDS, "custom_generate", "auto_mapping", "code_revision"),
    *("model_kwargs", "model_args", "config_kwargs", "config_args", "processor_kwargs", "tokenizer_args"),
)
CLASS_FILES = ("modules.json", "router_config.json")  # whose types sentence-transformers imports
OWN_TYPES = ("modeling_concept.ConceptMask",)
# Vocabularies and indices: large, and full of words that are no keys.
NOT_READ = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json")
# What runs, or may run when it is loaded, and is no text that could be compared.
RUNNABLE = (
    *(".so", ".pyd", ".dll", ".dylib", ".exe", ".sh", ".pyc", ".pyo", ".pyz", ".whl", ".egg", ".zip"),
    *(".pkl", ".pickle", ".joblib", ".dill", ".bin", ".pt", ".pth", ".pt2", ".ckpt", ".npy", ".npz", ".h5", ".keras"),
)


class CodeFile(NamedTuple):
    """A Python file of a checkpoint.

    Attributes:
        name: relative to the checkpoint.
        digest: SHA-256 in hexadecimal, None where the checkpoint lacks the file.
        expected: SHA-256 of this package's file of that name, None where the package has none that travels.
        difference: unified diff from the package's file to the checkpoint's, empty where they are equal; characters
            that a terminal would obey are escaped.
    """

    name: str
    digest: str | None
    expected: str | None
    difference: list[str]

    @property
    def equal(self) -> bool:
        return self.digest == self.expected

    @property
    def verdict(self) -> str:
        """One line."""
        name = printable(self.name)
        if self.equal:
            return f"{name} is this package's (sha256 {self.digest})"
        if self.digest is None:
            return f"{name} is missing from the checkpoint"
        if self.expected is None:
            return f"{name} is no file of this package: {len(self.difference)} lines"
        changed = [line for line in self.difference if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        return f"{name} differs from this package's in {len(changed)} lines (sha256 {self.digest})"


class CheckpointCode(NamedTuple):
    """What code a checkpoint brings.

    Attributes:
        commit: full hash on the Hub, None for a folder.
        files: as from `compare_code`.
        elsewhere: what else may run: entries of its JSON files that name other code than this package's, and files
            that nothing can be said of. A line each, characters that a terminal would obey escaped.
    """

    commit: str | None
    files: list[CodeFile]
    elsewhere: list[str]

    @property
    def own(self) -> bool:
        """Whether all that a library would run of it is this package's."""
        return not self.elsewhere and all(file.equal for file in self.files)


def check_code(checkpoint: str | os.PathLike, revision: str = "main") -> CheckpointCode:
    """The code of a folder, or of a repository on the Hub, fetching only Python and JSON files.

    Nothing of it is run.

    Raises:
        ValueError: not a folder nor an id.
        HTTPError: the Hub refused or failed.
    """
    commit, folder = None, Path(checkpoint)
    if folder.is_dir():
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    elif isinstance(checkpoint, str) and is_hub_id(checkpoint):
        commit = HfApi().repo_info(checkpoint, revision=revision).sha
        names = HfApi().list_repo_files(checkpoint, revision=commit)
        folder = Path(snapshot_download(checkpoint, revision=commit, allow_patterns=["*.py", "*.json"]))
    else:
        raise ValueError(f"no folder {str(checkpoint)!r}; give one, or owner/name on the Hub")
    found = _named_elsewhere(folder) + _not_to_be_vouched_for(folder, names)
    return CheckpointCode(commit, compare_code(folder), [printable(line) for line in found])


def _not_to_be_vouched_for(folder: Path, names: list[str]) -> list[str]:
    lines = []
    for name in sorted(names):
        path = folder / name
        if PurePosixPath(name).suffix.lower() in RUNNABLE:
            lines.append(f"{name} may run code when it is loaded, and cannot be compared")
        elif path.is_symlink() and path.is_dir():
            lines.append(f"{name} is a link to another folder, which is not looked into")
        elif name.lower().endswith((".py", ".json")) and not name.endswith((".py", ".json")):
            lines.append(f"{name} is not written .py or .json, and is not looked into")
    return lines


def _named_elsewhere(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if name in NOT_READ or path.is_dir():
            continue
        if path.name == "adapter_config.json":
            lines.append(f"{name} has the weights, and perhaps the code, of another model loaded")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            lines.append(f"{name} cannot be read ({type(error).__name__}), so what it names is not known")
            continue
        lines += [f"{name} names other code: {entry}" for entry in _foreign(content, name)]
    return lines


def _foreign(content: Any, name: str) -> Iterator[str]:
    """What in a JSON file of that name has a library run other code than this package's, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
            continue
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            if key == "auto_map" and item:
                known = own_classes() if value is content and PurePosixPath(name).name == "config.json" else {}
                entries = item.items() if isinstance(item, dict) else [("", item)]
                yield from (f"{auto}: {entry}" for auto, entry in entries if entry not in known.get(auto, ()))
            elif key in CODE_FIELDS and item:
                yield key
            elif PurePosixPath(name).name in CLASS_FILES and key in ("type", "types"):
                types = item.values() if isinstance(item, dict) else [item]
                yield from (f"{key}: {each}" for each in types if not _is_known_type(each))
            else:
                waiting.append(item)


def _is_known_type(name: Any) -> bool:
    return isinstance(name, str) and (name in OWN_TYPES or name.startswith("sentence_transformers."))


@cache
def own_classes() -> dict[str, list[str]]:
    """Auto class to the classes of this package that can take its place in an `auto_map`."""
    found: dict[str, list[str]] = {}
    for module in (configuration_concept, modeling_concept):
        for name, kind in vars(module).items():
            auto = getattr(kind, "_auto_class", None)
            if auto is not None and (kind.__module__, kind.__name__) == (module.__name__, name):
                found.setdefault(auto, []).append(f"{module.__name__.rpartition('.')[2]}.{name}")
    return found


def compare_code(folder: Path) -> list[CodeFile]:
    """Every Python file of a checkpoint, at any depth, next to this package's of the same name, and what it lacks.

    Nothing of it is run. A checkpoint without any Python file gives an empty list: only the installed package loads
    it.
    """
    own = {path.name: path for path in CODE}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    if not found:
        return []
    pairs: dict[str, tuple[Path | None, Path | None]] = {
        name: (path, own.get(path.name)) for name, path in found.items()
    }
    pairs.update({name: (None, path) for name, path in own.items() if name not in found})
    return [_compare(name, *pairs[name]) for name in sorted(pairs)]


def _compare(name: str, theirs: Path | None, ours: Path | None) -> CodeFile:
    contents = [None if path is None else path.read_bytes() for path in (theirs, ours)]
    digest, expected = (None if content is None else hashlib.sha256(content).hexdigest() for content in contents)
    their_lines, our_lines = (
        [
            printable(line)
            for line in (content or b"").decode("utf-8", "backslashreplace").removesuffix("\n").split("\n")
        ]
        for content in contents
    )
    name = printable(name)
    difference = difflib.unified_diff(our_lines, their_lines, f"package/{name}", f"checkpoint/{name}", lineterm="")
    return CodeFile(name, digest, expected, list(difference))


def other_code(folder: Path) -> list[str]:
    """Names of the files of this package whose copies in a checkpoint differ."""
    there = [(path, folder / path.name) for path in CODE if (folder / path.name).is_file()]
    return [theirs.name for ours, theirs in there if ours.read_bytes() != theirs.read_bytes()]


@cache
def warn_of_other_code(folder: Path) -> None:
    """Say once per process that a checkpoint's own code is not what it is measured with."""
    other = other_code(folder)
    if other:
        logger.warning(
            f"{folder}: its {' and '.join(other)} differ from this package's, which is what runs; "
            f"{COMMAND} {folder} shows how"
        )
