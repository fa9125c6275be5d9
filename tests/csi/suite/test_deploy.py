"""Chart and manifests: rendered alike, valid by Kubernetes' schemas, pods without privileges."""

from __future__ import annotations

import base64
import json
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
KUBERNETES = ("1.34", "1.35", "1.36", "1.37")  # from the chart's kubeVersion to the newest release
SNAPSHOT_CLASSES = {  # of external-snapshotter, which has no schema in Kubernetes
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

METADATA_SERVICE = {  # the CRD of external-snapshot-metadata 1.1
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "cbt.storage.k8s.io/v1beta1"},
        "kind": {"type": "string"},
        "metadata": {"type": "object", "required": ["name"], "not": {"required": ["namespace"]}},
        "spec": {
            "type": "object",
            "required": ["address", "audience", "caCert"],
            "properties": {
                name: {"type": "string", "minLength": 1}
                for name in ("address", "audience", "caCert")
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
WITH_METADATA = (
    "-f",
    str(VALUES),
    "--set=snapshotMetadata.enabled=true",
    "--set=snapshotMetadata.caCert=PEM OF THE AUTHORITY",
)


def rendered(*more: str) -> str:
    command = [str(prepare() / "bin/helm"), "template", "zfsilo-csi", str(CHART)]
    command += ["-n", "zfsilo-csi", "--kube-version", KUBERNETES[0]]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def library(name: str) -> Any:
    """Import a package that tests/setup installed beside helm."""
    packages = str(prepare() / "python")
    if packages not in sys.path:
        sys.path.append(packages)
    return __import__(name)


def objects(text: str) -> list[dict[str, Any]]:
    return [item for item in library("yaml").safe_load_all(text) if item]


def object_of(kind: str) -> dict[str, Any]:
    """Return the first object of a kind in the rendered manifests."""
    return next(item for item in objects(MANIFESTS.read_text()) if item["kind"] == kind)


def check(item: dict[str, Any]) -> None:
    """Raise unless an object is valid and has no unknown field."""
    if item["kind"] in SNAPSHOT_CLASSES:
        assert item["apiVersion"] == SNAPSHOT_CLASSES[item["kind"]]
        library("jsonschema").validate(item, CLASS)
    elif item["kind"] == "SnapshotMetadataService":
        library("jsonschema").validate(item, METADATA_SERVICE)
    else:
        for version in KUBERNETES:
            library("kubernetes_validate").validate(item, version, strict=True)


def test_the_manifests_are_the_rendered_chart() -> None:
    command = (
        "helm template zfsilo-csi csi/deploy/helm/zfsilo-csi --kube-version 1.34 -n zfsilo-csi"
    )
    assert rendered("-f", str(VALUES)) == MANIFESTS.read_text(), f"render them again: {command}"


def test_every_object_is_valid() -> None:
    files = [*(DEPLOY / "examples").glob("*.yaml"), DEPLOY / "manifests/namespace.yaml", MANIFESTS]
    items = [item for path in files for item in objects(path.read_text())]
    kinds = {item["kind"] for item in items}
    assert {"CSIDriver", "Deployment", "DaemonSet", "StorageClass", *SNAPSHOT_CLASSES} <= kinds
    for item in items:
        check(item)


def test_an_unknown_field_is_refused() -> None:
    daemon_set = object_of("DaemonSet")
    daemon_set["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(library("kubernetes_validate").ValidationError):
        check(daemon_set)


def test_objects_with_other_values_are_valid() -> None:
    values = (
        "snapshots=false",
        "volumeAttributesClasses=false",
        "controller.nodeSelector.role=infra",
        "node.seLinuxOptions.type=spc_t",
        "backends.b.server=b",
        "backends.b.zones={one,two}",
    )
    for item in objects(rendered("-f", str(VALUES), *(f"--set={value}" for value in values))):
        check(item)


def test_the_plugin_reads_the_configuration_of_the_chart(tmp_path: Path) -> None:
    from zfsilo_csi import config

    path = tmp_path / "config.toml"
    path.write_text(object_of("ConfigMap")["data"]["config.toml"])
    settings = config.load(path)
    assert settings.backends["give"].join == "/etc/zfsilo-csi/backends/give.join"
    assert settings.backends["give"].zones == ["default"]
    assert settings.node.socket == "/run/zfsilo/csi/zfsilod.sock"
    assert settings.endpoint == "unix:///csi/csi.sock"


def pods() -> dict[str, dict[str, Any]]:
    return {
        kind: object_of(kind)["spec"]["template"]["spec"] for kind in ("Deployment", "DaemonSet")
    }


def test_every_container_is_confined() -> None:
    for pod in pods().values():
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_the_controller_meets_restricted() -> None:
    pod = pods()["Deployment"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"emptyDir", "configMap", "secret"}


def test_the_node_has_three_host_paths_and_no_secret() -> None:
    pod = pods()["DaemonSet"]
    volumes = pod["volumes"]
    paths = [volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume]
    assert sorted(paths) == [
        "/run/zfsilo/csi",
        "/var/lib/kubelet/plugins/csi.zfsilo.io",
        "/var/lib/kubelet/plugins_registry",
    ]
    assert not [volume for volume in volumes if "secret" in volume]
    assert pod["automountServiceAccountToken"] is False


def test_no_role_may_read_secrets() -> None:
    rules = [
        rule
        for item in objects(MANIFESTS.read_text())
        if item["kind"] in ("Role", "ClusterRole")
        for rule in item["rules"]
    ]
    assert rules
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "secrets" not in rule["resources"]


def test_a_chart_without_values_names_the_missing_value() -> None:
    with pytest.raises(AssertionError, match="backends is empty"):
        rendered()
    with pytest.raises(AssertionError, match="imageRegistry is missing"):
        rendered("--set", "backends.give.server=give")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("backends.annex.zone={annex}", "additional properties 'zone' not allowed"),
        ("backends.annex.zones=annex", "'/backends/annex/zones': got string, want array"),
        ("backends.annex.zones={one two}", "does not match pattern"),
        ("backends.the_annex.server=annex", "'the_annex' does not match pattern"),
        ("snapshotMetadata.enable=true", "additional properties 'enable' not allowed"),
        ("snapshots=no", "'/snapshots': got string, want boolean"),
    ],
)
def test_a_misspelt_value_is_refused(value: str, error: str) -> None:
    """Without an error a backend would be in the default zone, or its pods would not start."""
    with pytest.raises(AssertionError) as refused:
        rendered("-f", str(VALUES), "--set", value)
    assert error in str(refused.value)


def test_the_schema_knows_all_values_of_its_sections() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = library("yaml").safe_load((CHART / "values.yaml").read_text())
    assert set(schema) <= set(values)
    assert set(schema["snapshotMetadata"]["properties"]) == set(values["snapshotMetadata"])


def test_changed_blocks_are_behind_one_value() -> None:
    assert "snapshot-metadata" not in MANIFESTS.read_text()
    items = objects(rendered(*WITH_METADATA))
    for item in items:
        check(item)
    by_kind = {item["kind"]: item for item in items}
    service, tells = by_kind["Service"], by_kind["SnapshotMetadataService"]
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert tells["metadata"]["name"] == by_kind["CSIDriver"]["metadata"]["name"]
    assert tells["spec"]["address"] == f"{name}.zfsilo-csi.svc:{port}"
    assert tells["spec"]["audience"] == "csi.zfsilo.io"
    assert base64.b64decode(tells["spec"]["caCert"]) == b"PEM OF THE AUTHORITY"
    template = by_kind["Deployment"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    pod = template["spec"]
    sidecar = next(one for one in pod["containers"] if one["name"] == "snapshot-metadata")
    assert sidecar["ports"][0]["name"] == service["spec"]["ports"][0]["targetPort"]
    assert sidecar["securityContext"] == pod["containers"][0]["securityContext"]
    mounts = {mount["name"] for mount in sidecar["volumeMounts"]}
    assert mounts <= {volume["name"] for volume in pod["volumes"]}


def test_changed_blocks_need_an_authority_and_snapshots() -> None:
    with pytest.raises(AssertionError, match="caCert is missing"):
        rendered(*WITH_METADATA[:-1])
    with pytest.raises(AssertionError, match="snapshotMetadata needs snapshots"):
        rendered(*WITH_METADATA, "--set=snapshots=false")
