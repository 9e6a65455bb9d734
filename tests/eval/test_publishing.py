"""Push and pull over HTTP with the real clients, faults included."""

import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from run_files import synthetic_finetune, synthetic_pretrain, write_run
from safetensors.torch import load_file, save_file
from small_runs import tiny_recipe
from small_tasks import pair_table
from transformers import AutoTokenizer, GenerationConfig

from concept_encoder.configuration_concept import AUTO_MAP, ConceptEncoderConfig
from concept_encoder.eval.hub import pushing
from concept_encoder.eval.hub.publishing import assemble, compare, explain, push_folder, verify
from concept_encoder.eval.report.report import report
from concept_encoder.modeling_concept import (
    ConceptEncoderForDiffusionMLM,
    ConceptEncoderForMaskedLMPerceiver,
    ConceptEncoderForSentencePairClassification,
    ConceptEncoderForSequenceClassificationPerceiver,
    ConceptEncoderForSequenceClassificationViaDecoder,
    ConceptEncoderModel,
)
from concept_encoder.scripts import push
from concept_encoder.scripts.analyze import main as analyze
from concept_encoder.scripts.finetune import main as finetune
from concept_encoder.scripts.pretrain import main as pretrain
from concept_encoder.scripts.retrieval import main as retrieval
from concept_encoder.scripts.similarity import main as similarity
from concept_encoder.scripts.whiten import main as whiten
from concept_encoder.trainers.data.microworld import microworld_corpus, microworld_tokenizer
from concept_encoder.trainers.pretraining import pretrain as library_pretrain
from concept_encoder.trainers.training.arguments import ConceptTrainingArguments
from concept_encoder.trainers.training.trainer import ConceptTrainer
from concept_encoder.utils.results import Report

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_local"
CHECKPOINT = {
    *("README.md", "config.json", "configuration_concept.py", "generation_config.json"),
    *("modeling_concept.py", "reading_concept.py"),
    *("model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("config_sentence_transformers.json", "2_Pooling/config.json", "3_Normalize/config.json"),
}


@pytest.fixture(scope="module")
def run(pretrained, tmp_path_factory) -> Path:
    """A small run with a report, training state and a pickle that nobody asked for; tests only read it."""
    folder = shutil.copytree(pretrained, tmp_path_factory.mktemp("runs") / "small")
    scores = synthetic_finetune("microworld_entailment", {"accuracy": 0.71}, {"accuracy": 0.345}, 1000)
    report(write_run(folder, pretrain=synthetic_pretrain(), finetune=[scores]))
    (folder / "recipe.yaml").write_text("model: {num_concepts: 4}\n")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json", "notes.pkl"):
        (folder / name).write_bytes(TOKEN.encode())
    (folder / "checkpoint-3").mkdir()
    return folder


@pytest.fixture
def folder(pretrained, tmp_path) -> Path:
    """An upload set without a report."""
    (tmp_path / "set").mkdir()
    assemble(pretrained, tmp_path / "set", "me/example")
    return tmp_path / "set"


@pytest.fixture
def repo_id(request) -> str:
    """A repository of its own for each test."""
    return "me/" + re.sub("[^a-zA-Z0-9]+", "-", request.node.name)[:80].strip("-")


@pytest.fixture
def unverified(monkeypatch):
    """Leaves out the two processes that load the model; other tests cover them."""
    monkeypatch.setattr(pushing, "verify", lambda *args: [])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def head(repo_id: str, revision: str = "main") -> str:
    return HfApi().repo_info(repo_id, revision=revision).sha


def held(repo_id: str, revision: str = "main") -> set[str]:
    return set(HfApi().list_repo_files(repo_id, revision=revision)) - {".gitattributes"}


def fails(arguments: list, capsys) -> tuple[int, str]:
    """(exit code, last line) of a call that ends in one clean line."""
    with pytest.raises(SystemExit) as stopped:
        push.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert TOKEN not in printed.out + printed.err
    return stopped.value.code, printed.err.strip().splitlines()[-1]


def changed(folder: Path) -> None:
    """Weights that no Hub has seen, so that there is something to push."""
    weights, shift = load_file(folder / "model.safetensors"), random.SystemRandom().random()
    save_file(
        {name: tensor + shift for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


# ----------------------------------------------------------------------------------------------------- the upload set


@pytest.mark.slow
def test_the_upload_set_of_a_run(run, tmp_path):
    before = files(run)
    notes = assemble(run, tmp_path, "me/example")
    report = Report.load(run / "report.json")
    figures = {name for figure in report.figures for name in (figure.light, figure.dark)}
    assert figures
    assert files(tmp_path) == CHECKPOINT | figures | {"report.json", "report.html", "recipe.yaml"}
    assert notes == [
        "left out, training state: checkpoint-3, optimizer.pt, rng_state.pth, trainer_state.json, training_args.bin",
        "left out, a pickle can run code when it is loaded: notes.pkl",
    ]
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for name in ("configuration_concept.py", "reading_concept.py", "modeling_concept.py"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert 'repo, revision = "me/example", "the full commit hash"' in (tmp_path / "README.md").read_text()
    assert files(run) == before


def test_an_older_run_gets_the_whole_map_and_this_code(pretrained, tmp_path):
    source = shutil.copytree(pretrained, tmp_path / "old")
    config = json.loads((source / "config.json").read_text())
    part = {"AutoModel": AUTO_MAP["AutoModel"]}
    (source / "config.json").write_text(json.dumps({**config, "auto_map": part}))
    (source / "modeling_concept.py").write_text("raise SystemExit\n")
    (source / "README.md").write_text("# By hand\n")
    (tmp_path / "set").mkdir()
    notes = assemble(source, tmp_path / "set", "me/example")
    own = {"AutoModelForMaskedLM": "modeling_concept.ConceptEncoderForDiffusionMLM"}
    assert json.loads((tmp_path / "set/config.json").read_text()) == {**config, "auto_map": AUTO_MAP | own}
    changed = "modeling_concept.py is this package's; the run's own is older or was changed. "
    assert f"{changed}concept-encoder check-code {source} shows how" in notes
    assert "left out, README.md: the card is rendered from what was measured" in notes
    assert any("nothing was measured, and the card says so" in note for note in notes)
    assert "**Not judged.**" in (tmp_path / "set/README.md").read_text()


def test_a_choice_of_heads_is_kept(pretrained, tmp_path):
    source = shutil.copytree(pretrained, tmp_path / "run")
    config = json.loads((source / "config.json").read_text())
    auto, pair = "AutoModelForSequenceClassification", "modeling_concept.ConceptEncoderForSentencePairClassification"
    (source / "config.json").write_text(json.dumps({**config, "auto_map": config["auto_map"] | {auto: pair}}))
    (tmp_path / "set").mkdir()
    assemble(source, tmp_path / "set", "me/example")
    assert json.loads((tmp_path / "set/config.json").read_text())["auto_map"][auto] == pair


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        ("AutoModel", "modeling_concept.Old"),
        ("AutoModel", "other/repository--modeling_concept.ConceptEncoderModel"),
        ("AutoModel", "modeling_concept.ConceptEncoderForDiffusionMLM"),
        ("AutoTokenizer", "evil.Evil"),
    ],
)
def test_a_map_that_names_other_code_is_not_published(pretrained, tmp_path, auto, name):
    source = shutil.copytree(pretrained, tmp_path / "run")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {auto: name}}))
    (tmp_path / "set").mkdir()
    message = rf"the auto_map of .* names what is not a class of this package for it \({auto}: '{name}'\); load"
    with pytest.raises(ValueError, match=message):
        assemble(source, tmp_path / "set", "me/example")


