"""Shared fixtures, and a Hub on 127.0.0.1 with caches of its own.

The Hugging Face libraries read their environment at import, so it is set before any of them is imported, and this file
imports none at its top. The Hub starts when the first test asks for it; until then its port refuses every request.
"""

import json
import os
import socket
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
PORT = pytest.StashKey[socket.socket]()  # of the Hub, held until it starts

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
    port = config.stash[PORT] = socket.socket()
    config.add_cleanup(port.close)
    port.bind(("127.0.0.1", 0))
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port.getsockname()[1]}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_local",
        "HF_HUB_DISABLE_XET": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def pytest_itemcollected(item):
    if "running_hub" in item.fixturenames:
        item.add_marker("hub")


@pytest.fixture(scope="session")
def running_hub(request, tmp_path_factory):
    """localhub with its data where it is, else a small one of our own without any."""
    port = request.config.stash[PORT]
    command = [sys.executable, SMALL_HUB]
    if LOCALHUB.exists():
        command = [sys.executable, LOCALHUB, "--root", tmp_path_factory.mktemp("hub"), "--seed-dir", SHARED / "data"]
    command += ["--port", str(port.getsockname()[1])]
    port.close()
    # The shell stops the server at the end of its input, so also when this process is killed and cleans nothing up.
    guarded = ["sh", "-c", '"$@" & cat >/dev/null; kill $!; wait', "hub", *command]
    server = subprocess.Popen(guarded, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ready = server.stdout.readline().strip()
    assert ready == f"HF_ENDPOINT={os.environ['HF_ENDPOINT']}", f"{command[1]} did not start"
    yield
    server.communicate(timeout=30)


class Hub:
    """What the tests ask of the Hub besides its own interface: faults to inject, requests it has seen."""

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
def hub(running_hub):
    """The Hub with no fault and an empty log; a test that asks for it is marked `hub`."""
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
    """Folder of real data next to the checkout."""
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
