"""A client of the API server: objects as dictionaries, and waits that end by a watch."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Object = dict[str, Any]

T = TypeVar("T")
WITHIN_S = 120.0
CALL_S = 60.0
WATCH_S = 30
GROUPS = {
    "": "api/v1",
    "deployments": "apis/apps/v1",
    "daemonsets": "apis/apps/v1",
    "statefulsets": "apis/apps/v1",
    "storageclasses": "apis/storage.k8s.io/v1",
    "volumeattachments": "apis/storage.k8s.io/v1",
    "volumeattributesclasses": "apis/storage.k8s.io/v1",
    "csidrivers": "apis/storage.k8s.io/v1",
    "csinodes": "apis/storage.k8s.io/v1",
    "csistoragecapacities": "apis/storage.k8s.io/v1",
    "volumesnapshots": "apis/snapshot.storage.k8s.io/v1",
    "volumesnapshotcontents": "apis/snapshot.storage.k8s.io/v1",
    "volumegroupsnapshots": "apis/groupsnapshot.storage.k8s.io/v1",
    "volumegroupsnapshotcontents": "apis/groupsnapshot.storage.k8s.io/v1",
}
KIND_NAMES = {
    "namespaces": "Namespace",
    "pods": "Pod",
    "persistentvolumes": "PersistentVolume",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "statefulsets": "StatefulSet",
    "csidrivers": "CSIDriver",
    "storageclasses": "StorageClass",
    "volumeattributesclasses": "VolumeAttributesClass",
    "volumesnapshots": "VolumeSnapshot",
    "volumesnapshotcontents": "VolumeSnapshotContent",
    "volumegroupsnapshots": "VolumeGroupSnapshot",
}
MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused a request."""


class NotInTime(AssertionError):
    """What a test waits for did not happen."""


class ApiServer:
    """The API server, as an administrator."""

    def __init__(self, address: str, certificates: Path) -> None:
        self._address = address
        self._context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        self._context.load_cert_chain(certificates / "admin.crt", certificates / "admin.key")

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Send one request. Raises ApiError with the status and the message."""
        connection = self._connect(CALL_S)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": kind})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        answer = json.loads(content) if content[:1] == b"{" else content.decode()
        if response.status >= http.client.BAD_REQUEST:
            message = answer["message"] if isinstance(answer, dict) else answer
            raise ApiError(f"{response.status}: {message}")
        return answer

    def objects(self, kind: str, namespace: str = "") -> list[Object]:
        """Return all objects of a kind, of one namespace or of all."""
        items: list[Object] = self.ask("GET", path_of(kind, namespace))["items"]
        return items

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return an object, or None."""
        try:
            item: Object = self.ask("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if str(error).startswith("404"):
                return None
            raise
        return item

    def create(self, kind: str, name: str, namespace: str = "", **content: Any) -> Object:
        """Create an object."""
        version = GROUPS.get(kind, GROUPS[""]).partition("/")[2]
        head = {"apiVersion": version, "kind": KIND_NAMES[kind], "metadata": {"name": name}}
        body = head | content
        created: Object = self.ask("POST", path_of(kind, namespace), body)
        return created

    def patch(
        self, kind: str, name: str, change: Object, namespace: str = "", part: str = ""
    ) -> Object:
        """Merge a change into an object or, with `part`, into its subresource."""
        path = path_of(kind, namespace, name) + part
        changed: Object = self.ask("PATCH", path, change, MERGE)
        return changed

    def delete(self, kind: str, name: str, namespace: str = "", **options: Any) -> None:
        """Delete an object; one that is gone is no error."""
        try:
            self.ask("DELETE", path_of(kind, namespace, name), options or None)
        except ApiError as error:
            if not str(error).startswith("404"):
                raise

    def until(
        self,
        kind: str,
        condition: Callable[[list[Object]], T],
        what: str,
        *,
        namespace: str = "",
        within_s: float = WITHIN_S,
    ) -> T:
        """Return the first true value of a condition over all objects of a kind."""
        deadline = time.monotonic() + within_s
        while True:
            for objects in self._changes(path_of(kind, namespace), deadline):
                if value := condition(objects):
                    return value
                if time.monotonic() > deadline:
                    raise NotInTime(f"not within {within_s:.0f} s: {what}")

    def _changes(self, path: str, deadline: float) -> Iterator[list[Object]]:
        """Yield all objects now, after each change, and at the deadline."""
        listing = self.ask("GET", path)
        objects = {item["metadata"]["uid"]: item for item in listing["items"]}
        yield list(objects.values())
        seconds = max(1, min(WATCH_S, int(deadline - time.monotonic()) + 1))
        version = listing["metadata"]["resourceVersion"]
        connection = self._connect(seconds + CALL_S)
        try:
            query = f"?watch=1&resourceVersion={version}&timeoutSeconds={seconds}"
            connection.request("GET", path + query)
            response = connection.getresponse()
            while line := response.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    break  # the version is too old: list again
                uid = event["object"]["metadata"]["uid"]
                objects[uid] = event["object"]
                if event["type"] == "DELETED":
                    del objects[uid]
                yield list(objects.values())
        finally:
            connection.close()
        yield list(objects.values())

    def _connect(self, timeout_s: float) -> http.client.HTTPSConnection:
        host, _colon, port = self._address.partition(":")
        return http.client.HTTPSConnection(
            host, int(port), context=self._context, timeout=timeout_s
        )


def path_of(kind: str, namespace: str = "", name: str = "") -> str:
    """Return the path of a kind, of one namespace or of all, or of one object."""
    words = [GROUPS.get(kind, GROUPS[""])]
    words += ["namespaces", namespace] if namespace else []
    return "/" + "/".join([*words, kind, *([quote(name)] if name else [])])


def named(objects: list[Object], name: str) -> Object:
    """Return the object of a name; an empty dictionary without."""
    return next((item for item in objects if item["metadata"]["name"] == name), {})
