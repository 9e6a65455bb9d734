"""Publishing on the Hub: the upload set of a run folder, its push as one commit, and the proof that it loads."""

import fnmatch
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedModel

from ...configuration_concept import AUTO_MAP, ConceptEncoderConfig, with_classifier
from ...trainers.recipes import RECIPE_FILE
from ...trainers.training.saving import SUMS_FILE, find_checkpoints
from ...trainers.weights.tensors import weight_files
from ...utils.files import TOKENIZER_FILES, write_atomically
from ...utils.results import Report
from ...utils.tokenizer import fit_saved_tokenizer
from ...utils.untrusted import inside, read_object
from ..loading.checkpoints import HEAD_PREFIXES, Checkpoint
from ..report.report import PARTS, build_report, read_results
from .card import CardFacts, render_card
from .code_check import CODE, COMMAND, other_code, own_classes

REPORT_FILES = ("report.json", "report.html")
CARD_FILE = "README.md"
FIGURES = "figures/*.png"
# All that an upload may hold; the star matches no slash.
UPLOADED = (
    *(CARD_FILE, "config.json", "generation_config.json", *(path.name for path in CODE), RECIPE_FILE),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES),
    *(*ConceptEncoderConfig().sentence_transformers_files(), *REPORT_FILES, FIGURES),
)
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
PICKLES = (*PICKLED_WEIGHTS, "*.pkl", "*.pickle")
TRAINING_STATE = (
    *("training_args.bin", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*", "log_sums_*", SUMS_FILE),
    *("trainer_state.json", "checkpoint-*"),
)
# Of an earlier push, what would contradict this one. Everything else in the repository stays.
STALE = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*",
    "figures/*",
    "report.*",
    "modeling_*.py",
)
BUSY = (429, 500, 502, 503, 504)
GENERATION = ("num_steps", "order", "temperature", "top_k", "top_p")


# ----------------------------------------------------------------------------------------------------- the upload set


