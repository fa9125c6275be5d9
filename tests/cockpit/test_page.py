"""The page of Cockpit in a real browser: the life of a volume, refusals, errors, problems."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.keys import Keys

from tests.cockpit.machine import GUEST, SESSIONS, axe_source
from tests.cockpit.page import DIALOG, NARROW, SHORT, WIDE
from tests.systemd.simulated import FACTS, ctl, delete_volumes, light_fuse, operations
from zfsilod.host.fake import Facts
from zfsilod.security.join_file import parse_join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cockpit.page import CockpitPage
    from tests.systemd.namespace import SystemdHost

BAR = '//*[@role="progressbar" and @aria-valuenow > 0 and @aria-valuenow < 100]'
MARKUP = "<img src=x onerror=\"document.title='run'\">"
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def no_volumes(sd: SystemdHost) -> Iterator[None]:
    """Delete schedules, snapshots and volumes after each test."""
    yield
    for policy in json.loads(ctl(sd, "schedule", "list", "--json").stdout)["policies"]:
        ctl(sd, "schedule", "delete", policy["id"])
    for snapshot in json.loads(ctl(sd, "snapshot", "list", "--json").stdout)["snapshots"]:
        ctl(sd, "snapshot", "delete", snapshot["id"])
    delete_volumes(sd)


@pytest.fixture
def filled(sd: SystemdHost) -> None:
    """Some volumes, of which one is published and has a snapshot, and a schedule."""
    for name, size in (("backup", "200G"), ("data", "100G"), ("mail", "40G"), ("www", "20G")):
        ctl(sd, "volume", "create", name, size)
    ctl(sd, "volume", "publish", "data", "take")
    ctl(sd, "snapshot", "create", "data", "monday")
    ctl(sd, "schedule", "create", "nightly", "--calendar", "daily", "--keep", "7x1d 4x1w")


def test_the_life_of_a_volume(page: CockpitPage) -> None:
    page.open("/volumes")
    page.see("No volumes")
    page.click("Create volume")
    page.fill("Name", "data")
    page.fill("Size", "2")
    page.click("Dry run")
    page.see("Dry run, nothing was changed: create data", "create zvol tank/zfsilo/data (2 GiB")
    page.confirm("Create")
    assert "created" in page.row("data")
    assert "2.0 GiB" in page.row("data")

    page.choose("data", "Grow")
    page.fill("New size", "3")
    page.confirm("Grow")
    page.until(lambda: "3.0 GiB" in page.row("data"), "not grown")

    page.choose("data", "Publish")
    page.fill("Client", "take")
    page.confirm("Publish")
    page.until(lambda: "published" in page.row("data"), "not published")
    assert "take" in page.row("data")

    page.click("data")
    page.see("Facts on this host", "target has an ACL of", "single node writer")
    page.click("Create snapshot")
    page.fill("Name", "monday")
    page.confirm("Create")
    page.choose("monday", "Clone")
    page.fill("Name", "copy")
    page.confirm("Clone")
    page.click("Volumes")
    assert "3.0 GiB" in page.row("copy")

    page.choose("data", "Unpublish from take")
    page.confirm("Unpublish")
    page.until(lambda: "created" in page.row("data"), "still published")
    page.choose("copy", "Delete")
    page.confirm("Delete")
    page.until(lambda: "copy" not in page.text(), "copy is still there")


def test_the_key_of_an_encrypted_volume_is_replaced(sd: SystemdHost, page: CockpitPage) -> None:
    limits = ("--limit-read-iops", "500", "--limit-write-bytes", "20M")
    ctl(sd, "volume", "create", "data", "1G", "--encrypt", *limits)
    page.open("/volumes/data")
    page.see("Encrypted", "500 reads/s, 20.0 MiB/s written")
    page.choose("data", "Replace key")
    page.confirm("Replace")
    assert [one["title"] for one in operations(sd)][-1] == "new key for data"


def test_a_refusal_has_the_words_of_the_daemon(sd: SystemdHost, page: CockpitPage) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    ctl(sd, "volume", "publish", "data", "take")
    refusal = ctl(sd, "volume", "delete", "data", "--yes", check=False).stderr
    sentence = refusal.partition("zfsiloctl: ")[2].splitlines()[0]
    page.open("/volumes/data")
    page.choose("data", "Delete")
    page.click("Delete", inside=DIALOG)
    page.see(sentence, "Reason: PUBLISHED")
    page.picture("refusal")
    page.click("Dry run")
    page.see(sentence)
    page.tick("Also withdraw it from all clients")
    page.click("Delete", inside=DIALOG)
    page.see("data does not exist")


def test_a_failed_operation_shows_its_error_and_its_journal(
    sd: SystemdHost, page: CockpitPage
) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    page.open("/volumes")
    light_fuse(sd, 3, how="error")
    page.choose("data", "Publish")
    page.click("Publish", inside=DIALOG)
    page.see("the fuse of the simulated host blew", "While: ")
    page.click("Cancel", inside=DIALOG)
    page.click("Operations")
    page.until(lambda: "rolled back" in page.row("publish data to take over iscsi"), "not there")
    page.click("publish data to take over iscsi")
    page.see("the fuse of the simulated host blew", "reverted", "zfsilo-worker")
    page.picture("operation")


def test_a_lost_volume_is_marked(sd: SystemdHost, page: CockpitPage) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    known = Facts(sd.root / FACTS)
    (zvol,) = (name for name in known.snapshot() if name.startswith("zvol:"))
    fact = known.get(zvol)
    known.effect(zvol, None)
    try:
        page.open("/")
        page.see("zvol tank/zfsilo/data of volume data is missing")
        page.picture("lost")
        page.click("data")
        page.see("LOST", "absent", "Reason: LOST")
        page.choose("data", "Grow")
        page.fill("New size", "2")
        page.click("Grow", inside=DIALOG)
        page.find(f'{DIALOG}//*[contains(., "tank/zfsilo/data does not exist")]')
    finally:
        known.effect(zvol, fact)
        ctl(sd, "volume", "sync", "data", check=False)


@pytest.mark.usefixtures("filled")
def test_a_long_operation_shows_its_progress(sd: SystemdHost, page: CockpitPage) -> None:
    page.open("/volumes/data")
    page.see("target has an ACL of")
    light_fuse(sd, 2, how="stop")
    page.choose("take", "Unpublish")
    page.click("Unpublish", inside=DIALOG)
    try:
        page.find(f"{DIALOG}{BAR}")
        page.click("Close", inside=f"{DIALOG}//footer")
        page.open("/")
        page.see("Running operations", "unpublish data from take")
        page.find(BAR)
        page.resize(*SHORT)
        page.picture("progress")
    finally:
        sd.run("systemctl", "kill", "--signal=SIGCONT", "zfsilo-op-*.service")
    page.see("No operation is running")
    page.click("Volumes")
    assert "created" in page.row("data")


def test_a_fence_ends_a_session(sd: SystemdHost, page: CockpitPage) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    ctl(sd, "volume", "publish", "data", "take")
    known = Facts(sd.root / FACTS)
    (acl,) = (name for name in known.snapshot() if name.startswith("acl:"))
    target, _slash, initiator = acl.removeprefix("acl:").rpartition("/")
    known.effect(f"session:{target}", {"initiator": initiator, "serial": "x"})
    try:
        page.open("/volumes/data")
        page.choose("take", "Unpublish")
        page.click("Unpublish", inside=DIALOG)
        page.find(f'{DIALOG}//*[contains(., "logged in")]')
        page.click("Cancel", inside=DIALOG)
        page.choose("take", "Fence")
        page.confirm("Fence")
        page.see("Not published")
    finally:
        known.effect(f"session:{target}", None)


def test_clients_are_registered_and_removed(page: CockpitPage) -> None:
    page.open("/clients")
    page.click("Register client")
    page.fill("Name", "third")
    page.fill("IQN", "no iqn")
    page.click("Register", inside=DIALOG)
    page.see("no iqn")
    page.fill("IQN", "iqn.2024-01.lab.third:host")
    page.confirm("Register")
    assert "iqn.2024-01.lab.third:host" in page.row("third")
    page.choose("third", "Remove")
    page.confirm("Remove")
    page.see_no_more("third")


def test_a_schedule_is_created_changed_run_and_deleted(sd: SystemdHost, page: CockpitPage) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--label", "app=db")
    ctl(sd, "volume", "create", "mail", "1G")
    page.open("/schedules")
    page.click("Create schedule")
    page.fill("Name", "nightly")
    page.fill("When", "every so often")
    page.click("Create", inside=DIALOG)
    page.see("invalid calendar 'every so often'")
    page.fill("When", "daily")
    page.confirm("Create")
    assert "all volumes 2 never" in " ".join(page.row("nightly").split())

    page.choose("nightly", "Change")
    page.fill("Volumes with these labels", "app=db")
    page.confirm("Change")
    page.until(lambda: "app=db" in page.row("nightly"), "not changed")
    page.choose("nightly", "Run now")
    page.confirm("Run")
    page.until(lambda: "ago" in page.row("nightly"), "it did not run")
    (snapshot,) = json.loads(ctl(sd, "snapshot", "list", "--json").stdout)["snapshots"]
    assert (snapshot["volume"], snapshot["policy"]) == ("volumes/data", "snapshotPolicies/nightly")

    page.choose("nightly", "Delete")
    page.confirm("Delete")
    page.see("No schedules")


def test_a_join_file_is_downloaded(sd: SystemdHost, page: CockpitPage) -> None:
    ctl(sd, "pki", "init")
    downloads = sd.root / "tmp/downloads"
    where = {"behavior": "allow", "downloadPath": "/tmp/downloads"}
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    page.open("/clients")
    page.click("Issue a certificate")
    page.fill("Name", "Not A Name")
    page.click("Download join file", inside=DIALOG)
    page.see("invalid")
    page.fill("Name", "third")
    page.confirm("Download join file")
    page.until((downloads / "third.join").exists, "not downloaded")
    access = parse_join((downloads / "third.join").read_text())
    (downloads / "third.join").unlink()
    assert access.address == "127.0.0.1:9750"
    assert access.key
    assert access.key not in page.browser.page_source


def test_polkit_refuses_a_guest(page: CockpitPage) -> None:
    page.open("/volumes", SESSIONS["guest"])
    page.see(f"uid {GUEST} needs a password for org.zfsilo1.read")


def test_data_is_never_markup(sd: SystemdHost, page: CockpitPage) -> None:
    ctl(sd, "volume", "create", "data", "1G", "--label", f"note={MARKUP}")
    page.open("/volumes/data")
    page.see(f"note={MARKUP}")
    assert page.browser.title == "ZFS volumes"
    page.open("/volumes/%zz")
    page.see("%zz does not exist")


def test_the_keyboard_reaches_everything(page: CockpitPage) -> None:
    page.open("/volumes")
    page.see("No volumes")
    active = page.browser.switch_to
    for _number in range(12):
        active.active_element.send_keys(Keys.TAB)
        if active.active_element.text == "Create volume":
            break
    active.active_element.send_keys(Keys.ENTER)
    page.find(DIALOG)
    for _number in range(12):
        active.active_element.send_keys(Keys.TAB)
        inside = "return document.querySelector('[role=dialog]').contains(document.activeElement)"
        assert page.browser.execute_script(inside), "the focus left the dialog"
    active.active_element.send_keys(Keys.ESCAPE)
    page.dialog_closes()
    page.until(lambda: active.active_element.text == "Create volume", "the focus is elsewhere")


def test_the_shell_of_cockpit_has_the_page(page: CockpitPage) -> None:
    page.browser.get("http://127.0.0.1:9090/zfsilo")
    page.until(lambda: "ZFS volumes" in page.text(), "not in the menu")
    frame = page.find('//iframe[contains(@name, "/zfsilo")]')
    page.browser.switch_to.frame(frame)
    page.see("Space", "Nothing needs attention")
    page.browser.switch_to.default_content()
    page.picture("shell")


PLACES = ("/", "/volumes", "/volumes/data", "/schedules", "/clients", "/operations")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_pages_are_accessible_and_fit(page: CockpitPage, theme: str, size: tuple[int, int]) -> None:
    page.resize(*size)
    axe = axe_source()
    problems = []
    for place in PLACES:
        page.open(place, theme=theme)
        page.see(
            {
                "/": "Nothing needs attention",
                "/schedules": "nightly",
                "/clients": "Certificates",
            }.get(place, "data")
        )
        if place == "/volumes/data":
            page.see("target has an ACL of", "monday", "Operations of the last day")
        name = place.strip("/").replace("/", "-") or "overview"
        page.picture(f"{name}-{theme}-{size[0]}")
        problems += [f"{place}: {violation}" for violation in page.violations(axe)]
        if page.overflow() > 0:
            problems.append(f"{place}: {page.overflow()} pixels too wide")
    assert problems == []


@pytest.mark.usefixtures("filled")
def test_dialogs_are_accessible(page: CockpitPage) -> None:
    page.open("/volumes")
    page.click("Create volume")
    page.find(DIALOG)
    page.picture("create")
    axe = axe_source()
    assert page.violations(axe) == []
    page.browser.execute_script("document.querySelector('label[for=field-id]').remove()")
    assert page.violations(axe), "axe-core finds a field without a label"


@pytest.mark.usefixtures("filled")
def test_the_page_loads(page: CockpitPage, capsys: pytest.CaptureFixture[str]) -> None:
    """The time is printed and not asserted: it depends on the other work of the machine."""
    page.load_ms("/volumes")
    loads = sorted(page.load_ms("/volumes") for _number in range(5))
    with capsys.disabled():
        print(f"\npage of Cockpit: first row after {loads[2]:.0f} ms (median of 5)")
