"""Files of a run: what a tokenizer may consist of, and results that are written whole or not at all."""

import glob
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

LOCK_FILE = ".lock"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` through a temporary neighbour, so that a reader sees the old file or the new one.

    The content is on the disk before it has the name; when it does not fit, nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:  # not mkstemp, which knows no umask
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON (no NaN), written atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of json: ValueError for a key written twice, of which the first would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is written twice")
    return content


@contextmanager
def replaced_together(folder: Path, last: str) -> Iterator[Path]:
    """An empty folder to fill, whose files then replace those of the same names in `folder`, `last` after all others.

    The old `last` is removed before the first and the new one comes when the rest is there: who finds it finds files
    that were written together. A kill leaves the old state, the new, or in the instant between them no `last`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        staged = Path(scratch)
        yield staged
        sync_folder(staged)
        names = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
        (folder / last).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: (name == Path(last), name)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, folder / name)
        sync_folder(folder, deep=False)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name `target` when all is in it and on the disk.

    When the block raises, or is killed, there is none: the same call can be made again. A kill leaves a folder whose
    name begins with a dot next to it, which can be removed.
    """
    parent = target.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=parent) as scratch:
        staged = Path(scratch) / target.name
        staged.mkdir()
        yield staged
        sync_folder(staged)
        os.replace(staged, target)


def at_home(name: str | os.PathLike) -> str:
    """A name or a path as text, its leading `~` written out as a shell does."""
    return os.path.expanduser(os.fspath(name))


def recorded_source(name: str | None) -> str | None:
    """A data set, tokenizer or checkpoint as the files of a run name it, which other people read: never by a path of
    this machine.

    What is below the working folder is `./path`, what is elsewhere its last name; a Hub id stays as it is.
    """
    if name is None:
        return None
    path = os.path.abspath(at_home(name))
    if not (os.path.isabs(at_home(name)) or os.path.exists(path) or glob.glob(path, recursive=True)):
        return name
    return f"./{os.path.relpath(path)}" if Path(path).is_relative_to(Path.cwd()) else os.path.basename(path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process that asks for it works in `folder`, which is made; what stays empty is removed.

    The system holds the lock, and drops it when the process ends in any way.

    Raises:
        ValueError: another process is at work there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is at work in {folder}; wait until it has ended, or choose another --output_dir"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # of a disk that has become read-only
            (folder / LOCK_FILE).unlink(missing_ok=True)  # still locked: who has it open tries again, on a new one
        lock.release()
        for path in made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def disk_trouble_named(path: Path) -> Iterator[None]:
    """OSError for all that keeps a file from being written; safetensors, torch and tokenizers say it in other ways."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError | RuntimeError) and type(error) is not Exception:
            raise
        said = " ".join(str(error).split())
        raise OSError(f"{path} could not be written; what was there before is whole. {said}") from error


def check_new(folder: Path) -> None:
    """ValueError unless `folder` is yet to be made, or empty."""
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise ValueError(f"{folder} is not empty; name a new folder")


def check_writable(folder: Path) -> None:
    """OSError unless files can be made in `folder`, or in the nearest folder above that exists; makes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not existing.is_dir():
        raise NotADirectoryError(f"{folder} cannot be written to: {existing} is a file; name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to: no permission in {existing}; name another folder")


def sync_folder(folder: Path, deep: bool = True) -> None:
    """Force the names in `folder` to the disk and, when `deep`, every file and folder below."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