def assemble(source: Path, target: Path, repo_id: str, **card: Any) -> list[str]:
    """Copy what is published of a checkpoint into an empty folder, with a card that says what was measured.

    Args:
        source: run folder, `checkpoint-N` folder or folder of a fine-tuned model; only read.
        target: the upload set: weights, configuration, code, tokenizer, generation defaults, files of
            sentence-transformers, recipe, report with figures, card.
        repo_id: owner/name, for the examples of the card.
        card: further fields of `CardFacts`.

    Returns:
        Notes for the user: what was left out and why, a line each.

    Raises:
        ValueError: `source` is no checkpoint of this package in safetensors with a tokenizer, or its report is older
            than its results.
    """
    opened, weights = Checkpoint.open(source), _weight_files(source)
    config = read_object(source / "config.json") | {"architectures": with_classifier([opened.head.__name__])}
    assert opened.tensors
    names = [*weights, *_tokenizer_files(source)]
    names += [name for name in (RECIPE_FILE,) if (source / name).is_file()]
    report, task_id, report_files = _read_report(source)
    names += report_files
    for name in names:
        file = _uploadable(source, name)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
    for path in CODE:
        shutil.copyfile(path, target / path.name)
    config["auto_map"] = _auto_map(source, config.get("auto_map"), opened.head)
    fit_saved_tokenizer(target, opened.config)
    texts = {"config.json": json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"}
    texts |= opened.config.sentence_transformers_files()
    facts = CardFacts(repo_id=repo_id, config=config, task_id=task_id, **card)
    texts[CARD_FILE] = str(render_card(report, facts)).rstrip() + "\n"
    for name, text in texts.items():
        write_atomically(target / name, text)
    defaults = generation_defaults(config, opened.head)
    if defaults is not None:
        defaults.save_pretrained(target)
    _check_paths(source, target)
    return _notes(source, report_files, report is not None, {*names, *texts})


def _auto_map(source: Path, given: Any, head: type[PreTrainedModel]) -> dict[str, str]:
    """The map of the source, which may name this package's classes only, with the class that was saved."""
    known = own_classes()
    given = {} if given is None else given
    wrong = [f"{auto}: {name!r}" for auto, name in dict(given).items() if name not in known.get(auto, ())]
    if wrong:
        raise ValueError(
            f"the auto_map of {source / 'config.json'} names what is not a class of this package for it "
            f"({', '.join(wrong)}); load the model with this package and save it again (save_pretrained)"
        )
    return AUTO_MAP | dict(given) | {head._auto_class: f"modeling_concept.{head.__name__}"}


def _uploadable(source: Path, name: str) -> Path:
    """The file `name` of `source`; ValueError unless it is itself of `UPLOADED`, and no link to another one of it."""
    if not _is_uploaded(name):
        raise ValueError(f"{name!r} of {source} is not part of an upload; {_what_is_uploaded()}")
    file = inside(source, name)
    if file.is_symlink() and file.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{file} is a link to {file.resolve().name}; put the file itself there")
    return file


def _is_uploaded(name: str) -> bool:
    return any(name.count("/") == each.count("/") and fnmatch.fnmatchcase(name, each) for each in UPLOADED)


def _what_is_uploaded() -> str:
    return f"it holds only {', '.join(UPLOADED)}"


def _check_paths(source: Path, target: Path) -> None:
    """ValueError where the set names a folder of this machine: what is measured is recorded without."""
    own = {f"{path}/".encode() for path in (source.resolve().parent, Path.home()) if len(path.parts) > 1}
    for path in sorted(target.rglob("*")):
        if path.suffix in (".json", ".html", ".md", ".yaml") and any(each in path.read_bytes() for each in own):
            raise ValueError(
                f"{path.name} would publish a path of this machine; measure and report again with this version, or "
                "take the path out"
            )


def _weight_files(source: Path) -> list[str]:
    if any((source / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return weight_files(source)
    pickles = sorted(
        path.name for pattern in PICKLED_WEIGHTS for path in source.glob(pattern) if not _is_training_state(path)
    )
    if pickles:
        raise ValueError(
            f"{source} holds {', '.join(pickles)} and no model.safetensors. A pickle can run code when it is loaded "
            "and is not published; load the model and call save_pretrained, which writes safetensors"
        )
    raise ValueError(f"{source} is not a checkpoint: it has no model.safetensors")


def _tokenizer_files(source: Path) -> list[str]:
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if "tokenizer_config.json" not in found:
        raise ValueError(f"{source} has no tokenizer; save the one it was trained with there (save_pretrained)")
    if "auto_map" in read_object(source / "tokenizer_config.json"):
        raise ValueError(
            f"{source / 'tokenizer_config.json'} has an auto_map, which names code of the tokenizer's own; only this "
            "package's code is published, so save a tokenizer of a class of transformers"
        )
    return found


def _read_report(source: Path) -> tuple[Report | None, str | None, list[str]]:
    """(report, task of a fine-tuned head, files to upload); a fine-tuned head is in its run's report."""
    *_, finetune, task_id, model = ("", "", "", *source.resolve().parts)
    if finetune == "finetune" and model == "model":
        run = source.resolve().parents[2]
        report, _ = _fresh_report(run)
        return report, task_id, []
    report, written = _fresh_report(source)
    if report is None or not written:
        return report, None, []
    figures = [name for figure in report.figures for name in (figure.light, figure.dark)]
    absent = [name for name in (*REPORT_FILES, *figures) if not (source / name).is_file()]
    if absent:
        raise ValueError(
            f"the report of {source} lacks {', '.join(absent)}; write it again: concept-encoder report {source}"
        )
    return report, None, [*REPORT_FILES, *figures]


def _fresh_report(run: Path) -> tuple[Report | None, bool]:
    """(report, whether it is there): report.json, else built from the result files, else None."""
    path = run / "report.json"
    results = any(path for part in PARTS.values() for path in run.glob(part.pattern))
    if not path.is_file():
        return (build_report(run) if results else None), False
    report = Report.load(path)
    files = [name for found in read_results(run).values() for name in found] if results else []
    if report.run.files != files:
        changed = ", ".join(sorted(set(report.run.files) ^ set(files)))
        raise ValueError(f"{path} is not of these results ({changed}); write it again: concept-encoder report {run}")
    return report, True


def checkpoint_folders(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the intermediate checkpoints of a run, in order.

    Raises:
        ValueError: it has none.
    """
    found = find_checkpoints(run_dir)
    if not found:
        raise ValueError(f"{run_dir} has no checkpoint-N folder; leave --checkpoints out, or train with save_steps")
    return found


def generation_defaults(config: Mapping[str, Any], head: type[PreTrainedModel]) -> GenerationConfig | None:
    """The defaults of the checkpoint's own `generate`, read from its signature; None for a head that has none."""
    generate = getattr(head, "generate", None)
    if generate is None:
        return None
    defaults = inspect.signature(generate).parameters
    ids = {name: config.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    values = {name: defaults[name].default for name in GENERATION}
    return GenerationConfig(do_sample=True, **values, **ids)


def _notes(source: Path, report_files: list[str], measured: bool, taken: set[str]) -> list[str]:
    notes = []
    top = sorted(path for path in source.iterdir() if path.name not in taken)
    state = [path.name for path in top if _is_training_state(path)]
    pickles = [path.name for path in top if path.name not in state and any(path.match(p) for p in PICKLES)]
    if state:
        notes.append(f"left out, training state: {', '.join(state)}")
    if pickles:
        notes.append(f"left out, a pickle can run code when it is loaded: {', '.join(pickles)}")
    if (source / CARD_FILE).is_file():
        notes.append(f"left out, {CARD_FILE}: the card is rendered from what was measured")
    notes += [
        f"{name} is this package's; the run's own is older or was changed. {COMMAND} {source} shows how"
        for name in other_code(source)
    ]
    if not measured:
        notes.append(f"nothing was measured, and the card says so; concept-encoder analyze {source} is a start")
    elif not report_files and (source / "pretrain.json").is_file():
        notes.append(
            f"the card is made of the result files; concept-encoder report {source} adds a report with figures"
        )
    return notes


def _is_training_state(path: Path) -> bool:
    return any(path.match(pattern) for pattern in TRAINING_STATE)


# ------------------------------------------------------------------------------------------------------------ pushing


def push_folder(
    folder: Path, repo_id: str, revision: str = "main", private: bool = False, message: str = "Push"
) -> CommitInfo:
    """Make a branch hold the files of `folder`, in one commit on what it holds now.

    At any time the branch is the old one or the new one. Files of an earlier push that would contradict the new
    ones (weights, code, report, figures) go; others stay. Nothing is committed when nothing has changed.

    Args:
        folder: an upload set from `assemble`.
        repo_id: owner/name; made when it does not exist.
        revision: branch; made from main when it does not exist.
        private: for a new repository.
        message: first line of the commit.

    Raises:
        ValueError: a file that is none of `UPLOADED`; `private` for a repository that exists and is public.
        HfHubHTTPError: the Hub refused or failed; `explain` says it in words.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    stray = [name for name in files if not _is_uploaded(name)]
    if stray:
        raise ValueError(f"{folder} holds {', '.join(stray)}, which are not part of an upload; {_what_is_uploaded()}")
    api = HfApi()
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or leave --private out")
    if revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.repo_info(repo_id, revision=revision).sha
    held = api.list_repo_files(repo_id, revision=head)
    stale = [name for name in held if name not in files and any(fnmatch.fnmatchcase(name, p) for p in STALE)]
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in files]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head)


def explain(error: Exception, repo_id: str, again: str = "run the same command again") -> str:
    """One line on what went wrong with the Hub, and the way out. Never a token, a header or a body.

    Args:
        error: from huggingface_hub.
        repo_id: owner/name.
        again: how to try once more.
    """
    whole = f"Nothing is half done, the branch holds what it held before: {again}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            "the Hub does not know you (401). Log in with `hf auth login`, or set HF_TOKEN to a token that may write "
            f"to {repo_id}; then {again}"
        )
    if status == 403:
        return f"your token may not write to {repo_id} (403). Take one with write access, or another repository"
    if status == 412:
        return f"{repo_id} was changed by somebody else during the push (412). {whole}"
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError) or status == 404:
        return (
            f"the Hub does not find {repo_id}, or the revision (404): it was removed, or your token may not see it. "
            f"Check the name; then {again}"
        )
    if status == 400:
        said = _one_line(getattr(error, "server_message", None) or "no reason given")
        return f"the Hub refused the request (400): {said}"
    if status is not None:
        return f"the Hub answered {status}. {whole}{' in a minute' if status in BUSY else ''}"
    return f"no answer from the Hub ({type(error).__name__}). {whole} when the network is back"


def _one_line(text: str) -> str:
    token = get_token()
    text = " ".join(text.split())
    return text.replace(token, "[token]") if token else text


# ------------------------------------------------------------------------------------------------------- verification

# Runs where the package cannot be imported and nothing is cached: as for somebody who has never heard of it.
CHILD = """
import hashlib, json, sys
sys.modules["concept_encoder"] = None
sys.excepthook = lambda kind, error, _: print(kind.__name__ + ":", *str(error).split(), file=sys.stderr)
request = json.load(sys.stdin)
import torch, transformers

transformers.logging.set_verbosity_error()
source, revision = request["source"], {"revision": request["revision"]}

def digest(tensor):
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(str((tensor.dtype, tuple(tensor.shape))).encode() + raw).hexdigest()

def look(load):
    model, loading = load(source, trust_remote_code=True, output_loading_info=True, **revision)
    return {
        "class": type(model).__name__,
        "missing": sorted(loading["missing_keys"]),
        "tensors": {name: digest(tensor) for name, tensor in model.state_dict().items()},
    }

seen = {}
config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True, **revision)
transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=True, **revision)
for auto in request["auto_classes"]:
    seen[auto] = look(getattr(transformers, auto).from_pretrained)
print(json.dumps(seen))
"""


def verify(folder: Path, source: str, revision: str | None = None) -> list[str]:
    """Load what is at `source` in a process without this package and compare every weight with `folder`.

    Args:
        folder: the upload set that should be there.
        source: Hub id, or the folder itself to check the set before it is pushed.
        revision: full commit hash on the Hub.

    Returns:
        What is wrong, a line each; empty when every Auto class of the map loads, one of them as the class that was
        saved, no weight is newly initialised except those of a classifier that the checkpoint lacks, and every
        tensor is the local one, bit for bit.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    request = {"source": source, "revision": revision, "architecture": config["architectures"][0]}
    request["auto_classes"] = [name for name in config["auto_map"] if name != "AutoConfig"]
    with tempfile.TemporaryDirectory(prefix="verify-") as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        for name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "TRANSFORMERS_CACHE"):
            kept.pop(name, None)  # each would win over HF_HOME
        kept |= {"HF_HOME": home, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        token = get_token()  # a token kept in HF_HOME is not found there any more
        result = subprocess.run(
            [sys.executable, "-P", "-c", CHILD],
            cwd=home,
            env=kept | ({"HF_TOKEN": token} if token else {}),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        said = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        return [f"it does not load: {_one_line(said[-1])}"]
    return compare(_digests(folder), json.loads(result.stdout.splitlines()[-1]), request["architecture"])


def _digests(folder: Path) -> dict[str, str]:
    """Of every tensor in the safetensors files, as the child takes it of what it loaded."""
    digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digests[name] = sha256(str((tensor.dtype, tuple(tensor.shape))).encode() + raw).hexdigest()
    return digests


def compare(expected: Mapping[str, str], seen: Mapping[str, Mapping[str, Any]], architecture: str) -> list[str]:
    """What the child saw against the digests of the files; other heads share the encoder, under its prefix or not."""
    wrong = []
    for name, found in seen.items():
        own = found["class"] == architecture
        tensors, missing = found["tensors"], found["missing"]
        if not own:  # a classifier is a new head, a decoder is not: it would answer at random
            missing = [key for key in missing if not key.startswith(HEAD_PREFIXES)]
        if missing:
            wrong.append(f"{name}: newly initialised: {', '.join(missing)}")
        if own:
            differ = [key for key, digest in expected.items() if tensors.get(key) != digest]
        else:
            differ = [key for key, digest in tensors.items() if _counterpart(key, expected) not in (None, digest)]
        if differ:
            wrong.append(f"{name}: differs from the local one: {', '.join(sorted(differ))}")
    if not any(found["class"] == architecture for found in seen.values()):
        wrong.append(f"no Auto class gave {architecture}")
    return wrong


def _counterpart(key: str, expected: Mapping[str, str]) -> str | None:
    names = (key, f"encoder.{key}", key.removeprefix("encoder."))
    return next((expected[name] for name in names if name in expected), None)
