"""One call that publishes a run: what goes up, the proof that it loads before and after, and the push between them."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ...utils.results import EncodeResult
from ..corpus.shards import CARD_FILE, DATA_FOLDER, PLAN_FILE, RESULT_FILE, WORDS_FILE, open_shards
from .publishing import assemble, checkpoint_folders, explain, push_folder, verify


class PublishError(RuntimeError):
    """The Hub said no, or what is to go up, or is there now, does not load as it should."""


@dataclass(frozen=True)
class Upload:
    """What went up as one commit, or would.

    Attributes:
        source: the folder it was made of.
        repo_id: owner/name.
        revision: branch.
        files: path -> bytes.
        notes: what was left out and why, a line each.
        card_checked: whether the Hub has accepted the card's metadata; False in a dry run that does not reach it.
        url: of the commit; None in a dry run.
    """

    source: Path
    repo_id: str
    revision: str
    files: dict[str, int]
    notes: list[str]
    card_checked: bool
    url: str | None


def push(
    run: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = "main",
    checkpoints: bool = False,
    license: str = "apache-2.0",
    language: str = "en",
    base_model: str | None = None,
    dry_run: bool = False,
) -> list[Upload]:
    """Publish a run, or a fine-tuned model, on the Hub: weights, configuration, code, tokenizer, recipe, report, card.

    A folder that `encode` wrote becomes a data set instead: its shards, with a card that names model, revision,
    precision and figures.

    Every Auto class loads it in a process without this package, before the push from the folder and after it from a
    fresh download, and every tensor is compared.

    Args:
        run: folder of a run, of a fine-tuned model (`finetune/<task>.<protocol>/model`), or of an encoded corpus.
        repo_id: owner/name; made when it does not exist.
        private: make a new repository private.
        revision: branch to push to.
        checkpoints: push each `checkpoint-N` too, to the branch `step-N`, before the rest.
        license: of the weights, as the Hub names it.
        language: of the texts, ISO 639-1.
        base_model: Hub id of the checkpoint that a fine-tuned model was made from.
        dry_run: check everything and push nothing; needs no token.

    Returns:
        What went up, in its order.

    Raises:
        ValueError: no such folder; not an owner/name; anything that `assemble` raises.
        PublishError: the Hub said no; what is to go up does not load, and nothing was pushed; or what is there now
            does not, and its commit is named.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"run folder {str(folder)!r} does not exist; give the --output_dir of a run")
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"--repo_id must be owner/name, got {repo_id!r}")
    if (folder / RESULT_FILE).is_file():
        try:
            return [_push_corpus(folder, repo_id, revision, private, dry_run)]
        except (HTTPError, LocalTokenNotFoundError, ConnectionError) as error:
            raise PublishError(explain(error, repo_id)) from error
    card = {"license": license, "language": language, "base_model": base_model}
    sources = [(folder, revision, card)]
    for step, source in reversed(checkpoint_folders(folder) if checkpoints else []):
        note = f"Intermediate checkpoint of step {step:,}. The model at the end of training is on the branch main."
        sources.insert(0, (source, f"step-{step}", {**card, "note": note}))
    try:
        return [_push_one(source, repo_id, branch, own, private, dry_run) for source, branch, own in sources]
    except (HTTPError, LocalTokenNotFoundError, ConnectionError) as error:
        raise PublishError(explain(error, repo_id)) from error


def _push_one(source: Path, repo_id: str, revision: str, card: dict[str, Any], private: bool, dry_run: bool) -> Upload:
    with tempfile.TemporaryDirectory(prefix="push-") as scratch:
        folder = Path(scratch)
        notes = assemble(source, folder, repo_id, **card)
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))}
        files = {name: size for name, size in files.items() if (folder / name).is_file()}
        _refuse(verify(folder, str(folder)), "nothing was pushed. Mend the checkpoint, or save it again")
        checked = _validate_card(folder, must=not dry_run)
        if dry_run:
            return Upload(source, repo_id, revision, files, notes, checked, url=None)
        commit = push_folder(folder, repo_id, revision, private, message=f"Push {source.name}")
        way_out = f"do not use {repo_id} at {commit.oid}. Run the same command again; if it stays so, open an issue"
        _refuse(verify(folder, repo_id, commit.oid), way_out)
    return Upload(
        source, repo_id, revision, files, notes, checked, f"{constants.ENDPOINT}/{repo_id}/tree/{commit.oid}"
    )


def _push_corpus(folder: Path, repo_id: str, revision: str, private: bool, dry_run: bool) -> Upload:
    """Shards and card as a data set, in one commit; shards of an earlier push go."""
    shards = open_shards(folder)  # whole, and of one model
    result = EncodeResult.load(folder / RESULT_FILE)
    if result.documents != shards.counts.documents:
        raise ValueError(
            f"{folder} holds {shards.counts.documents:,} documents, {RESULT_FILE} says {result.documents:,}"
        )
    paths = [*shards.files, *(folder / name for name in (CARD_FILE, RESULT_FILE, PLAN_FILE, WORDS_FILE))]
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    upload = Upload(folder, repo_id, revision, files, [], False, None)
    if dry_run:
        return upload
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
    if revision != "main":
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    commit = api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        repo_type="dataset",
        revision=revision,
        allow_patterns=list(files),
        delete_patterns=[f"{DATA_FOLDER}/*"],
        commit_message=f"Push {folder.resolve().name}",
    )
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit.oid, repo_type="dataset")
    there = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    wrong = [name for name, size in files.items() if there.get(name) != size]
    _refuse([f"{name} is not there whole" for name in wrong], "run the same command again")
    url = f"{constants.ENDPOINT}/datasets/{repo_id}/tree/{commit.oid}"
    return replace(upload, card_checked=True, url=url)


def _validate_card(folder: Path, must: bool) -> bool:
    """The Hub's own check of the metadata; a dry run does without when the Hub cannot be reached."""
    try:
        ModelCard.load(folder / CARD_FILE).validate()
    except (HTTPError, ConnectionError):
        if must:
            raise
        return False
    return True


def _refuse(wrong: list[str], way_out: str) -> None:
    if wrong:
        raise PublishError(f"{'; '.join(wrong)}. So {way_out}")
