"""Nothing in a file from elsewhere is ever run, and nothing of this machine ends up in a file."""

import ast
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from house import ROOT, package_files
from run_files import synthetic_pretrain, write_run
from small_runs import make_trainer

from concept_encoder.eval.benchmarks.registry import BENCHMARKS
from concept_encoder.eval.concepts.sampling import load_sampler
from concept_encoder.eval.hub.code_check import check_code
from concept_encoder.eval.hub.export import load_exportable
from concept_encoder.eval.hub.publishing import assemble
from concept_encoder.eval.loading.checkpoints import load
from concept_encoder.eval.report.report import report
from concept_encoder.scripts.pretrain import main as pretrain
from concept_encoder.trainers.weights.importing import read_tensors

PICKLED = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "notes.pkl")
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "marshal.loads", "shelve.open"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "eval", "exec"),
}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def dangers(source: str) -> list[str]:
    """Calls of a source that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        bad = name in FORBIDDEN
        bad |= name == "torch.load" and options.get("weights_only") != "True"
        bad |= options.get("allow_pickle") == "True" or options.get("shell") == "True"
        bad |= name.endswith("from_pretrained") and options.get("trust_remote_code", "False") != "False"
        found += [f"{node.lineno}: {ast.unparse(node)}"] if bad else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_package_can_run_what_it_reads(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_what_could_would_be_found(source):
    assert dangers(source) == [f"1: {ast.unparse(ast.parse(source))}"]


@pytest.mark.slow
def test_models_are_read_without_pickles():
    """Every `from_pretrained` of weights either forbids pickles itself or goes through the one door that does."""
    readers = {}
    for path in package_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained"):
                readers.setdefault(str(path.relative_to(ROOT)), []).append(ast.unparse(node.func))
    assert readers == {
        "eval/loading/checkpoints.py": ["head.from_pretrained"],  # the door, with use_safetensors
        "modeling_concept.py": ["ConceptEncoderConfig.from_pretrained"],  # no weights
        "utils/auto_classes.py": ["head.from_pretrained"],  # what `AutoModelForMaskedLM` itself was asked for
        # The box and its start, which were made a moment ago.
        "scripts/dev/box.py": [
            "AutoTokenizer.from_pretrained",
            "ConceptEncoderModel.from_pretrained",
            "AutoTokenizer.from_pretrained",
        ],
        "scripts/dev/corpus.py": ["AutoTokenizer.from_pretrained"],  # of a peer in a local folder
        "eval/hub/export.py": ["ExportedModel.from_pretrained"],  # what was exported a moment ago
        "scripts/dev/speed/finetuning.py": ["AutoTokenizer.from_pretrained"],  # BERT's, by its id
        "trainers/weights/importing.py": ["type(model).from_pretrained"],  # what was imported a moment ago
        "utils/untrusted.py": ["AutoTokenizer.from_pretrained"],
        "trainers/weights/warm_start.py": ["trained_class.from_pretrained", "AutoModel.from_pretrained"],
    }
    for name in ("eval/loading/checkpoints.py", "trainers/weights/warm_start.py"):
        assert re.search(r"use_safetensors\W+True", (ROOT / name).read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------- malicious pickles


@pytest.fixture
def trap(tmp_path) -> Path:
    """What the pickles of `laid` make when they are loaded; that they do so is tried first."""
    folder = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(folder)))
    folder.rmdir()
    return folder


def laid(folder: Path, trap: Path, *names: str) -> Path:
    for name in names:
        torch.save({"state": Trap(trap)}, folder / name)
    return folder


DOORS = {
    "encoder": lambda folder: load(folder).encoder,
    "classifier": lambda folder: load(folder).load_classifier(BENCHMARKS["mrpc"].head),
    "embedding": lambda folder: load(folder).encode(["cat"]),
    "sampling": lambda folder: load_sampler(str(folder)),
    "export": lambda folder: load_exportable(load(folder)),
    "code": lambda folder: check_code(str(folder)),
}


@pytest.mark.parametrize("door", DOORS)
def test_pickles_beside_the_weights_are_not_touched(door, pretrained, tmp_path, trap):
    folder = laid(shutil.copytree(pretrained, tmp_path / "evil"), trap, *PICKLED)
    DOORS[door](folder)
    assert not trap.exists()


@pytest.mark.parametrize("door", [name for name in DOORS if name != "code"])
def test_a_pickle_in_place_of_the_weights_is_refused(door, pretrained, tmp_path, trap):
    folder = laid(shutil.copytree(pretrained, tmp_path / "evil"), trap, *PICKLED)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        DOORS[door](folder)
    (folder / "other.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        DOORS[door](folder)
    assert not trap.exists()


@pytest.mark.slow
def test_publishing_and_reporting_leave_pickles_alone(pretrained, tmp_path, trap):
    folder = laid(shutil.copytree(pretrained, tmp_path / "evil"), trap, *PICKLED)
    report(write_run(folder, pretrain=synthetic_pretrain()))
    (tmp_path / "set").mkdir()
    assemble(folder, tmp_path / "set", "me/example")
    assert not trap.exists()
    assert not [path.name for path in (tmp_path / "set").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_importing_reads_tensors_of_a_pickle_and_nothing_else(tmp_path, trap):
    laid(tmp_path, trap, "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        read_tensors(tmp_path)
    assert not trap.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_resuming_refuses_a_state_that_would_run(name, checkpoint, tokenizer, tmp_path, trap):
    folder = laid(shutil.copytree(checkpoint, tmp_path / "run" / "checkpoint-2"), trap, name)
    trainer = make_trainer(tokenizer, tmp_path / "run", max_steps=4)
    with pytest.raises(ValueError, match=r"broken, or would run code when it is read, and was not read: "):
        trainer.train(resume_from_checkpoint=str(folder))
    assert not trap.exists()


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_trainer(tokenizer, folder, max_steps=4, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


def test_a_checkpoint_holds_no_arguments_and_only_plain_state(checkpoint):
    assert not (checkpoint / "training_args.bin").exists()
    pickles = [path for path in checkpoint.iterdir() if zipfile.is_zipfile(path)]
    assert {path.name for path in pickles} == {"optimizer.pt", "scheduler.pt", "rng_state.pth", "log_sums_0.pth"}


# ------------------------------------------------------------------------------------------- what documentation says


@pytest.mark.parametrize("path", ["README.md", "model_cards/template.md", *(f"docs/{n}.md" for n in ("LOG", "SPEED"))])
def test_every_documented_command_pins_the_code_it_runs(path):
    lines = [
        line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if "trust_remote_code=True" in line
    ]
    assert bool(lines) == (not path.startswith("docs"))
    assert [line for line in lines if "revision=revision" not in line] == []


# ------------------------------------------------------------------------------------------------ tokens, environment


@pytest.mark.slow
def test_a_run_writes_no_token_and_nothing_of_the_environment(tmp_path, monkeypatch):
    secrets = {"HF_TOKEN": "hf_" + "s3cret" * 5, "WANDB_API_KEY": "w" * 40, "SOME_PASSWORD": "correct-horse-battery"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    pretrain(["tiny", "--output_dir", str(folder), "--max_steps", "3", "--save_steps", "2", "--use_cpu", "True"])
    report(folder)
    (tmp_path / "set").mkdir()
    assemble(folder, tmp_path / "set", "me/example")
    words = [*secrets.values(), os.uname().nodename, str(tmp_path), str(Path.home() / "")]
    written = [path for root in (folder, tmp_path / "set") for path in root.rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in written:
        content = path.read_bytes()
        assert [word for word in words if len(word) > 4 and word.encode() in content] == [], path
