"""A client generated from the OpenAPI document drives `zfsilod --simulate` over its socket.

The generator, openapi-python-client, and the HTTP library of its clients, httpx, know nothing of
zfsilo but the document.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.playground import CONFIG, simulated_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = Path(__file__).parents[2] / "proto/zfsilo/v1/openapi.json"
PACKAGE = "zfsilo_http_client"
GENERATE = ("generate", "--meta", "none", "--path", DOCUMENT, "--output-path")
# Streams are outside of what the generator knows: it leaves their response out, and says so.
WITHOUT_RESPONSE = (
    "GET /v1/operations:watch",
    "GET /v1/snapshots/{snapshot}:readBlocks",
)
GIB = 1 << 30


class GeneratedClient:
    """The generated package, connected to a daemon: methods by name, bodies as dictionaries."""

    def __init__(self, package: Any, socket: Path) -> None:
        transport = httpx.HTTPTransport(uds=str(socket))
        self._package = package
        self._client = package.Client(
            base_url="http://zfsilo", httpx_args={"transport": transport}, timeout=60
        )

    def call(self, method: str, *path: str, body: Any = None, **parameters: Any) -> Any:
        """Call `service.method` and return the parsed response, of the type in the document."""
        function = importlib.import_module(f"{self._package.__name__}.api.{method}")
        if body is not None:
            parameters["body"] = self._body(method).from_dict(body)
        return function.sync(*path, client=self._client, **parameters)

    def _body(self, method: str) -> Any:
        """Return the class of a method's body."""
        words = method.rpartition(".")[2].split("_")
        name = "".join(word.capitalize() for word in words)
        models = self._package.models
        return getattr(models, f"{name}Body", None) or getattr(models, f"{name}Request", None)

    def close(self) -> None:
        """Close the connections."""
        self._client.get_httpx_client().close()


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The generated package, imported."""
    folder = tmp_path_factory.mktemp("generated")
    command: list[str | Path] = [sys.executable, "-m", "openapi_python_client"]
    command += [*GENERATE, folder / PACKAGE]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == len(WITHOUT_RESPONSE), done.stdout
    for warning, method in zip(warnings, WITHOUT_RESPONSE, strict=True):
        assert method in warning
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module(PACKAGE)
        importlib.import_module(f"{PACKAGE}.models")
        yield package
    finally:
        sys.path.remove(str(folder))


@pytest.fixture
def client(generated: Any, tmp_path: Path) -> Iterator[GeneratedClient]:
    """The client of a simulated daemon."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/zfsilod.toml").write_text(CONFIG)
    with simulated_daemon(tmp_path):
        connected = GeneratedClient(generated, tmp_path / "run/zfsilod.sock")
        yield connected
        connected.close()


def test_it_drives_a_volume_through_its_life(client: GeneratedClient) -> None:
    made = client.call(
        "volume_service.create_volume", body={"capacity_bytes": str(GIB)}, volume_id="data"
    )
    assert (made.volume.name, made.operation.state.value) == (
        "volumes/data",
        "OPERATION_STATE_DONE",
    )
    client.call("volume_service.publish_volume", "data", body={"host": "hosts/demo"})
    attached = client.call(
        "volume_service.attach_volume",
        body={"server": "demo", "volume": "data", "state": "STATE_MOUNTED", "path": "/srv/data"},
    )
    assert [mount.path for mount in attached.volume.attachment.mounts] == ["/srv/data"]
    listed = client.call("volume_service.list_volumes", filter_="id=data")
    assert [volume.name for volume in listed.volumes] == ["volumes/data"]
    client.call("volume_service.detach_volume", "data", body={"state": "STATE_ABSENT"})
    client.call("volume_service.unpublish_volume", "data", body={"host": "hosts/demo"})
    gone = client.call("volume_service.delete_volume", "data")
    assert gone.operation.state.value == "OPERATION_STATE_DONE"


def test_an_error_is_of_the_type_in_the_document(client: GeneratedClient) -> None:
    error = client.call("volume_service.get_volume", "data")
    assert type(error).__name__ == "ErrorStatus"
    assert (error.code, error.message) == (5, "there is no volume data on this host")
    (detail,) = error.details
    assert (detail.reason, detail.metadata.to_dict()) == ("NOT_FOUND", {"volume": "data"})
