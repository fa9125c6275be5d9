"""Unit tests of the set-up and the lab that need neither root nor an emulator."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.emulator import GIVE, TAKE, MachinePaths, command_line
from tests.lab.images import build, modules, rootfs
from tests.lab.images.build import Images
from tests.lab.images.buildroot import BuildRoot
from tests.lab.images.initramfs import archive
from tests.lab.images.recipe import Release
from tests.lab.pair import PORTS, free_port
from tests.setup import cache, say
from tests.setup.sources import (
    KEYRING,
    AptSource,
    SourcesError,
    machine_sources,
    render,
    sources_for,
    with_backports,
)
from tests.setup.venv import requirements

if TYPE_CHECKING:
    from collections.abc import Callable

DEB822 = """\
Types: deb deb-src
# A comment in the middle of a stanza.
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://mirror.example/snapshot/debian-security/20250520
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://tools.example/debian
Suites: bookworm
Components: stable
"""
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/key.gpg] http://mirror.example/debian bookworm main contrib # ours
deb http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
deb http://tools.example/apt tools-bookworm main
"""


@pytest.fixture
def etc_apt(tmp_path: Path) -> Path:
    """An empty /etc/apt."""
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_deb822_sources_are_found(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d/debian.sources").write_text(DEB822)
    sources = sources_for("trixie", machine_sources(etc_apt), "bookworm")
    assert sources == [
        AptSource(
            "http://mirror.example/debian",
            ("trixie", "trixie-updates"),
            ("main", "contrib"),
            "/usr/share/keyrings/debian.gpg",
        ),
        AptSource(
            "http://mirror.example/snapshot/debian-security/20250520",
            ("trixie-security",),
            ("main", "contrib"),
            KEYRING,
        ),
    ]


def test_one_line_sources_of_one_archive_are_merged(etc_apt: Path) -> None:
    (etc_apt / "sources.list").write_text(ONE_LINE)
    sources = sources_for("bookworm", machine_sources(etc_apt), "bookworm")
    assert [(source.uri, source.signed_by) for source in sources] == [
        ("http://mirror.example/debian", "/etc/key.gpg"),
        ("http://mirror.example/debian", KEYRING),
    ]


def test_a_machine_without_debian_archives_is_refused(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d/other.list").write_text("deb http://x.example/ubuntu noble main\n")
    with pytest.raises(SourcesError, match="bookworm"):
        sources_for("trixie", machine_sources(etc_apt), "bookworm")


def test_backports_come_from_the_main_archive_only() -> None:
    main = AptSource("http://m.example/debian", ("bookworm",), ("main",), KEYRING)
    security = AptSource(
        "http://m.example/debian-security", ("bookworm-security",), ("main",), KEYRING
    )
    assert with_backports([main, security], "bookworm") == [
        AptSource(main.uri, ("bookworm", "bookworm-backports"), ("main",), KEYRING),
        security,
    ]


def test_rendered_sources_are_parsed_again(etc_apt: Path) -> None:
    sources = [AptSource("http://m.example/debian", ("a", "b"), ("main", "contrib"), KEYRING)]
    (etc_apt / "sources.list.d/x.sources").write_text(render(sources))
    assert machine_sources(etc_apt) == sources


def test_requirements_include_both_lists_and_pygobject(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["a"]\n'
        '[project.optional-dependencies]\ndev = ["python-dbusmock>=1"]\n'
    )
    assert requirements(project)[:2] == ["a", "python-dbusmock>=1"]
    assert requirements(project)[2].startswith("pygobject")


def test_a_slow_stage_shows_that_it_lives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(say, "BEAT_S", 0.01)
    lives = threading.Event()
    monkeypatch.setattr(say, "say", lambda text: lives.set() if "still" in text else None)
    with say.stage("compiling"):
        assert lives.wait(10)
    monkeypatch.undo()
    with say.stage("quick"):
        pass
    said = capsys.readouterr().err
    assert re.fullmatch(r"setup: quick \.\.\.\nsetup: quick: [0-9.]+ s\n", said)


def test_the_guest_is_installed_while_zfs_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZFSILO_CACHE", str(tmp_path))
    root = BuildRoot(tmp_path / "buildroot", "6.1-cloud", "2.3")
    installing = threading.Event()

    def compile_zfs(draft: Path, _root: BuildRoot) -> None:
        assert installing.wait(10)
        (draft / "extra").mkdir()

    def install(draft: Path, _release: Release, _root: BuildRoot, zfs: Callable[[], Path]) -> None:
        installing.set()
        (draft / "root.ext4").write_text(zfs().name)

    monkeypatch.setattr(build, "buildroot", lambda _release: root)
    monkeypatch.setattr(build, "guest_sources", lambda _release: "")
    monkeypatch.setattr(modules, "build", compile_zfs)
    monkeypatch.setattr(rootfs, "build", install)
    assert build.images().root.read_text() == "extra"
    assert build.images().root.exists()


class TestCache:
    """Products are built once, completely or not at all."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty cache for the test."""
        monkeypatch.setenv("ZFSILO_CACHE", str(tmp_path))
        return tmp_path

    def test_a_key_depends_on_every_ingredient_and_its_position(self) -> None:
        keys = {cache.digest("a", "b"), cache.digest("ab"), cache.digest("b", "a")}
        assert len(keys) == 3
        assert cache.digest({"x": 1, "y": 2}) == cache.digest({"y": 2, "x": 1})

    def test_the_digest_of_files_depends_on_name_and_content(self, folder: Path) -> None:
        (folder / "one").write_text("text")
        before = cache.files_digest(folder, "*")
        (folder / "one").rename(folder / "two")
        renamed = cache.files_digest(folder, "*")
        (folder / "two").write_text("other")
        assert len({before, renamed, cache.files_digest(folder, "*")}) == 3

    def test_a_failed_build_leaves_nothing(self, folder: Path) -> None:
        def build(draft: Path) -> None:
            (draft / "half").touch()
            raise RuntimeError

        with pytest.raises(RuntimeError):
            cache.product("thing", "key", build)
        assert [path.name for path in folder.iterdir()] == ["locks"]

    def test_two_runs_build_once(self) -> None:
        builds: list[Path] = []
        meeting = threading.Barrier(2)

        def run() -> None:
            meeting.wait()
            cache.product("thing", "key", builds.append)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(builds) == 1

    def test_a_rebuilt_product_has_another_identity(self, folder: Path) -> None:
        first = cache.identity(cache.product("thing", "key", lambda draft: None))
        (folder / "thing-key/identity").unlink()
        (folder / "thing-key").rmdir()
        assert cache.identity(cache.product("thing", "key", lambda draft: None)) != first

    def test_old_products_are_removed_unless_in_use(self, folder: Path) -> None:
        for age, key in enumerate(("new", "middle", "old")):
            place = cache.product("thing", key, lambda draft: None)
            os.utime(place, (1000 - age, 1000 - age))
        with cache.held(folder / "thing-old"):
            cache.clear_old("thing", keep=1)
        assert {path.name for path in folder.glob("thing-*")} == {"thing-new", "thing-old"}


def test_archive_is_a_sequence_of_padded_members() -> None:
    data = archive({"init": (0o755, b"12345")})
    names = []
    position = 0
    while position < len(data):
        assert position % 4 == 0
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        name = data[position + 110 : position + 110 + fields[11] - 1].decode()
        names.append((name, stat.filemode(fields[1])))
        position += (110 + fields[11] + 3) // 4 * 4
        position += (fields[6] + 3) // 4 * 4
    assert names == [
        ("dev", "drwxr-xr-x"),
        ("dev/console", "crw-------"),
        ("init", "-rwxr-xr-x"),
        ("TRAILER!!!", "?---------"),
    ]


def test_command_lines_of_both_machines_use_matching_sockets() -> None:
    folder = Path("/images")
    images = Images(folder, Release("trixie"), BuildRoot(folder, "6", "2"))
    give, take = Path("/lab/lan-give"), Path("/lab/lan-take")
    line = command_line(GIVE, images, MachinePaths(Path("/lab/give"), give, take, ((9750, 20001),)))
    other = command_line(TAKE, images, MachinePaths(Path("/lab/take"), take, give, ()))
    assert any(
        "local.path=/lab/lan-give,remote.type=unix,remote.path=/lab/lan-take" in w for w in line
    )
    assert any(
        "local.path=/lab/lan-take,remote.type=unix,remote.path=/lab/lan-give" in w for w in other
    )
    assert any(word.endswith("hostfwd=tcp:127.0.0.1:20001-:9750") for word in line)


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    assert free_port() in PORTS
