"""A node of Kubernetes for the lab, on a disk: kubelet, Debian's containerd with images."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.emulator import CODE_DISK_SIZE
from tests.lab.images.build import images
from tests.lab.images.chroot import inside
from tests.setup import image, kubernetes, lab
from tests.setup.cache import clear_old, digest, files_digest, identity, product
from tests.setup.command import run
from tests.setup.image import ImageStore, image_store
from tests.setup.say import stage

if TYPE_CHECKING:
    from tests.lab.images.buildroot import BuildRoot

PROJECT = Path(__file__).parents[2]
CONTAINERS = PROJECT / "tests/kubernetes/containers"
MANIFESTS = PROJECT / "csi/deploy/manifests/zfsilo-csi.yaml"
REGISTRY = "registry.example"
PAUSE = f"{REGISTRY}/pause:1"
BUSYBOX = f"{REGISTRY}/busybox:1"
PROGRAMS = "localhost/containers"
# Program of the containers of a pod, by the last part of the image's name in the chart.
SIDECARS = {"csi-node-driver-registrar": "registrar", "livenessprobe": "liveness"}
PLUGIN = "zfsilo-csi"
DEBIAN = ("busybox-static", "containerd", "containernetworking-plugins", "runc")
# Of these packages; all of them would not fit on the disk.
FILES = (
    "usr/bin/containerd",
    "usr/bin/containerd-shim-runc-v2",
    "usr/bin/ctr",
    "usr/lib/cni/bridge",
    "usr/lib/cni/host-local",
    "usr/lib/cni/loopback",
    "usr/lib/systemd/system/containerd.service",
    "usr/sbin/runc",
)
DISK = "node.ext4"
ROOT, STORE = "root", "containerd"  # folders on it: files of the machine, /var/lib/containerd
# containerd unpacks the images here: in the machine, whose processor is emulated, it takes minutes.
IMPORT = f"""
mkdir /build/run
bin=/build/files/{ROOT}/usr/bin socket=/build/run/containerd.sock log=/build/run/log
$bin/containerd --config /dev/null --root /build/files/{STORE} --state /build/run/state \
    --address $socket > $log 2>&1 &
tries=0
until $bin/ctr -a $socket version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || {{ cat $log; exit 1; }}
    sleep 0.2
done
for archive in /build/images/*.tar; do
    $bin/ctr -a $socket -n k8s.io images import "$archive"
done
kill $!
wait $! || true
"""
MKE2FS = ("-t", "ext4", "-m", "0", "-i", "16384", "-E", "lazy_itable_init=0", "-O", "^has_journal")
KEPT = 2


def prepare() -> Path:
    """The folder with the disk, built on first use."""
    lab.prepare()
    kubernetes.prepare()
    buildroot = images().buildroot
    plugin, programs, debian = image.prepare(), go_programs(), debian_files(buildroot)

    def build(draft: Path) -> None:
        with stage("lab: images of the pods, and the disk of a node"):
            copy_programs(draft / "files" / ROOT, programs, debian)
            (draft / "images").mkdir()
            with image_store() as store:
                pack_images(store, draft, plugin, programs, debian)
            inside(buildroot.root, draft, ["sh", "-euc", IMPORT])
            run(["mke2fs", "-q", *MKE2FS, "-d", draft / "files", draft / DISK, CODE_DISK_SIZE])
            for folder in ("files", "images", "packed", "run"):
                shutil.rmtree(draft / folder)

    parts = [identity(plugin), identity(programs), identity(debian), MANIFESTS.read_text()]
    key = digest(parts, FILES, SIDECARS, IMPORT, MKE2FS)
    place = product("kubernetes-node", key, build)
    clear_old("kubernetes-node", keep=KEPT)
    return place


def go_programs() -> Path:
    """The folder with kubelet and containers, the programs of the pods."""
    sources = sorted(CONTAINERS.glob("*.go"))

    def build(draft: Path) -> None:
        with stage("kubelet: 5 minutes on 2 idle CPUs, once"):
            kubernetes.compile_program("k8s.io/kubernetes/cmd/kubelet", draft / "kubelet")
            kubernetes.compile_static(sources, draft / "containers")

    parts = files_digest(kubernetes.PROGRAMS, "go.*", "registrar/*"), files_digest(CONTAINERS, "*")
    return product("kubelet", digest(parts, kubernetes.flags()), build)


def debian_files(buildroot: BuildRoot) -> Path:
    """The folder with the files of Debian's packages."""

    def build(draft: Path) -> None:
        with stage("containerd, from the guest's Debian"):
            fetch = ["sh", "-c", 'cd /build && exec apt-get -q download "$@"', "sh", *DEBIAN]
            inside(buildroot.root, draft, fetch)
        for package in draft.glob("*.deb"):
            run(["dpkg-deb", "-x", package, draft])
            package.unlink()

    return product("containerd", digest(identity(buildroot.folder), DEBIAN), build)


def copy_programs(target: Path, programs: Path, debian: Path) -> None:
    """Copy the programs of a node, and containerd's unit."""
    for path in FILES:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(debian / path, target / path)
    shutil.copy(programs / "kubelet", target / "usr/bin")


def pack_images(store: ImageStore, draft: Path, plugin: Path, programs: Path, debian: Path) -> None:
    """Write the archives of all images to the folder `images`."""
    name, target = chart_image(PLUGIN), draft / "images"
    store.load(plugin / image.ARCHIVE, name)
    store.save(name, target / "plugin.tar", name)
    busybox, containers = draft / "packed/busybox", draft / "packed/containers"
    (busybox / "bin").mkdir(parents=True)
    shutil.copy(debian / "usr/bin/busybox", busybox / "bin")
    store.pack(BUSYBOX, busybox, 'ENTRYPOINT ["/bin/busybox"]')
    store.save(BUSYBOX, target / "busybox.tar", BUSYBOX)
    containers.mkdir()
    shutil.copy(programs / "containers", containers)
    store.pack(PROGRAMS, containers)
    parts = {PAUSE: "pause"} | {chart_image(name): part for name, part in SIDECARS.items()}
    for name, part in parts.items():
        store.derive(name, PROGRAMS, f'ENTRYPOINT ["/containers", "{part}"]')
        store.save(name, target / f"{part}.tar", name)


def chart_image(name: str) -> str:
    """The whole name of an image in the rendered chart."""
    pattern = rf"image: ({re.escape(REGISTRY)}/\S*\b{re.escape(name)}:\S+)"
    names = set(re.findall(pattern, MANIFESTS.read_text()))
    assert len(names) == 1, f"{MANIFESTS} has not one image {name}: {names}"
    return str(names.pop())