@pytest.mark.parametrize(
    "name", [".env", "token", "optimizer.pt", "figures/.env", "figures/a/b.png", "x.png", None, 3]
)
def test_a_forged_report_publishes_nothing_as_a_figure(run, tmp_path, name):
    source = shutil.copytree(run, tmp_path / "run")
    forged = json.loads((source / "report.json").read_text())
    forged["figures"][0]["dark"] = name
    (source / "report.json").write_text(json.dumps(forged))
    if isinstance(name, str):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"secret")
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"report\.json: figures\[0\]\.dark .*, got .*; .*concept-encoder report"):
        assemble(source, tmp_path / "set", "me/example")
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file())


def test_a_figure_that_is_a_link_to_another_file_of_the_run_is_not_published(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "run")
    (source / ".env").write_text("secret")
    figure = next((source / "figures").glob("*.png"))
    figure.unlink()
    figure.symlink_to(source / ".env")
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"is a link to \.env; put the file itself there"):
        assemble(source, tmp_path / "set", "me/example")


def test_stray_files_stay_where_they_are(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "run")
    stray = [".env", "token", "notes.txt", "id_rsa", "data.jsonl", "figures/own.png", "extra.safetensors", "x.py"]
    stray += ["last-checkpoint/model.safetensors", "custom_generate/generate.py", "pretrain.json.bak"]
    for name in stray:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"secret")
    (tmp_path / "set").mkdir()
    assemble(source, tmp_path / "set", "me/example")
    assert files(tmp_path / "set").isdisjoint(stray)
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", [".env", "optimizer.pt", "deep/model.safetensors", "figures/x.svg", "evil.py"])
def test_only_an_upload_set_is_pushed(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"holds {name}, which are not part of an upload; it holds only README.md"):
        push_folder(folder, "me/never")


def test_the_tokenizer_of_an_older_run_is_limited_to_what_the_model_reads(pretrained, tmp_path):
    source = shutil.copytree(pretrained, tmp_path / "run")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 512}))
    (tmp_path / "set").mkdir()
    assemble(source, tmp_path / "set", "me/example")
    assert json.loads((tmp_path / "set/tokenizer_config.json").read_text())["model_max_length"] == 64


def test_a_report_of_before_that_names_the_home_of_its_author_is_not_published(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "run")
    (source / "report.html").write_text(f"<p>{tmp_path}/corpus</p>")
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"report\.html would publish a path of this machine; measure and"):
        assemble(source, tmp_path / "set", "me/example")


