"""Debian's Chromium, driven by selenium, which can reach nothing but this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

import pytest
from selenium import webdriver

PAGE_S = 60.0  # for a browser that starts on a busy machine
BROWSER = [
    "--headless=new",
    "--disable-background-networking",
    "--disable-dev-shm-usage",  # containers have little of it
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1280,2000",
]


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Skips the test if there is none."""
    found = {name: which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"there is no {' and no '.join(missing)}; Debian's packages are chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for argument in [*BROWSER, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()
