"""What the explorer's server answers, asked as an attacker would: over HTTP, by another name, for files."""

import http.client
import json
import os
import tempfile
from pathlib import Path
from urllib.parse import urlparse

import pytest
from explorable import TEXT, explorable

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="the extra `explore` is not installed")

from concept_encoder.eval.explorer.app import MAX_BODY, build_app, launch_app
from concept_encoder.eval.explorer.explorer import load_explorer


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    app = build_app(load_explorer(str(explorable(tmp_path_factory.mktemp("served") / "latent"))))
    url = launch_app(app, prevent_thread_lock=True, quiet=True, inbrowser=False)[1]
    yield urlparse(url).netloc
    app.close(verbose=False)


def ask(address: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def read(address: str, *data: object) -> str:
    """What the endpoint `read` says of these values."""
    body = json.dumps({"data": data}).encode()
    status, said = ask(address, "POST", "/gradio_api/call/read", body, Content_Type="application/json")
    assert status == 200, said
    return ask(address, "GET", f"/gradio_api/call/read/{json.loads(said)['event_id']}")[1]


@pytest.mark.slow
def test_the_page_and_its_clients_are_served(address):
    for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
        assert ask(address, "GET", path)[0] == 200, path
    assert "event: complete" in read(address, TEXT, "concepts read tokens", 0)


@pytest.mark.parametrize("values", [(None, None, None), (TEXT, None, None), ("x" * 20_000, "concepts read tokens", 0)])
def test_null_fields_and_long_texts_are_errors_of_the_request(address, values):
    assert "event: error" in read(address, *values)
    assert "event: complete" in read(address, TEXT, "concepts read tokens", 0)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "169.254.169.254", "localhost.evil.example", ""]
)
def test_another_name_is_refused(address, host):
    """As a page elsewhere has it whose name was made to point here (DNS rebinding)."""
    assert ask(address, "GET", "/", Host=host)[0] == 400
    assert ask(address, "GET", "/", Host=f"localhost:{address.rpartition(':')[2]}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/upload/"),
        ("POST", "//gradio_api/upload"),
        ("POST", "/gradio_api/%75pload/x"),
        ("POST", "/upload"),
        ("GET", "/gradio_api/upload_progress?upload_id=1"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file%3D/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("HEAD", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/stream/x"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/run-history/records"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/profiling/summary"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
def test_routes_that_take_or_hand_out_files_are_closed(address, method, path):
    before = set(Path(tempfile.gettempdir(), "gradio").rglob("*"))
    boundary = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhi\r\n--x--\r\n'
    body = boundary if method == "POST" else None
    status, said = ask(address, method, path, body, Content_Type="multipart/form-data; boundary=x")
    assert status == 404 and said in ("There is nothing here.", "")
    assert set(Path(tempfile.gettempdir(), "gradio").rglob("*")) == before


def test_large_requests_are_not_read(address):
    status, said = ask(address, "POST", "/gradio_api/call/read", b"x" * (MAX_BODY + 1))
    assert (status, said) == (413, "A request may have 1,000,000 bytes.")
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/gradio_api/call/read", iter([b"x"]), {"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 411
