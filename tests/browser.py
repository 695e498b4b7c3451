"""A real browser for tests of pages: headless Chromium, driven by Selenium, that downloads nothing."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmmsim.testing.slow import time_limit

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1440,900",
)  # fmt: skip
_PATIENCE = 30.0


def why_not() -> str:
    """Why there is no browser here, or ""."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install -e '.[test]'"
    if not (CHROMIUM.exists() and DRIVER.exists()):
        return "Chromium is not there: apt install chromium chromium-driver"
    return ""


class Browser:
    """One Chromium. `open` loads a page and waits until it can be used."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver = driver
        self._folder = folder
        self._count = 0

    def open(self, page: bytes, hash: str = "", *, scripts: bool = True) -> None:
        self._count += 1
        file = self._folder / f"page{self._count}.html"
        file.write_bytes(page)
        self.log()
        self.cdp("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.driver.get(file.as_uri() + hash)
        if scripts:
            ready = (
                "return document.documentElement.dataset.ready || !document.getElementById('failed').hidden"
            )
            self.wait(ready)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def run(self, script: str) -> Any:
        """What a script of this folder returns."""
        return self.js((Path(__file__).parent / script).read_text(encoding="utf-8"))

    def wait(self, code: str, seconds: float = _PATIENCE) -> Any:
        """Until the script returns something true; that."""
        end = time.monotonic() + time_limit(seconds)
        while True:
            found = self.js(code)
            if found:
                return found
            assert time.monotonic() < end, f"in vain: {code}"
            time.sleep(0.02)

    def keys(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        code = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
        return list(self.js(code, selector))

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """The viewport in CSS pixels, and how many real ones each of them has."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def scheme(self, scheme: str, *, still: bool = False) -> None:
        """What the system wants: light or dark; less motion."""
        motion = "reduce" if still else "no-preference"
        features = [("prefers-color-scheme", scheme), ("prefers-reduced-motion", motion)]
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": n, "value": v} for n, v in features])

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def log(self) -> list[str]:
        """What came to the browser's console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with a fresh profile. Where `why_not` has a reason there is none."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="vmmsim-browser-", ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*_FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            driver.set_script_timeout(time_limit(_PATIENCE))
            driver.set_page_load_timeout(time_limit(_PATIENCE))
            yield Browser(driver, Path(folder))
        finally:
            driver.quit()
