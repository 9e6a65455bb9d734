import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from concept_encoder.eval.hub.code_check import check_code, compare_code, other_code
from concept_encoder.eval.loading.checkpoints import load
from concept_encoder.scripts import check_code as script

ROOT = Path(__file__).resolve().parents[2]
FILES = ["configuration_concept.py", "modeling_concept.py", "reading_concept.py"]


@pytest.fixture
def folder(pretrained, tmp_path) -> Path:
    return shutil.copytree(pretrained, tmp_path / "checkpoint")


def test_a_checkpoint_of_this_package(folder):
    files = compare_code(folder)
    assert [file.name for file in files] == FILES
    for file in files:
        assert file.equal and not file.difference
        assert file.digest == hashlib.sha256((ROOT / file.name).read_bytes()).hexdigest()
    assert check_code(str(folder)).elsewhere == [] and check_code(folder).own


def test_what_was_changed_added_and_removed(folder):
    path = folder / "modeling_concept.py"
    path.write_text(path.read_text().replace("import math\n", "import math\nimport os\n", 1))
    (folder / "configuration_concept.py").unlink()
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit\n")
    files = {file.name: file for file in compare_code(folder)}
    assert [name for name, file in files.items() if file.equal] == ["reading_concept.py"]
    assert files["configuration_concept.py"].verdict == "configuration_concept.py is missing from the checkpoint"
    assert "+import os" in files["modeling_concept.py"].difference
    assert (
        "modeling_concept.py differs from this package's in 1 lines (sha256 " in files["modeling_concept.py"].verdict
    )
    assert "custom_generate/generate.py is no file of this package" in files["custom_generate/generate.py"].verdict
    assert other_code(folder) == ["modeling_concept.py"]