@pytest.mark.slow
def test_no_path_of_the_author_is_in_anything_that_is_published(tmp_path, tokenizer):
    """Every option that takes a path is given an absolute one."""
    home = tmp_path / "home-of-alice"
    corpus, task, own = home / "corpus" / "texts.jsonl", home / "own_pairs.yaml", home / "pairs"
    corpus.parent.mkdir(parents=True)
    texts = [row["text"] for row in microworld_corpus("train", 80)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    own.mkdir()
    for split, rows in (("train", 96), ("validation", 40)):
        pair_table(rows, rows, similarity=True).to_parquet(own / f"{split}.parquet")
    content = {"like": "stsb", "dataset_id": str(own), "sentence_columns": ["sentence1", "sentence2"]}
    task.write_text(json.dumps(content))
    microworld_tokenizer().save_pretrained(home / "tokenizer")
    data = ["--dataset_name", str(corpus), "--tokenizer_name", str(home / "tokenizer"), "--validation_size", "0.2"]
    data += ["--max_length", "64", "--max_train_documents", "40", "--max_validation_documents", "10"]
    first, run = home / "runs" / "first", home / "runs" / "second"
    pretrain(["tiny", "--output_dir", str(first), "--max_steps", "2", "--use_cpu", "True", *data])
    options = ["--start_from", str(first), "--max_steps", "2", "--use_cpu", "True", "--save_strategy", "steps"]
    options += ["--save_steps", "1", "--load_best_model_at_end", "True", "--eval_strategy", "steps"]
    pretrain(["tiny", "--output_dir", str(run), *options, "--eval_steps", "1", *data])
    analyze([str(run), "--num_batches", "2", "--batch_size", "5", "--ledger_documents", "4", *data[:2]])
    finetune([str(run), "--tasks", str(task), "--protocol", "quick", "--save_model", "--output_dir", str(run)])
    similarity([str(run), "--tasks", str(task), "--output_dir", str(run)])
    if find_spec("bm25s") and find_spec("pytrec_eval"):
        options = ["--words", str(corpus), "--cache_dir", str(home / "kept"), "--data_dir", str(home)]
        retrieval([str(run), "--tasks", "needle_256", "--output_dir", str(run), *options])
    report(run)
    whiten([str(run), "--output_dir", str(home / "white"), *data[:2]])
    sources = {"run": run, "model": run / "finetune" / "own_pairs.quick" / "model", "white": home / "white"}
    for name, source in sources.items():
        (tmp_path / name).mkdir()
        assemble(source, tmp_path / name, "me/example")
    published = [path for name in sources for path in (tmp_path / name).rglob("*") if path.is_file()]
    results = list(run.rglob("*.json"))  # of each checkpoint-N too, which hub_strategy may publish
    assert {"geometry.json", "trainer_state.json", "pretrain.json", "own_pairs.json"} <= {
        path.name for path in results
    }
    assert {"report.html", "recipe.yaml"} <= {path.name for path in published}
    words = [str(tmp_path).encode(), b"home-of-alice"]
    assert [path for path in (*published, *results) if any(word in path.read_bytes() for word in words)] == []
    assert "texts.jsonl" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_generation_defaults_are_those_of_generate(folder):
    kept = GenerationConfig.from_pretrained(folder)
    defaults = inspect.signature(ConceptEncoderForDiffusionMLM.generate).parameters
    for name in ("num_steps", "order", "temperature", "top_k", "top_p"):
        assert getattr(kept, name) == defaults[name].default, name
    assert kept.pad_token_id == 0


def test_weights_in_several_files(pretrained, tmp_path):
    source, target = shutil.copytree(pretrained, tmp_path / "sharded"), tmp_path / "set"
    (source / "model.safetensors").unlink()
    model = ConceptEncoderForDiffusionMLM.from_pretrained(pretrained)
    model.save_pretrained(source, max_shard_size="20KB")
    shards = {path.name for path in source.glob("model-*.safetensors")}
    assert len(shards) > 1
    (source / "model-00099-of-00099.safetensors").write_bytes(b"of another save")
    target.mkdir()
    assemble(source, target, "me/example")
    assert {path.name for path in target.glob("*.safetensors")} == shards
    assert (target / "model.safetensors.index.json").is_file()
    (source / sorted(shards)[0]).unlink()
    with pytest.raises(ValueError, match=f"names {sorted(shards)[0]}, which .*sharded does not hold"):
        assemble(source, target, "me/example")


@pytest.fixture
def fine_tuned(run, pretrained, tmp_path) -> Path:
    """finetune/<id>/model in a copy of the run."""
    copy = shutil.copytree(run, tmp_path / "small")
    folder = copy / "finetune" / "microworld_entailment.reference" / "model"
    model = ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(pretrained, num_labels=3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pretrained / name, folder)
    return folder


@pytest.mark.slow
def test_a_fine_tuned_head_takes_its_score_from_the_report_of_its_run(fine_tuned, tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    assemble(fine_tuned, target, "me/example", base_model="me/small")
    card = (target / "README.md").read_text()
    assert files(target) == CHECKPOINT - {"generation_config.json"}
    assert "base_model: me/small" in card
    assert "fine-tuned on microworld\\_entailment" in card
    assert "| 0.710 |" in card


def broken(source: Path, how: str) -> None:
    config = json.loads((source / "config.json").read_text())
    if how == "pickle":
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
    elif how == "no weights":
        (source / "model.safetensors").unlink()
    elif how == "no tokenizer":
        (source / "tokenizer_config.json").unlink()
    elif how == "no config":
        (source / "config.json").unlink()
    elif how == "other type":
        (source / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    elif how == "other class":
        (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    elif how == "stale report":
        write_run(source, finetune=[synthetic_finetune("microworld_similarity", {"pearson": 0.1}, {"pearson": 0}, 99)])
    elif how == "no figure":
        shutil.rmtree(source / "figures")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", r"holds pytorch_model.bin and no model.safetensors. A pickle can run code .* call save_pretrained"),
        ("no weights", "is not a checkpoint: it has no model.safetensors"),
        ("no tokenizer", "has no tokenizer; save the one it was trained with"),
        ("no config", "is not a checkpoint: it has no config.json; save_pretrained writes one"),
        ("other type", "holds a model of type 'bert'; only type 'concept_encoder'"),
        ("other class", "architectures must name one of ConceptEncoder.*, got 'BertModel'"),
        ("stale report", r"report.json is not of these results \(finetune/microworld_similarity.reference.json\)"),
        ("no figure", "lacks figures/.*; write it again: concept-encoder report"),
    ],
)
def test_what_cannot_be_published(run, tmp_path, how, message, capsys):
    source = shutil.copytree(run, tmp_path / "run")
    broken(source, how)
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=message):
        assemble(source, tmp_path / "set", "me/example")
    code, line = fails([source, "--repo_id", "me/example", "--dry_run"], capsys)
    assert code == 2
    assert line.startswith("concept-encoder push: error: ")


def leads_out(source: Path, how: str) -> None:
    """Makes a run folder name, or link to, a file next to it."""
    (source.parent / "secret.png").write_bytes(b"of nobody else")
    (source.parent / "secret.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    forged = json.loads((source / "report.json").read_text())
    index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "../secret.safetensors"}}
    if how == "figure":
        forged["figures"][0]["light"] = "../secret.png"
        (source / "report.json").write_text(json.dumps(forged))
    elif how == "absolute figure":
        forged["figures"][0]["light"] = str(source.parent / "secret.png")
        (source / "report.json").write_text(json.dumps(forged))
    elif how == "link":
        (source / "recipe.yaml").unlink()
        (source / "recipe.yaml").symlink_to(source.parent / "secret.png")
    elif how == "shard":
        (source / "model.safetensors").rename(source / "other.safetensors")
        (source / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("how", ["figure", "absolute figure", "link", "shard"])
def test_nothing_from_outside_the_folder_is_published(run, tmp_path, how):
    source = shutil.copytree(run, tmp_path / "run")
    leads_out(source, how)
    (tmp_path / "deep" / "set").mkdir(parents=True)
    figure = r"report\.json: figures\[0\]\.light string should match pattern .*, got '[./].*"
    with pytest.raises(ValueError, match=rf"leads out of .*run; put the file itself into the folder|{figure}"):
        assemble(source, tmp_path / "deep" / "set", "me/example")
    assert not any(b"of nobody else" in path.read_bytes() for path in (tmp_path / "deep").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["evil--code.Evil", None]}},
            "has an auto_map, which",
        ),
        ("config.json", {"custom_pipelines": {"x": {"impl": "evil.Evil"}}}, "has custom_pipelines, which would fetch"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "has attn_implementation, which would fetch or run"),
        (
            "report.json",
            {"figures": None, "kind": None, "run": None},
            r"report\.json: kind must be 'report', got None; remove it",
        ),
    ],
)
def test_other_code_is_not_published(run, tmp_path, file, content, message):
    source = shutil.copytree(run, tmp_path / "run")
    held = json.loads((source / file).read_text()) if file != "report.json" else {}
    (source / file).write_text(json.dumps({**held, **content}))
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=message):
        assemble(source, tmp_path / "set", "me/example")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--repo_id", "me/x"], "run folder 'nowhere' does not exist"),
        ([".", "--repo_id", "x"], "--repo_id must be owner/name, got 'x'"),
        ([".", "--repo_id", "me/a b"], "Repo id must use alphanumeric chars"),
        ([".", "--repo_id", "me/x", "--checkpoints"], "has no checkpoint-N folder; leave --checkpoints out"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, line = fails(arguments, capsys)
    assert code == 2
    assert message in line


# ------------------------------------------------------------------------------------------------------- verification


def seen(tensors: dict, missing=(), name="ConceptEncoderForDiffusionMLM") -> dict:
    return {"AutoX": {"class": name, "missing": list(missing), "tensors": tensors}}


def test_compare():
    own = "ConceptEncoderForDiffusionMLM"
    expected = {"encoder.a": "1", "decoder.b": "2"}
    assert compare(expected, seen({**expected, "lm_head.weight": "tied"}), own) == []
    assert compare(expected, seen({**expected, "decoder.b": "3"}), own) == [
        "AutoX: differs from the local one: decoder.b"
    ]
    assert compare(expected, seen({"encoder.a": "1"}), own) == ["AutoX: differs from the local one: decoder.b"]
    assert compare(expected, seen(expected, ["decoder.b"]), own) == ["AutoX: newly initialised: decoder.b"]
    good = seen(expected)["AutoX"]
    for name, tensors, missing, wrong in (
        ("ConceptEncoderModel", {"a": "1"}, [], []),
        ("ConceptEncoderModel", {"a": "9"}, [], ["differs from the local one: a"]),
        ("ConceptEncoderModel", {"a": "1"}, ["c"], ["newly initialised: c"]),
        ("Classifier", {"encoder.a": "1", "classifier.x": "5"}, ["classifier.x", "pooling.y"], []),
        (
            "Classifier",
            {"encoder.a": "9", "classifier.x": "5"},
            ["classifier.x"],
            ["differs from the local one: encoder.a"],
        ),
        ("OtherDecoder", {"encoder.a": "1", "decoder.c": "5"}, ["decoder.c"], ["newly initialised: decoder.c"]),
        ("Classifier", {"encoder.a": "1"}, ["encoder.a"], ["newly initialised: encoder.a"]),
    ):
        other = seen(tensors, missing, name)["AutoX"]
        assert compare(expected, {"own": good, "other": other}, own) == [f"other: {line}" for line in wrong]
    assert compare(expected, seen({"a": "1"}, name="ConceptEncoderModel"), own) == [f"no Auto class gave {own}"]


def test_compare_with_a_bare_encoder():
    found = seen({"a": "1"}, name="ConceptEncoderModel") | {"own": seen({"encoder.a": "2"}, name="Head")["AutoX"]}
    assert compare({"a": "1"}, found, "ConceptEncoderModel") == ["own: differs from the local one: encoder.a"]


@pytest.mark.slow
def test_verify_sees_what_is_wrong_with_a_folder(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.startswith("decoder.layers.0"))
    altered = next(name for name in weights if name.startswith("encoder.layers.0"))
    weights[altered] = weights[altered] + 1e-3
    del weights[gone]
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    wrong = "\n".join(verify(folder, str(other)))
    assert f"AutoModelForMaskedLM: newly initialised: {gone}" in wrong
    assert f"AutoModelForMaskedLM: differs from the local one: {altered}" in wrong
    assert f"AutoModel: differs from the local one: {altered.removeprefix('encoder.')}" in wrong
    (other / "modeling_concept.py").write_text("import concept_encoder.modeling_concept\n")
    (line,) = verify(folder, str(other))
    assert line.startswith("it does not load: ModuleNotFoundError: import of concept_encoder halted")


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        ConceptEncoderModel,
        ConceptEncoderForDiffusionMLM,
        ConceptEncoderForMaskedLMPerceiver,
        ConceptEncoderForSequenceClassificationPerceiver,
        ConceptEncoderForSequenceClassificationViaDecoder,
        ConceptEncoderForSentencePairClassification,
    ],
)
def test_every_kind_of_checkpoint_verifies(pretrained, tmp_path, head):
    config = ConceptEncoderConfig.from_pretrained(pretrained)
    source = shutil.copytree(pretrained, tmp_path / "run")
    head(config).to(torch.bfloat16 if head is ConceptEncoderModel else torch.float32).save_pretrained(source)
    kept = json.loads((source / "config.json").read_text())["auto_map"]
    (tmp_path / "set").mkdir()
    assemble(source, tmp_path / "set", "me/example")
    assert json.loads((tmp_path / "set" / "config.json").read_text())["auto_map"] == kept
    assert verify(tmp_path / "set", str(tmp_path / "set")) == []


