"""Checkpoints that are there whole or not at all: written aside, hashed, renamed, and told from torn ones."""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...utils.files import sync_folder, write_atomically
from ...utils.untrusted import read_object

logger = logging.getLogger(__name__)

SUMS_FILE = "SHA256SUMS"
STAGING_FOLDER = ".saving"  # in the output folder, on the same file system, where a rename is one step


def find_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every `checkpoint-N` in `output_dir`, torn ones too, by step."""
    named = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", p.name), p) for p in Path(output_dir).glob("*-*"))
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def seal(folder: Path) -> None:
    """Write `SHA256SUMS` (as `sha256sum -c` reads it, and a last line that counts) and force all of it to the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_FILE)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}" for path in paths]
    write_atomically(folder / SUMS_FILE, "\n".join([*lines, f"# {len(lines)} files"]) + "\n")
    sync_folder(folder)


def best_checkpoint(checkpoint: Path) -> Path | None:
    """The best one when `checkpoint` was written, by its `trainer_state.json`; it is next to it, or was."""
    name = read_object(checkpoint / TRAINER_STATE_NAME)["best_model_checkpoint"]
    return None if name is None else checkpoint.parent / Path(name).name


def damage(folder: Path) -> str | None:
    """What keeps a checkpoint from being the one that was written, in words; None when every hash is right."""
    sums = folder / SUMS_FILE
    if not sums.is_file():
        return f"it has no {SUMS_FILE}, which is written last"
    *lines, count = sums.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
    listed = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    if count != f"# {len(lines)} files" or None in listed:
        return f"its {SUMS_FILE} is cut off"
    for match in listed:
        assert match is not None
        path = folder / match[2]
        if not path.is_file():
            return f"it lacks {match[2]}"
        if _sha256(path) != match[1]:
            return f"its {match[2]} is not what was written: the SHA-256 differs"
    if not {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME} & {match[2] for match in listed if match is not None}:
        return f"it has no {SAFE_WEIGHTS_NAME}: two runs wrote into one folder, perhaps"
    return None


def last_complete(output_dir: str | Path, at_most: float = float("inf")) -> str | None:
    """The newest checkpoint in `output_dir` of at most so many steps that is whole; torn ones are named in a warning.

    By step, never by time: a clock may go backwards.
    """
    for step, folder in reversed(find_checkpoints(output_dir)):
        if step > at_most:
            continue
        trouble = damage(folder)
        if trouble is None:
            return str(folder)
        logger.warning(f"passed over {folder}, which is torn: {trouble}")
    return None


def publish(staged: Path, final: Path) -> None:
    """Give a finished checkpoint its name, in place of one of an earlier attempt at the same step."""
    seal(staged)
    if final.exists():
        os.replace(final, staged.with_name(f"{final.name}.old"))
    os.replace(staged, final)
    sync_folder(final.parent, deep=False)


def remove_old(output_dir: str | Path, limit: int | None, newest: int, best: str | None) -> None:
    """Keep `limit` checkpoints: that of step `newest`, just written, the `best`, and the latest before.

    Those of later steps are of an attempt that was given up, and go first. `transformers.trainer_utils` would sort by
    time, and take the newest for the oldest after the clock went back.
    """
    if not limit or limit < 0:
        return
    found = sorted(find_checkpoints(output_dir), key=lambda each: (each[0] <= newest, each[0]))
    spare = [path for step, path in found if step != newest and (best is None or path != Path(best))]
    for path in spare[: max(len(found) - limit, 0)]:
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
