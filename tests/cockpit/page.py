"""The page as a user sees it: elements by their roles and names, clicks, keys, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.setup.command import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver.remote.webelement import WebElement

PICTURES = Path(__file__).parents[2] / "build/cockpit"
DEADLINE_S = 40
DIALOG = '//*[@role="dialog"]'
WIDE, NARROW, SHORT = (1200, 900), (360, 740), (1100, 580)
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
# Serious and critical violations of WCAG 2.1 A and AA, as lines of text.
AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}).then((found) => done(
    found.violations.map((one) => `${one.id} (${one.impact}): ` +
        one.nodes.map((node) => node.target.join(" ") + " " + node.html.slice(0, 99)).join("; "))));
"""
FIRST_ROW = """
const done = arguments[arguments.length - 1];
const look = () => document.querySelector("tbody tr") ?
    done(performance.now()) : requestAnimationFrame(look);
look();
"""


class CockpitPage:
    """A browser that shows the page."""

    def __init__(self, address: str) -> None:
        options = webdriver.ChromeOptions()
        for argument in ARGUMENTS:
            options.add_argument(argument)
        options.binary_location = "/usr/bin/chromium"
        self.browser = webdriver.Remote(address, options=options)
        self.browser.set_script_timeout(DEADLINE_S)

    def close(self) -> None:
        """End the browser."""
        self.browser.quit()

    def open(self, place: str = "/", port: int = 9090, *, theme: str = "light") -> None:
        """Show a place of the page, such as /volumes, in a new document."""
        self.theme(theme)
        self.browser.get("about:blank")
        self.browser.get(f"http://127.0.0.1:{port}/cockpit/@localhost/zfsilo/index.html#{place}")

    def theme(self, name: str) -> None:
        """Let the system prefer the light or the dark theme."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def resize(self, width: int, height: int) -> None:
        """Set the size of the viewport in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def until(self, condition: Callable[[], Any], description: str) -> Any:
        """Wait until a condition holds, and return its value; the page may be redrawn."""
        wait = WebDriverWait(
            self.browser,
            DEADLINE_S,
            poll_frequency=0.05,
            ignored_exceptions=(StaleElementReferenceException, ElementClickInterceptedException),
        )
        return wait.until(lambda _browser: condition(), f"{description}\n{self.text()[-2000:]}")

    def text(self) -> str:
        """Return all visible text."""
        return self.browser.find_element(By.TAG_NAME, "body").text

    def see(self, *texts: str) -> None:
        """Wait until all of the texts are visible."""

        def missing() -> list[str]:
            shown = self.text()
            return [text for text in texts if text not in shown]

        self.until(lambda: not missing(), f"not visible: one of {texts}")

    def see_no_more(self, text: str) -> None:
        """Wait until a text is not visible."""
        self.until(lambda: text not in self.text(), f"still visible: {text}")

    def find(self, xpath: str, within: WebElement | None = None) -> WebElement:
        """Return the first visible element, as soon as there is one."""
        root = within or self.browser

        def visible() -> WebElement | None:
            elements = root.find_elements(By.XPATH, xpath)
            return next((element for element in elements if element.is_displayed()), None)

        element: WebElement = self.until(visible, f"not there: {xpath}")
        return element

    def click(self, name: str, *, inside: str = "") -> None:
        """Click a button, link or menu item by its name, in the dialog or row `inside` names."""
        same = f'normalize-space(.)="{name}" or @aria-label="{name}"'
        control = f"(self::button or self::a or @role='menuitem') and ({same})"
        xpath = f"{inside or ''}//*[{control}]"

        def clicked() -> bool:
            self.find(xpath).click()
            return True

        self.until(clicked, f"not clickable: {name}")

    def choose(self, menu: str, item: str) -> None:
        """Open the menu of actions of a thing, and choose an item."""
        self.click(f"Actions for {menu}")
        self.click(item)

    def fill(self, label: str, value: str) -> None:
        """Type into a field, or choose from a list, by its label."""
        field = self.field(label)
        if field.tag_name == "select":
            Select(field).select_by_visible_text(value)
            return
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value)

    def tick(self, label: str) -> None:
        """Click a check box by its label."""
        self.field(label).click()

    def field(self, label: str) -> WebElement:
        """Return the field of a label."""
        shown = self.find(f'//label[normalize-space(.)="{label}"]')
        return self.browser.find_element(By.ID, str(shown.get_attribute("for")))

    def confirm(self, button: str) -> None:
        """Click a button of the dialog, and wait until the dialog closes."""
        self.click(button, inside=DIALOG)
        self.dialog_closes()

    def dialog_closes(self) -> None:
        """Wait until no dialog is open."""
        self.until(
            lambda: not self.browser.find_elements(By.XPATH, DIALOG),
            "the dialog stays open",
        )

    def row(self, name: str) -> str:
        """Return the text of the row of a table that contains a link or cell of this name."""
        xpath = f'//tbody//tr[.//*[normalize-space(text())="{name}"]]'
        return str(self.until(lambda: self.find(xpath).text, f"no row {name}"))

    def picture(self, name: str) -> Path:
        """Save what is visible as build/cockpit/NAME.png."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        self.browser.save_screenshot(str(path))
        run(["pngquant", "--force", "--skip-if-larger", "--ext", ".png", "--", path])
        return path

    def violations(self, axe: str) -> list[str]:
        """Return what axe-core finds wrong."""
        self.browser.execute_script(axe)
        violations: list[str] = self.browser.execute_async_script(AXE)
        return violations

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the viewport."""
        script = "return document.scrollingElement.scrollWidth - innerWidth"
        return int(self.browser.execute_script(script))

    def load_ms(self, place: str) -> float:
        """Return the milliseconds from the navigation to the first row of a table."""
        self.open(place)
        return float(self.browser.execute_async_script(FIRST_ROW))
