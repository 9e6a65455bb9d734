"""The code that travels with a checkpoint, compared with this package's own: by hash, and line by line."""

import difflib
import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, snapshot_download

from ... import configuration_concept, modeling_concept
from ...configuration_concept import AUTO_MAP
from ...utils.untrusted import is_hub_id, read_object

logger = logging.getLogger(__name__)
CODE = tuple(Path(module.__file__ or "") for module in (configuration_concept, modeling_concept))
COMMAND = "concept-encoder check-code"
# Fields of config.json by which transformers fetches or runs what is neither here nor in this package.
FOREIGN_FIELDS = ("attn_implementation", "_attn_implementation", "quantization_config", "custom_pipelines")


class CodeFile(NamedTuple):
    """A Python file of a checkpoint.

    Attributes:
        name: relative to the checkpoint.
        digest: SHA-256 in hexadecimal, None where the checkpoint lacks the file.
        expected: SHA-256 of this package's file of that name, None where the package has none that travels.
        difference: unified diff from the package's file to the checkpoint's, empty where they are equal.
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
        if self.equal:
            return f"{self.name} is this package's (sha256 {self.digest})"
        if self.digest is None:
            return f"{self.name} is missing from the checkpoint"
        if self.expected is None:
            return f"{self.name} is no file of this package: {len(self.difference)} lines"
        changed = [line for line in self.difference if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        return f"{self.name} differs from this package's in {len(changed)} lines (sha256 {self.digest})"


class CheckpointCode(NamedTuple):
    """What code a checkpoint brings.

    Attributes:
        commit: full hash on the Hub, None for a folder.
        files: as from `compare_code`.
        elsewhere: entries of its JSON files that name other code than `AUTO_MAP` does, a line each.
    """

    commit: str | None
    files: list[CodeFile]
    elsewhere: list[str]


def check_code(checkpoint: str, revision: str = "main") -> CheckpointCode:
    """The code of a folder, or of a repository on the Hub, of which nothing but Python and JSON files is fetched.

    Raises:
        ValueError: not a folder nor an id; a config.json that cannot be read.
        HTTPError: the Hub refused or failed.
    """
    commit, folder = None, Path(checkpoint)
    if not folder.is_dir():
        if not is_hub_id(checkpoint):
            raise ValueError(f"no folder {checkpoint!r}; give one, or owner/name on the Hub")
        commit = HfApi().repo_info(checkpoint, revision=revision).sha
        folder = Path(snapshot_download(checkpoint, revision=commit, allow_patterns=["*.py", "*.json"]))
    return CheckpointCode(commit, compare_code(folder), _named_elsewhere(folder))


def _named_elsewhere(folder: Path) -> list[str]:
    lines = []
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        content = read_object(folder / name)
        entries: Any = content.get("auto_map") or {}
        entries = entries if isinstance(entries, dict) else {"": entries}
        foreign = [f"{key}: {value}" for key, value in entries.items() if value != AUTO_MAP.get(key)]
        foreign += [field for field in FOREIGN_FIELDS if content.get(field) is not None]
        lines += [f"{name} names other code: {entry}" for entry in foreign]
    return lines


def compare_code(folder: Path) -> list[CodeFile]:
    """Every Python file of a checkpoint, at any depth, beside this package's of the same name, and what it lacks.

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
    their_lines, our_lines = ((content or b"").decode("utf-8", "replace").splitlines() for content in contents)
    difference = difflib.unified_diff(our_lines, their_lines, f"package/{name}", f"checkpoint/{name}", lineterm="")
    return CodeFile(name, digest, expected, list(difference))


def other_code(folder: Path) -> list[str]:
    """Names of the files of this package that lie in a checkpoint and have another content there."""
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
