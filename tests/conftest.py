"""Shared fixtures, and a Hub on 127.0.0.1 with caches of its own, set up before any Hugging Face library is imported.

Those libraries read their environment at import, so this file imports none of them at its top.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
LOCALHUB = SHARED / "localhub" / "localhub"
SMALL_HUB = Path(__file__).parent / "support" / "small_hub.py"

# Property tests try the same cases in every run, and others with --hypothesis-profile=random.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("repeatable")


def pytest_configure(config):
    in_worker = hasattr(config, "workerinput")
    if not in_worker and config.getoption("dist", "no") != "no":
        return  # pytest-xdist's controller runs no test
    if in_worker:
        os.environ["OMP_NUM_THREADS"] = "1"
    home = tempfile.TemporaryDirectory(prefix="concept-encoder-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN_PATH"):
        os.environ.pop(name, None)  # each would win over HF_HOME
    os.environ |= {"HF_HOME": f"{home.name}/hf", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    os.environ |= {
        "HF_ENDPOINT": _start_hub(config, home.name),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_local",
        "HF_HUB_DISABLE_XET": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def _start_hub(config, folder):
    """localhub with its data where it is, else a small one of our own without any."""
    command = [sys.executable, SMALL_HUB]
    if LOCALHUB.exists():
        command = [sys.executable, LOCALHUB, "--root", f"{folder}/hub", "--seed-dir", SHARED / "data"]
    # The shell stops the server at the end of its input, so also when this process is killed and cleans nothing up.
    guarded = ["sh", "-c", '"$@" & cat >/dev/null; kill $!; wait', "hub", *command]
    server = subprocess.Popen(guarded, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    config.add_cleanup(lambda: server.communicate(timeout=30))
    endpoint = server.stdout.readline().strip().partition("=")[2]
    if not endpoint:
        raise pytest.UsageError(f"{command[1]} did not start")
    return endpoint


class Hub:
    """The running Hub, localhub or the small one: faults to inject, requests it has seen."""

    def admin(self, what, method="GET", data=None):
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"{os.environ['HF_ENDPOINT']}/__admin__/{what}", body, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def fault(self, **spec):
        self.admin("faults", "POST", spec)

    def requests(self):
        return self.admin("log")["requests"]


@pytest.fixture
def hub():
    hub = Hub()
    hub.admin("log", "DELETE")
    yield hub
    hub.admin("faults", "DELETE")


@pytest.fixture
def seeded_hub(hub):
    """A Hub that holds the data of ../shared."""
    if not LOCALHUB.exists():
        pytest.skip("../shared/localhub is not here")
    return hub


@pytest.fixture(scope="session")
def shared():
    """Folder of real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    from concept_encoder.trainers.data.microworld import microworld_tokenizer

    return microworld_tokenizer()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Folder of a tiny pretraining checkpoint, never trained; tests copy it before they change it."""
    from small_tasks import save_pretrained

    return save_pretrained(tmp_path_factory.mktemp("pretrained") / "run")
