import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from concept_encoder.eval.hub.code_check import check_code, compare_code, other_code
from concept_encoder.eval.loading.checkpoints import load_encoder
from concept_encoder.scripts import check_code as script

ROOT = Path(__file__).resolve().parents[2]
FILES = ["configuration_concept.py", "modeling_concept.py"]


@pytest.fixture
def folder(pretrained, tmp_path) -> Path:
    return shutil.copytree(pretrained, tmp_path / "checkpoint")


def test_a_checkpoint_of_this_package(folder):
    files = compare_code(folder)
    assert [file.name for file in files] == FILES
    for file in files:
        assert file.equal and not file.difference
        assert file.digest == hashlib.sha256((ROOT / file.name).read_bytes()).hexdigest()
    assert check_code(str(folder)).elsewhere == []


def test_what_was_changed_added_and_removed(folder):
    path = folder / "modeling_concept.py"
    path.write_text(path.read_text().replace("import math\n", "import math\nimport os\n", 1))
    (folder / "configuration_concept.py").unlink()
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit\n")
    files = {file.name: file for file in compare_code(folder)}
    assert not any(file.equal for file in files.values())
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


def test_a_folder_without_code(folder):
    for name in FILES:
        (folder / name).unlink()
    assert compare_code(folder) == []


def test_reading_weights_says_once_that_the_code_is_another(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_encoder(folder)
    assert not caplog.records
    other = folder.with_name("changed")
    shutil.copytree(folder, other)
    (other / "modeling_concept.py").write_text("raise SystemExit\n")
    with caplog.at_level(logging.WARNING):
        load_encoder(other)
        load_encoder(other)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "its modeling_concept.py differ from this package's, which is what runs; concept-encoder check" in said[0]


def test_the_command_prints_hashes_and_differences(folder, capsys):
    script.main([str(folder)])
    assert capsys.readouterr().out.count("is this package's (sha256 ") == 2
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


def test_a_repository_is_named_by_its_commit_and_its_weights_are_not_fetched(hub, folder, capsys):
    api = HfApi()
    repo = api.create_repo("me/check-code", exist_ok=True).repo_id
    commit = api.upload_folder(repo_id=repo, folder_path=folder)
    hub.admin("log", "DELETE")
    script.main([repo])
    assert capsys.readouterr().out.splitlines()[0] == f'{repo} at revision="{commit.oid}"'
    assert not any("safetensors" in request["path"] and "resolve" in request["path"] for request in hub.requests())
    with pytest.raises(SystemExit):
        script.main([repo, "--revision", "nowhere"])
    assert "concept-encoder check-code: error: " in capsys.readouterr().err
