"""The cache folder: each product is built once in a temporary folder, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup.say import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY_LENGTH = 12
IDENTITY = "identity"


def cache_directory() -> Path:
    """The folder of the products: $ZFSILO_CACHE, or zfsilo in the user's cache folder."""
    if chosen := os.environ.get("ZFSILO_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zfsilo"


def digest(*ingredients: object) -> str:
    """A short hash of everything that goes into a product."""
    text = json.dumps(ingredients, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def files_digest(folder: Path, *patterns: str) -> str:
    """A digest of the names and contents of the files below a folder."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    contents = [
        (str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
        if path.is_file()
    ]
    return digest(contents)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of this name; a second process waits until the first releases it."""
    folder = cache_directory() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that builds {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def product(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder `name-key`, built by `build` in a temporary folder if it does not exist."""
    place = cache_directory() / f"{name}-{key}"
    if not place.exists():
        with locked(name):
            if not place.exists():
                build_into(place, build)
    # The modification time is the time of the last use, for clear_old.
    os.utime(place)
    return place


def build_into(place: Path, build: Callable[[Path], None]) -> None:
    """Build in a folder beside `place` and rename it, so that `place` is never incomplete."""
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    draft.chmod(0o755)
    try:
        build(draft)
        (draft / IDENTITY).write_text(uuid.uuid4().hex)
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def identity(place: Path) -> str:
    """The id of this build; another build of the same key, after a removal, has another id."""
    return (place / IDENTITY).read_text()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Protect a product from clear_old while it is in use."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def clear_old(name: str, keep: int) -> None:
    """Remove all but the most recently used products of a name, unless they are in use."""
    products = sorted(cache_directory().glob(f"{name}-*"), key=lambda place: place.stat().st_mtime)
    for place in products[:-keep]:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
