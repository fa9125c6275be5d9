"""The manifests: made by the chart, right by Kubernetes' own schemas, as tight as they say."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.setup.csi import prepare

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "csi/deploy"
CHART = DEPLOY / "helm/zfsilo-csi"
VALUES = DEPLOY / "manifests/values.yaml"
MANIFESTS = DEPLOY / "manifests/zfsilo-csi.yaml"
KUBERNETES = ("1.34", "1.35", "1.36", "1.37")  # from what the chart asks for to the newest known
OWN = {  # schemas of what external-snapshotter adds to Kubernetes
    "VolumeSnapshotClass": "snapshot.storage.k8s.io/v1",
    "VolumeGroupSnapshotClass": "groupsnapshot.storage.k8s.io/v1",
}
CLASS = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "driver", "deletionPolicy"],
    "properties": {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object", "required": ["name"]},
        "driver": {"const": "csi.zfsilo.io"},
        "deletionPolicy": {"enum": ["Delete", "Retain"]},
        "parameters": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}


def rendered(*more: str) -> str:
    words = [
        "template",
        "zfsilo-csi",
        str(CHART),
        "-n",
        "zfsilo-csi",
        "--kube-version",
        KUBERNETES[0],
    ]
    done = subprocess.run(
        [str(prepare() / "bin/helm"), *words, *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def library(name: str) -> Any:
    """Import what the set-up put beside helm."""
    place = str(prepare() / "python")
    if place not in sys.path:
        sys.path.append(place)
    return __import__(name)


def objects(text: str) -> list[dict[str, Any]]:
    return [each for each in library("yaml").safe_load_all(text) if each]


def check(found: dict[str, Any]) -> None:
    """Raise unless an object is right to the last field."""
    if found["kind"] in OWN:
        assert found["apiVersion"] == OWN[found["kind"]]
        library("jsonschema").validate(found, CLASS)
    else:
        for version in KUBERNETES:
            library("kubernetes_validate").validate(found, version, strict=True)


def test_the_plain_manifests_are_what_the_chart_makes() -> None:
    again = "helm template zfsilo-csi csi/deploy/helm/zfsilo-csi --kube-version 1.34 -n zfsilo-csi"
    assert rendered("-f", str(VALUES)) == MANIFESTS.read_text(), f"render them anew: {again}"


def test_every_object_is_right() -> None:
    files = [*(DEPLOY / "examples").glob("*.yaml"), DEPLOY / "manifests/namespace.yaml", MANIFESTS]
    found = [each for path in files for each in objects(path.read_text())]
    kinds = {each["kind"] for each in found}
    assert {"CSIDriver", "Deployment", "DaemonSet", "StorageClass", *OWN} <= kinds
    for each in found:
        check(each)


def test_a_wrong_field_is_found() -> None:
    daemon_set = next(e for e in objects(MANIFESTS.read_text()) if e["kind"] == "DaemonSet")
    daemon_set["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(library("kubernetes_validate").ValidationError):
        check(daemon_set)


def test_other_values_are_right_too() -> None:
    for each in objects(
        rendered(
            "-f", str(VALUES), "--set", "snapshots=false", "--set", "volumeAttributesClasses=false",
            "--set", "controller.nodeSelector.role=infra", "--set", "backends.b.server=b",
            "--set", "backends.b.zones={one,two}",
        )
    ):  # fmt: skip
        check(each)


def test_the_configuration_of_the_chart_is_read(tmp_path: Path) -> None:
    from zfsilo_csi import config

    found = next(each for each in objects(MANIFESTS.read_text()) if each["kind"] == "ConfigMap")
    path = tmp_path / "config.toml"
    path.write_text(found["data"]["config.toml"])
    settings = config.load(path)
    assert settings.backends["give"].join == "/etc/zfsilo-csi/backends/give.join"
    assert settings.backends["give"].zones == ["default"]
    assert settings.node.socket == "/run/zfsilo/csi/zfsilod.sock"
    assert settings.endpoint == "unix:///csi/csi.sock"


def pods() -> dict[str, dict[str, Any]]:
    found = objects(MANIFESTS.read_text())
    return {
        each["kind"]: each["spec"]["template"]["spec"]
        for each in found
        if each["kind"] in ("Deployment", "DaemonSet")
    }


def test_every_container_is_confined() -> None:
    for pod in pods().values():
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "privileged": False,
                "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert "memory" in container["resources"]["limits"]


def test_the_controller_meets_restricted() -> None:
    pod = pods()["Deployment"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    kinds = {kind for each in pod["volumes"] for kind in each if kind != "name"}
    assert kinds == {"emptyDir", "configMap", "secret"}


def test_the_node_has_three_folders_and_no_secret() -> None:
    pod = pods()["DaemonSet"]
    paths = sorted(each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each)
    assert paths == [
        "/run/zfsilo/csi",
        "/var/lib/kubelet/plugins/csi.zfsilo.io",
        "/var/lib/kubelet/plugins_registry",
    ]
    assert not [each for each in pod["volumes"] if "secret" in each]
    assert pod["automountServiceAccountToken"] is False


def test_nobody_may_read_secrets() -> None:
    rules = [
        rule
        for each in objects(MANIFESTS.read_text())
        if each["kind"] in ("Role", "ClusterRole")
        for rule in each["rules"]
    ]
    assert rules
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]


def test_a_chart_without_values_says_what_is_missing() -> None:
    with pytest.raises(AssertionError, match="backends is empty"):
        rendered()
    with pytest.raises(AssertionError, match="imageRegistry is missing"):
        rendered("--set", "backends.give.server=give")