@pytest.mark.slow
def test_an_auto_class_that_would_answer_at_random_is_not_verified(pretrained, tmp_path):
    """As older runs have it: a decoder for a checkpoint of a classifier."""
    source = shutil.copytree(pretrained, tmp_path / "run")
    ConceptEncoderForSequenceClassificationPerceiver.from_pretrained(pretrained).save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    config["auto_map"]["AutoModelForMaskedLM"] = "modeling_concept.ConceptEncoderForDiffusionMLM"
    (source / "config.json").write_text(json.dumps(config))
    (tmp_path / "set").mkdir()
    assemble(source, tmp_path / "set", "me/example")
    (line,) = verify(tmp_path / "set", str(tmp_path / "set"))
    assert line.startswith("AutoModelForMaskedLM: newly initialised: decoder.")


FILL = """
import json, sys
sys.modules["concept_encoder"] = None
import transformers
from transformers import AutoModelForMaskedLM, pipeline
transformers.logging.set_verbosity_error()
name, revision = sys.argv[1:]
fill = pipeline("fill-mask", model=name, revision=revision, trust_remote_code=True)
answers = fill("the cat [MASK] in the barn .", top_k=3)
print(json.dumps([type(fill.model).__name__, [[each["token"], each["score"]] for each in answers]]))
"""


