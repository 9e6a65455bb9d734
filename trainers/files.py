"""Files of a run: what a tokenizer may consist of, and results that are written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

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


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary neighbour, so that a reader sees the old file or the new one.

    The text is on the disk before it has the name; when it does not fit, nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Strict JSON (no NaN), written atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def sync_folder(folder: Path, deep: bool = True) -> None:
    """Force the names in `folder` to the disk and, when `deep`, every file and folder below."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
