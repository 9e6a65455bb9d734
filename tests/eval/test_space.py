import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from explorable import explorable
from huggingface_hub import HfApi

from concept_encoder.eval.explorer.space import REQUIREMENTS, write_space
from concept_encoder.scripts.explore import main

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra `explore` is not installed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published(running_hub, tmp_path_factory):
    """Commit of a checkpoint on the tests' Hub, with a later one on top."""
    api = HfApi()
    api.create_repo("me/explorable", exist_ok=True)
    folder = explorable(tmp_path_factory.mktemp("published") / "run")
    commit = api.upload_folder(repo_id="me/explorable", folder_path=folder).oid
    api.upload_file(path_or_fileobj=b"later", path_in_repo="later.txt", repo_id="me/explorable")
    return commit


@pytest.mark.slow
def test_a_space_is_pinned(hub, published, tmp_path, capsys):
    main(["me/explorable", "--revision", published, "--space_dir", str(tmp_path / "space")])
    printed = capsys.readouterr().err
    assert f"at commit {published}" in printed and "--repo-type space" in printed
    assert f'load_explorer("me/explorable", "{published}")' in (tmp_path / "space/app.py").read_text()
    _, header, page = (tmp_path / "space/README.md").read_text().split("---\n")
    header = yaml.safe_load(header)
    assert header["sdk"] == "gradio" and header["sdk_version"] == version("gradio")
    assert header["app_file"] == "app.py" and header["models"] == ["me/explorable"]
    assert published in page
    pins = dict(line.split("==") for line in (tmp_path / "space/requirements.txt").read_text().split())
    assert pins["transformers"] == version("transformers") and "+" not in pins["torch"]
    newest = write_space("me/explorable", None, tmp_path / "newest")
    assert newest == HfApi().model_info("me/explorable").sha != published
    with pytest.raises(ValueError, match="is not an empty folder; give another --space_dir"):
        write_space("me/explorable", None, tmp_path / "newest")
    with pytest.raises(SystemExit) as stop:
        main(["me/nothing-here", "--space_dir", str(tmp_path / "other")])
    assert stop.value.code == 2 and not (tmp_path / "other").exists()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ": error: " in last and "Repository Not Found" in last


def test_only_what_is_on_the_hub_becomes_a_space(tmp_path):
    for checkpoint in (str(tmp_path), "nowhere"):
        with pytest.raises(ValueError, match="is not a Hub id; push it first with concept-encoder push"):
            write_space(checkpoint, None, tmp_path / "space")


def test_requirements_are_the_package_s_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {line.split(">=")[0] for line in [*project["dependencies"], *extras["train"], *extras["eval"]]}
    assert set(REQUIREMENTS) == wanted - {"concept-encoder[train]"}


@pytest.mark.slow
def test_the_space_runs_from_its_own_folder(hub, published, tmp_path):
    """With its own copy of the package and no other, as on the Hub."""
    space = tmp_path / "space"
    write_space("me/explorable", published, space)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False"}
    check = "import concept_encoder; print('FROM', concept_encoder.__file__)\n"
    (space / "app.py").write_text(check + (space / "app.py").read_text())
    with (tmp_path / "log").open("w") as log:
        app = subprocess.Popen(
            [sys.executable, "-u", "app.py"], cwd=space, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            title = _title(tmp_path / "log", app)
        finally:
            app.kill()
            app.wait()
    output = (tmp_path / "log").read_text()
    assert f"FROM {space / 'concept_encoder' / '__init__.py'}" in output
    assert title == "Concept explorer: me/explorable", output


def _title(log: Path, app: subprocess.Popen) -> str | None:
    """Of the page at the address that the app says it serves, on a port it has found free."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and app.poll() is None:
        served = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if served is not None:
            with urllib.request.urlopen(f"{served[0]}/config", timeout=60) as answer:
                return json.load(answer)["title"]
        time.sleep(0.2)
    return None