@pytest.mark.hub
@pytest.mark.slow
@pytest.mark.parametrize("corruption", ["mlm", "tsdae"])
def test_a_published_baseline_fills_masks_as_itself(corruption, hub, repo_id, tmp_path):
    run, options = tmp_path / "run", ["--corruption", corruption, "--max_length", "64"]
    if corruption == "tsdae":
        options += ["--decoder_query", "position"]
    library_pretrain(tiny_recipe(run, *options))
    push.main([str(run), "--repo_id", repo_id])
    commit = HfApi().repo_info(repo_id).sha
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-P", "-c", FILL, repo_id, commit]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, answers = json.loads(done.stdout.splitlines()[-1])
    assert name == ConceptEncoderForMaskedLMPerceiver.__name__
    model, tokenizer = (
        ConceptEncoderForMaskedLMPerceiver.from_pretrained(run).eval(),
        AutoTokenizer.from_pretrained(run),
    )
    batch = tokenizer("the cat [MASK] in the barn .", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        best = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id][0].softmax(-1).topk(3)
    assert [token for token, _ in answers] == best.indices.tolist()
    assert [score for _, score in answers] == pytest.approx(best.values.tolist(), rel=1e-4)


# --------------------------------------------------------------------------------------------------- push over HTTP


@pytest.mark.slow
def test_push_pull_and_use(run, hub, repo_id, tmp_path, capfd):
    """The whole way, by somebody without the package: the examples of the pushed card run, with their commit."""
    hub.fault(path_regex="resolve/.*model.safetensors", method="GET", truncate_after_bytes=100)
    push.main([str(run), "--repo_id", repo_id])
    printed = capfd.readouterr()
    sha = head(repo_id)
    assert printed.out.strip().endswith(f"done: {os.environ['HF_ENDPOINT']}/{repo_id}/tree/{sha}")
    assert TOKEN not in printed.out + printed.err
    downloads = [r for r in hub.requests() if r["method"] == "GET" and "resolve" in r["path"]]
    assert sum("model.safetensors" in request["path"] for request in downloads) > 1  # the first was cut short
    local = Path(snapshot_download(repo_id, revision=sha, cache_dir=tmp_path / "cache"))
    assert not any(TOKEN.encode() in path.read_bytes() for path in local.rglob("*") if path.is_file())
    blocks = (local / "README.md").read_text().split("```python\n")[1:]
    blocks = [block.split("```")[0] for block in blocks]
    examples = "\n".join(block for block in blocks if "sentence_transformers" not in block)
    examples = examples.replace("the full commit hash", sha)
    code = f"import sys\nsys.modules['concept_encoder'] = None\n{examples}\nprint(max_sim.shape, ids.shape)"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 2]) torch.Size([1, " in done.stdout


@pytest.mark.slow
def test_a_download_that_never_completes_is_not_called_done(run, hub, repo_id, capsys, monkeypatch):
    checks = [lambda *args: [], verify]
    monkeypatch.setattr(pushing, "verify", lambda *args: checks.pop(0)(*args))
    hub.fault(path_regex="resolve/.*config.json", times=None, status=404)
    code, line = fails([run, "--repo_id", repo_id], capsys)
    assert code == 1
    assert "it does not load: OSError: " in line
    assert line.endswith(
        f"So do not use {repo_id} at {head(repo_id)}. Run the same command again; if it stays so, open an issue"
    )


def test_push_makes_the_branch_hold_the_folder(folder, hub, repo_id):
    first = push_folder(folder, repo_id)
    assert first.oid == head(repo_id)
    assert held(repo_id) == files(folder)
    assert push_folder(folder, repo_id).oid == first.oid  # nothing has changed: no commit
    api = HfApi()
    for name in ("figures/old.png", "model-00001-of-00002.safetensors", "pytorch_model.bin", "notes.md"):
        api.upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id=repo_id)
    changed(folder)
    second = push_folder(folder, repo_id)
    assert second.oid == head(repo_id) != first.oid
    assert held(repo_id) == files(folder) | {"notes.md"}


@pytest.mark.slow
def test_a_private_repository(run, folder, hub, repo_id, unverified, capsys):
    push_folder(folder, repo_id, private=True)
    assert HfApi().repo_info(repo_id).private
    public = f"{repo_id}-public"
    push_folder(folder, public)
    code, line = fails([run, "--repo_id", public, "--private"], capsys)
    assert code == 2
    assert f"{public} exists and is public; make it private in its settings" in line


@pytest.mark.slow
def test_revisions_and_checkpoints(run, pretrained, hub, repo_id, unverified, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "small")
    shutil.rmtree(copy / "checkpoint-3")
    for step in (10, 20):
        checkpoint = shutil.copytree(pretrained, copy / f"checkpoint-{step}")
        (checkpoint / "optimizer.pt").write_bytes(b"state")
    push.main([str(copy), "--repo_id", repo_id])
    main = head(repo_id)
    push.main([str(copy), "--repo_id", repo_id, "--revision", "v2"])
    assert (head(repo_id), held(repo_id, "v2")) == (main, held(repo_id))
    push.main([str(copy), "--repo_id", repo_id, "--checkpoints"])
    assert head(repo_id) == main
    refs = HfApi().list_repo_refs(repo_id)
    assert {branch.name for branch in refs.branches} == {"main", "v2", "step-10", "step-20"}
    card = Path(snapshot_download(repo_id, revision="step-20", cache_dir=tmp_path / "cache")) / "README.md"
    assert "Intermediate checkpoint of step 20." in card.read_text()
    assert "**Not judged.**" in card.read_text()
    assert not any(name.startswith(("report", "figures")) for name in held(repo_id, "step-10"))
    assert f"{copy / 'checkpoint-10'} -> {repo_id}, step-10" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_needs_no_token_and_writes_nothing(run, hub, repo_id, unverified, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    push.main([str(run), "--repo_id", repo_id, "--dry_run"])
    printed = capsys.readouterr().out
    assert [(r["method"], r["path"]) for r in hub.requests()] == [("POST", "/api/validate-yaml")]
    assert "  model.safetensors\n" in printed
    assert "figures/ (" in printed
    assert "card: the Hub accepts its metadata" in printed
    assert printed.endswith("dry run: nothing was pushed\n")
    hub.fault(status=503)
    push.main([str(run), "--repo_id", repo_id, "--dry_run"])
    assert "card: metadata not checked, no answer" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- faults


@pytest.fixture
def second_push(run, hub, repo_id, unverified, tmp_path) -> tuple[Path, str]:
    """(run with other weights than those on the Hub, revision there)."""
    push.main([str(run), "--repo_id", repo_id])
    copy = shutil.copytree(run, tmp_path / "changed")
    changed(copy)
    return copy, head(repo_id)


FAULTS = {
    "503 at the commit": ({"path_regex": "/commit/", "status": 503}, "the Hub answered 503. Nothing is half done"),
    "503 before it": ({"path_regex": "/repos/create", "status": 503}, "the Hub answered 503. Nothing is half done"),
    "dropped": (
        {"path_regex": "/commit/", "close": True},
        r"no answer from the Hub (RemoteProtocolError). Nothing is",
    ),
    "403": ({"path_regex": "/commit/", "status": 403}, "your token may not write to me/"),
    "404": ({"path_regex": "/commit/", "status": 404}, "the Hub does not find me/"),
    "401": ({"path_regex": "/commit/", "status": 401}, "the Hub does not know you (401). Log in with `hf auth login`"),
    "412": ({"path_regex": "/commit/", "status": 412}, "was changed by somebody else during the push (412)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_the_old_state_and_a_second_run_completes(name, second_push, hub, repo_id, capsys):
    run, before = second_push
    spec, message = FAULTS[name]
    hub.fault(**spec)
    code, line = fails([run, "--repo_id", repo_id], capsys)
    assert code == 1
    assert message in line
    assert head(repo_id) == before
    push.main([str(run), "--repo_id", repo_id])
    assert head(repo_id) != before
    assert f"done: {os.environ['HF_ENDPOINT']}/{repo_id}/tree/{head(repo_id)}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_hiccup_of_the_file_store_is_ridden_out(second_push, hub, repo_id):
    run, before = second_push
    hub.fault(method="PUT", status=503)
    push.main([str(run), "--repo_id", repo_id])
    assert head(repo_id) != before
    statuses = [request["status"] for request in hub.requests() if request["method"] == "PUT"]
    assert 503 in statuses and 200 in statuses


@pytest.mark.slow
def test_somebody_else_pushes_in_between(second_push, hub, repo_id, capsys, monkeypatch):
    run, _ = second_push
    theirs = []
    listed = HfApi.list_repo_files

    def intrude(self, *args, **kwargs):
        if not theirs:
            theirs.append(HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id).oid)
        return listed(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "list_repo_files", intrude)
    code, line = fails([run, "--repo_id", repo_id], capsys)
    assert code == 1
    assert f"{repo_id} was changed by somebody else during the push (412)" in line
    assert head(repo_id) == theirs[0]
    push.main([str(run), "--repo_id", repo_id])
    assert "x.txt" in held(repo_id)


@pytest.mark.parametrize("token", ["hf_of_somebody_else", None])
def test_without_a_good_token(run, hub, repo_id, unverified, monkeypatch, capsys, token):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    code, line = fails([run, "--repo_id", repo_id], capsys)
    assert code == 1
    assert "the Hub does not know you (401). Log in with `hf auth login`, or set HF_TOKEN" in line
    assert "hf_of" not in line


@pytest.mark.parametrize("status", [401, 503])
def test_a_traceback_holds_no_token(folder, hub, repo_id, status):
    hub.fault(path_regex="/commit/", status=status)
    with pytest.raises(HfHubHTTPError) as failed:
        push_folder(folder, repo_id)
    shown = traceback.TracebackException.from_exception(failed.value)
    assert TOKEN not in "".join(shown.format())
    assert TOKEN not in repr(failed.value)


def test_a_name_that_is_not_ours(run, hub, unverified, capsys):
    code, line = fails([run, "--repo_id", "somebody/else"], capsys)
    assert (code, "your token may not write to somebody/else (403)" in line) == (1, True)


@pytest.mark.slow
def test_killed_in_mid_push(folder, hub, repo_id):
    old = push_folder(folder, repo_id).oid
    changed(folder)
    hub.fault(path_regex="/commit/", delay_s=4)
    seen_before = len(hub.requests())
    code = "import sys; from pathlib import Path; from concept_encoder.eval.hub.publishing import push_folder; "
    code += "push_folder(Path(sys.argv[1]), sys.argv[2])"
    child = subprocess.Popen(
        [sys.executable, "-c", code, folder, repo_id], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300  # a busy machine imports slowly
    while not any("/preupload/" in request["path"] for request in hub.requests()[seen_before:]):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    quiet = 0  # looks in a row at which the server was done with all it has got
    while quiet < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        quiet = quiet + 1 if all(request["status"] for request in hub.requests()[seen_before:]) else 0
    assert held(repo_id) == files(folder)
    if head(repo_id) == old:
        push_folder(folder, repo_id)
    assert head(repo_id) != old
    copy = snapshot_download(repo_id, revision=head(repo_id))
    assert (Path(copy) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_errors_in_words():
    assert "hf auth login" in explain(LocalTokenNotFoundError("no token"), "me/x")
    assert explain(ConnectionError("refused"), "me/x", "do that") == (
        "no answer from the Hub (ConnectionError). Nothing is half done, the branch holds what it held before: do "
        "that when the network is back"
    )


# ------------------------------------------------------------------------------------------------------------ Trainer


def train(folder: Path, repo_id: str, *arguments: str) -> None:
    options = ["--max_steps", "2", "--max_train_documents", "64", "--max_validation_documents", "8"]
    options += ["--num_eval_timesteps", "2", "--save_strategy", "steps", "--save_steps", "1", "--push_to_hub", "True"]
    pretrain(["tiny", "--output_dir", str(folder), "--hub_model_id", repo_id, *options, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_trainer_pushes_the_upload_set(strategy, hub, repo_id, tmp_path):
    best = ["--load_best_model_at_end", "True", "--eval_strategy", "steps", "--eval_steps", "1"]
    train(tmp_path / "run", repo_id, "--hub_strategy", strategy, *best)
    found = held(repo_id)
    state = {"checkpoint": "last-checkpoint/", "all_checkpoints": "checkpoint-"}.get(strategy)
    kept = {name for name in found if state and name.startswith(state)}
    assert found - kept == CHECKPOINT | {"recipe.yaml"}
    assert any(name.endswith("optimizer.pt") for name in kept) == (state is not None)
    local = Path(snapshot_download(repo_id, cache_dir=tmp_path / "cache"))
    card = (local / "README.md").read_text()
    assert "**Not decided.**" in card
    assert "Recipe `tiny` of the package concept-encoder" in card
    private = TOKEN.encode(), str(tmp_path).encode()
    uploaded = [path.read_bytes() for path in local.rglob("*") if path.is_file()]
    assert not any(each in content for content in uploaded for each in private)
    titles = [commit.title for commit in HfApi().list_repo_commits(repo_id)] if strategy == "every_save" else []
    assert not titles or "Training in progress, step 1" in titles


@pytest.mark.slow
def test_a_push_that_fails_after_training_says_how_to_go_on(hub, repo_id, tmp_path, capsys):
    hub.fault(path_regex="/commit/", status=503, times=None)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", repo_id, "--hub_strategy", "end")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1
    assert f"the run is complete in {tmp_path / 'run'}, but not on the Hub: the Hub answered 503." in line
    assert f"concept-encoder push {tmp_path / 'run'} --repo_id {repo_id}" in line


@pytest.mark.slow
def test_a_push_that_fails_during_training_is_made_good_at_the_end(hub, repo_id, tmp_path, caplog):
    hub.fault(path_regex="/commit/", status=503)
    train(tmp_path / "run", repo_id, "--hub_strategy", "every_save", "--hub_always_push", "True")
    assert held(repo_id) == CHECKPOINT | {"recipe.yaml"}
    assert "a push during training failed (HfHubHTTPError); the next one brings all of it" in caplog.text


def test_a_token_among_the_arguments_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hub_token would be written into recipe.yaml; log in") as error:
        ConceptTrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret")
    assert "hf_secret" not in str(error.value)


def test_pushing_needs_to_know_what(pretrained, tokenizer, tmp_path):
    from concept_encoder.trainers.objectives.objective import ObjectiveArguments

    model = ConceptEncoderForDiffusionMLM.from_pretrained(pretrained)
    options = {"model": model, "objective_args": ObjectiveArguments(), "processing_class": tokenizer}
    with pytest.raises(ValueError, match=r"push_to_hub=True needs assemble"):
        ConceptTrainer(args=ConceptTrainingArguments(output_dir=str(tmp_path), push_to_hub=True), **options)
    trainer = ConceptTrainer(args=ConceptTrainingArguments(output_dir=str(tmp_path)), **options)
    with pytest.raises(ValueError, match=r"push_to_hub needs ConceptTrainer\(assemble=...\)"):
        trainer.push_to_hub()
