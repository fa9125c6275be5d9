"""The image of the CSI plugin, built by buildah from csi/Containerfile over a base of Debian."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.images.chroot import debootstrap, guest_sources, network_environment
from tests.setup import apt
from tests.setup.cache import clear_old, digest, identity, product
from tests.setup.command import run
from tests.setup.say import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]
PACKAGES = ("buildah", "crun", "mmdebstrap", "debian-archive-keyring", "util-linux")
RELEASE = "trixie"
# In place of the image python:3.13-slim: the same interpreter with pip, under the name `python`.
BASE_PACKAGES = ("python-is-python3", "python3-pip", "python3-venv")
# Debian's pip refuses to install beside packages of Debian; lists of apt are large.
REMOVED = ("usr/lib/python3*/EXTERNALLY-MANAGED", "var/lib/apt/lists", "var/cache/apt")
BASE = "localhost/python"
NAME = "localhost/zfsilo-csi"
ROOT = "root"
ARCHIVE = "image.tar"
# What reaches the image, and what the build needs besides.
SOURCES = ("csi/Containerfile", "csi/requirements.txt", "csi/zfsilo_csi", "proto", "pyproject.toml")
NEEDED = ("LICENSE", "README.md", "dbus", "zfsilod")
KEPT = 2
FROM_SCRATCH = "FROM scratch\nCOPY . /\n"


class ImageStore:
    """Images in a folder of their own, which buildah keeps while a context is open."""

    def __init__(self, folder: Path) -> None:
        self._buildah = [
            *("buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")),
            *("--storage-driver", "overlay"),
        ]

    def build(self, name: str, context: Path, file: Path, *more: str) -> None:
        """Build an image. Commands run in a chroot, without cgroups and networks of their own."""
        words = ["bud", "--quiet", "--isolation", "chroot", "--file", str(file), "--tag", name]
        run([*self._buildah, *words, *more, str(context)])

    def pack(self, name: str, context: Path, *lines: str) -> None:
        """Make an image of the files of a folder, with more lines of a Containerfile."""
        file = context.with_name(f"{context.name}.Containerfile")
        file.write_text(FROM_SCRATCH + "".join(f"{line}\n" for line in lines))
        self.build(name, context, file)

    def derive(self, name: str, base: str, *lines: str) -> None:
        """Make an image of another one, with more lines of a Containerfile; both share layers."""
        with tempfile.TemporaryDirectory(prefix="zfsilo-context-") as folder:
            file = Path(folder) / "Containerfile"
            file.write_text("".join(f"{line}\n" for line in (f"FROM {base}", *lines)))
            self.build(name, Path(folder), file)

    def load(self, archive: Path, name: str) -> None:
        """Read an OCI archive, whose image gets a name."""
        image = run([*self._buildah, "pull", "--quiet", f"oci-archive:{archive}"]).strip()
        run([*self._buildah, "tag", image, name])

    def save(self, name: str, archive: Path, known_as: str) -> None:
        """Write an OCI archive, whose image has the name `known_as`."""
        # Unpacking costs more than reading where processors are emulated.
        words = ["push", "--quiet", "--disable-compression", name]
        run([*self._buildah, *words, f"oci-archive:{archive}:{known_as}"])

    def unpack(self, name: str, target: Path) -> None:
        """Copy the files of an image to a new folder."""
        container = run([*self._buildah, "from", name]).strip()
        mounted = run([*self._buildah, "mount", container]).strip()
        run(["cp", "-a", mounted, target])
        run([*self._buildah, "rm", container])


@contextmanager
def image_store() -> Iterator[ImageStore]:
    """An empty store; its images are removed with it."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-images-") as folder:
        yield ImageStore(Path(folder))


def prepare() -> Path:
    """The folder with image.tar and root/, the files of the image, built on first use."""
    apt.install(PACKAGES, reason="building the image of the CSI plugin")
    base = base_root()
    contents = [(name, (PROJECT / name).read_bytes().hex()) for name in project_files(SOURCES)]

    def build(draft: Path) -> None:
        with stage("building the image of the CSI plugin"), image_store() as store:
            store.pack(BASE, base / ROOT)
            build_plugin(store, draft)
            store.save(NAME, draft / ARCHIVE, NAME)
            store.unpack(NAME, draft / ROOT)

    place = product("csi-image", digest(identity(base), contents), build)
    clear_old("csi-image", keep=KEPT)
    return place


def base_root() -> Path:
    """The folder with the base's root, built on first use."""

    def build(draft: Path) -> None:
        with stage(f"base of the image: Debian {RELEASE} with Python"):
            debootstrap(draft / ROOT, RELEASE, BASE_PACKAGES)
            for path in (path for name in REMOVED for path in (draft / ROOT).glob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    key = digest(guest_sources(RELEASE), BASE_PACKAGES, REMOVED)
    return product("image-base", key, build)


def project_files(parts: tuple[str, ...]) -> list[str]:
    """The files of some parts of the project, committed or not."""
    listing = run(["git", "-C", PROJECT, "ls-files", "-z", "-co", "--exclude-standard", *parts])
    names = sorted(set(listing.split("\0")) - {""})
    return [name for name in names if (PROJECT / name).is_file()]


def build_plugin(store: ImageStore, draft: Path) -> None:
    """Build csi/Containerfile as it stands, with the settings of this machine's pip."""
    context = draft / "context"
    for name in project_files(SOURCES + NEEDED):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, context / name)
    settings = network_environment()
    pip = draft / "pip.conf"
    pip.write_text("[global]\n" + "".join(pip_lines(settings)))
    mounts = [f"{pip}:/etc/pip.conf:ro"]
    mounts += [f"{path}:{path}:ro" for path in sorted(set(settings.values())) if is_file(path)]
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    file = context / "csi/Containerfile"
    store.build(NAME, context, file, "--build-arg", f"PYTHON={BASE}", *volumes)
    shutil.rmtree(context)
    pip.unlink()


def pip_lines(settings: dict[str, str]) -> Iterator[str]:
    """The lines of pip's configuration for settings that are environment variables."""
    for name, value in settings.items():
        if name.startswith("PIP_"):
            yield f"{name.removeprefix('PIP_').replace('_', '-').lower()} = {value}\n"


def is_file(path: str) -> bool:
    """Whether a setting is the path of a file, such as that of certificates."""
    return path.startswith("/") and Path(path).is_file()
