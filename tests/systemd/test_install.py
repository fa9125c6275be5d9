"""Installation of the project into a machine by `make install`, and its cache."""

import sys
from pathlib import Path

import pytest

from tests.systemd.install import install, installed_tree
from tests.systemd.namespace import SystemdHost

MAKEFILE = """\
install:
\techo ran >>{log}
\tmkdir -p $(DESTDIR)/usr/lib/zfsilo/zfsilod $(DESTDIR)/usr/bin
\tif [ -z "$(PIP_ARGS)" ]; then mkdir $(DESTDIR)/usr/lib/zfsilo/other && \\
\t\techo fetched >$(DESTDIR)/usr/lib/zfsilo/other/__init__.py; fi
\tcp zfsilod.py $(DESTDIR)/usr/lib/zfsilo/zfsilod/__init__.py
\tinstall -D -m644 a.service $(DESTDIR)/usr/lib/systemd/system/zfsilo-a.service
\tinstall -D -m644 users.conf $(DESTDIR)/usr/lib/sysusers.d/zfsilo.conf
\tinstall -D -m644 files.conf $(DESTDIR)/usr/lib/tmpfiles.d/zfsilo.conf
\techo '#!$(PYTHON) -IS' >$(DESTDIR)/usr/bin/zfsilod
\techo 'import sys; print(sys.prefix, __file__)' >>$(DESTDIR)/usr/bin/zfsilod
\tchmod 755 $(DESTDIR)/usr/bin/zfsilod
"""
FILES = {
    "zfsilod.py": "one = 1\n",
    "a.service": "[Service]\nType=oneshot\nProtectHome=yes\nExecStart=/usr/bin/zfsilod\n",
    "users.conf": 'g zfsilo-test - -\nu zfsilo-test - "Test" /nonexistent\n',
    "files.conf": "d /var/lib/zfsilo-test 0700 zfsilo-test zfsilo-test\n",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with its own cache."""
    monkeypatch.setenv("ZFSILO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "Makefile").write_text(MAKEFILE.format(log=tmp_path / "log"))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_the_project_is_installed_before_the_first_boot(checkout: Path) -> None:
    machine = SystemdHost()
    install(machine, checkout)
    with machine:
        assert machine.state == "running"
        assert machine.read("/usr/lib/zfsilo/zfsilod/__init__.py") == FILES["zfsilod.py"]
        machine.run("systemctl", "start", "zfsilo-a.service")
        assert "/usr/bin/zfsilod" in machine.journal("zfsilo-a")
        owner = machine.run("stat", "-c%U:%a", "/var/lib/zfsilo-test").stdout
        assert owner == "zfsilo-test:700\n"
        machine.reboot()
        machine.run("systemctl", "start", "zfsilo-a.service")


def test_the_same_sources_are_installed_once(checkout: Path) -> None:
    log = checkout.parent / "log"
    first = installed_tree(checkout)
    assert installed_tree(checkout) == first
    assert log.read_text() == "ran\n"
    launcher = (first / "files/usr/bin/zfsilod").read_text()
    assert launcher.startswith("#!/")
    assert sys.executable not in launcher or sys.prefix == sys.base_prefix


def test_an_edit_fetches_no_packages_again(checkout: Path) -> None:
    first = installed_tree(checkout)
    (checkout / "zfsilod.py").write_text("two = 2\n")
    second = installed_tree(checkout)
    for tree, text in ((first, "one = 1\n"), (second, "two = 2\n")):
        assert (tree / "packages/zfsilod/__init__.py").read_text() == text
        assert (tree / "packages/other/__init__.py").read_text() == "fetched\n"


def test_the_error_has_the_output_of_a_failed_make(checkout: Path) -> None:
    (checkout / "Makefile").write_text("install:\n\techo broken >&2; false\n")
    with pytest.raises(RuntimeError, match="broken"):
        installed_tree(checkout)
    assert [path.name for path in (checkout.parent / "cache/systemd").iterdir()] == []