def test_code_named_elsewhere(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "other/repository--modeling.Evil"
    (folder / "config.json").write_text(json.dumps({**config, "custom_pipelines": {"x": {}}}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert check_code(str(folder)).elsewhere == [
        "config.json names other code: AutoModel: other/repository--modeling.Evil",
        "config.json names other code: custom_pipelines",
        "tokenizer_config.json names other code: AutoTokenizer: ['evil.Evil', None]",
    ]


def evil(folder: Path, name: str, change) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(change(content)))


MODULE = {"idx": 4, "name": "4", "path": "", "type": "other/repository--modeling.Evil"}


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("modules.json", lambda c: [*c, MODULE], "type: other/repository--modeling.Evil"),
        ("modules.json", lambda c: [*c, MODULE | {"type": "os.system"}], "type: os.system"),
        ("modules.json", lambda c: [*c, MODULE | {"type": 3}], "type: 3"),
        ("4_Router/router_config.json", lambda c: {"types": {"a": "evil.Evil"}}, "types: evil.Evil"),
        ("adapter_config.json", lambda c: {"auto_mapping": {"parent_library": "evil"}}, "auto_mapping"),
        ("processor_config.json", lambda c: {"auto_map": {"AutoProcessor": "evil.Evil"}}, "AutoProcessor: evil.Evil"),
        (
            "preprocessor_config.json",
            lambda c: {"x": [{"auto_map": {"AutoImageProcessor": "a/b--evil.Evil"}}]},
            "AutoImageProcessor: a/b--evil.Evil",
        ),
        ("tokenizer_config.json", lambda c: c | {"auto_map": ["evil.Evil"]}, ": ['evil.Evil']"),
        ("generation_config.json", lambda c: {"custom_generate": "evil/repository"}, "custom_generate"),
        (
            "sentence_bert_config.json",
            lambda c: c | {"model_kwargs": {"attn_implementation": "evil/x"}},
            "model_kwargs",
        ),
        ("config.json", lambda c: c | {"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ("config.json", lambda c: c | {"auto_map": "evil.Evil"}, ": evil.Evil"),
        (
            "config.json",
            lambda c: c | {"auto_map": {"AutoModel": "modeling_concept.ConceptEncoderForDiffusionMLM"}},
            "AutoModel: modeling_concept.ConceptEncoderForDiffusionMLM",
        ),
    ],
)
def test_every_file_that_can_name_code_is_read(folder, name, change, line):
    evil(folder, name, change)
    found = check_code(folder)
    assert f"{name} names other code: {line}" in found.elsewhere
    assert not found.own


@pytest.mark.parametrize("name", ["config.json", "modules.json", "processor_config.json", "deep/er/modules.json"])
def test_a_file_that_cannot_be_read_is_not_vouched_for(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"[" * 100_000)
    lines = check_code(folder).elsewhere
    assert len(lines) == 1 and lines[0].startswith(f"{name} cannot be read (")


@pytest.mark.parametrize(
    "name", ["fast.so", "modeling_concept.cpython-311.PYC", "deep/weights.pkl", "pytorch_model.bin", "run.sh", "x.pt"]
)
def test_what_may_run_and_cannot_be_compared(folder, name, capsys):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert check_code(folder).elsewhere == [f"{name} may run code when it is loaded, and cannot be compared"]
    with pytest.raises(SystemExit) as stopped:
        script.main([str(folder)])
    assert stopped.value.code == 1
    assert name in capsys.readouterr().out


def test_a_link_to_another_folder_and_another_spelling(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (folder / "custom_generate").symlink_to(tmp_path / "outside")
    (folder / "Modules.JSON").write_text("{}")
    assert check_code(folder).elsewhere == [
        "Modules.JSON is not written .py or .json, and is not looked into",
        "custom_generate is a link to another folder, which is not looked into",
    ]


def test_nothing_of_a_checkpoint_reaches_the_terminal_as_it_is(folder, capsys):
    hidden = "\x1b[2J\x1b]0;title\x07 \u202emoc.live\u202c \u200b \x9b1m \r"
    with (folder / "modeling_concept.py").open("a", newline="") as file:
        file.write(f"# {hidden}import os\n")
    (folder / "a\x1b[31m.py").write_text("x\n")
    evil(folder, "tokenizer_config.json", lambda c: c | {"auto_map": {"Auto\u202e": hidden}})
    evil(folder, "b\x1b.json", lambda c: {"auto_map": "x"})
    with pytest.raises(SystemExit):
        script.main([str(folder), "--diff"])
    out = capsys.readouterr().out
    assert all(each.isprintable() for each in out.replace("\n", ""))
    assert r"+# \x1b[2J\x1b]0;title\x07 \u202emoc.live\u202c \u200b \x9b1m \rimport os" in out
    with pytest.raises(SystemExit):
        script.main(["no\x1b[31mwhere"])
    assert "\x1b" not in capsys.readouterr().err


def test_a_whole_run_folder_with_reports_is_vouched_for(folder):
    (folder / "report.json").write_text(json.dumps({"kind": "report", "type": "x"}))
    (folder / "notes.md").write_text("text")
    assert check_code(folder).own and check_code(load(folder)).own


def test_the_checkpoints_in_a_run_folder_are_vouched_for(folder):
    inner = folder / "checkpoint-2"
    inner.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        shutil.copy(path, inner)
    assert check_code(folder).own
    evil(folder, "checkpoint-2/config.json", lambda c: c | {"auto_map": {"AutoModel": "evil.Evil"}})
    assert check_code(folder).elsewhere == ["checkpoint-2/config.json names other code: AutoModel: evil.Evil"]


def test_a_folder_without_code(folder):
    for name in FILES:
        (folder / name).unlink()
    assert compare_code(folder) == []


@pytest.mark.slow
def test_reading_weights_says_once_that_the_code_is_another(folder, caplog):
    with caplog.at_level(logging.WARNING):
        _ = load(folder).model
    assert not caplog.records
    other = folder.with_name("changed")
    shutil.copytree(folder, other)
    (other / "modeling_concept.py").write_text("raise SystemExit\n")
    with caplog.at_level(logging.WARNING):
        _ = load(other).model
        _ = load(other).model
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "its modeling_concept.py differ from this package's, which is what runs; concept-encoder check" in said[0]


def test_the_command_prints_hashes_and_differences(folder, capsys):
    script.main([str(folder)])
    assert capsys.readouterr().out.count("is this package's (sha256 ") == len(FILES)
    with (folder / "modeling_concept.py").open("a") as file:
        file.write("import os\n")
    with pytest.raises(SystemExit) as stopped:
        script.main([str(folder), "--diff"])
    out = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "modeling_concept.py differs from this package's in 1 lines" in out and "\n+import os\n" in out


@pytest.mark.parametrize("name", ["nowhere", "../x", "a/b/c", "~/x"])
def test_names_that_are_no_checkpoint(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        script.main([name])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("concept-encoder check-code: error: no folder ")


@pytest.mark.slow
def test_a_repository_is_named_by_its_commit_and_its_weights_are_not_fetched(hub, folder, capsys):
    api = HfApi()
    repo = api.create_repo("me/check-code", exist_ok=True).repo_id
    commit = api.upload_folder(repo_id=repo, folder_path=folder)
    hub.admin("log", "DELETE")
    script.main([repo])
    assert capsys.readouterr().out.splitlines()[0] == f'{repo} at revision="{commit.oid}"'
    assert not any("safetensors" in request["path"] and "resolve" in request["path"] for request in hub.requests())
    api.upload_file(path_or_fileobj=b"x", path_in_repo="custom_generate/lib.so", repo_id=repo)
    with pytest.raises(SystemExit) as stopped:
        script.main([repo])
    assert stopped.value.code == 1
    assert "custom_generate/lib.so may run code when it is loaded" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main([repo, "--revision", "nowhere"])
    assert "concept-encoder check-code: error: " in capsys.readouterr().err
