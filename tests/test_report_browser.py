"""The pages in a real Chromium: elements, keyboard, sorting, the device selector, a phone, and nothing fetched.

Skipped where there is no Chromium, unless ACE_FAST_REQUIRE names it.
"""

import base64
import io
import json
import os
import shutil

import pytest
from report_rows import everything

from ace_fast.bench import results
from ace_fast.report import benchmarks, page, rows
from ace_fast.report.chart import Lines, Series

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One headless Chromium for all tests here."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError as error:
        missing = str(error)
    else:
        missing = "" if binary and driver else "no chromium with its chromedriver on the path"
    if missing:
        if "chromium" in os.environ.get("ACE_FAST_REQUIRE", "").split(","):
            pytest.fail(f"ACE_FAST_REQUIRE names chromium, but {missing}", pytrace=False)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A page of benchmarks and one like that of a run."""
    folder = tmp_path_factory.mktemp("pages")
    results.write(folder / "rows.json", everything())
    (folder / "report.html").write_text(benchmarks.write(rows.load([folder / "rows.json"])))
    curve = Lines("Loss", "epoch", "loss", [Series("train", [(i, 1 / (1 + i)) for i in range(200)])], log_y=True)
    wide = page.table(["a " * 9] * 30, [("", [page.Cell("number " * 3, 1.0)] * 30)], "Wide")
    sections = [page.Section("curves", "Curves", "", page.cards([page.card(curve)]) + wide),
                page.Section("made", "Made with", "", page.pairs([("git", "f" * 200)], small=True))]
    (folder / "run.html").write_text(page.page("A run with a " + "very" * 20 + " long name", "", sections))
    return {name: (folder / f"{name}.html").as_uri() for name in ("report", "run")}


def look(browser, width, scheme="light", media="screen"):
    """A window of that width and scheme; the screenshot as an array."""
    import numpy as np
    from PIL import Image

    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))


def test_pages_show_themselves_everywhere_and_fetch_nothing(browser, places):
    for name, place in places.items():
        browser.get("about:blank")
        browser.get_log("performance")
        browser.get(place)
        light, dark, phone = look(browser, 1200), look(browser, 1200, "dark"), look(browser, 360)
        assert light.shape == dark.shape == (800, 1200, 3) and phone.shape == (800, 360, 3)
        assert light[5, 5].min() > 240 and dark[5, 5].max() < 40  # the paper
        assert light.std() > 10 and dark.std() > 10 and phone.std() > 10  # and something on it
        # a page that can be moved sideways is wider than its window
        script = "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
        assert max(browser.execute_script(script)) <= 360, name
        assert look(browser, 700, "dark", "print")[5, 5].min() > 240  # paper is white
        assert browser.execute_script(
            "return [getComputedStyle(document.querySelector('.bar')).display, document.images.length]") == ["none", 0]
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
        assert asked and all(url.startswith(("file:", "data:")) for url in asked)
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_the_benchmarks_work_by_keyboard_and_pointer(browser, places):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    run, find = browser.execute_script, lambda selector: browser.find_element(By.CSS_SELECTOR, selector)
    press = lambda *keys: browser.switch_to.active_element.send_keys(*keys)  # noqa: E731
    browser.get(places["report"])
    look(browser, 1200)
    shown = lambda: run("return [...new Set([...document.querySelectorAll('.card[data-device]')]"  # noqa: E731
                        ".filter(c => c.offsetParent).map(c => c.dataset.device))]")
    assert shown() == ["some-processor-2-threads"]

    # The first Tab leads past the contents.
    find("body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the results"
    press(Keys.ENTER)
    assert run("return document.activeElement.id") == "main"

    # Arrow keys change the device; sections without anything of it go, and their links with them.
    run("document.querySelector('input[name=device]').focus()")
    press(Keys.ARROW_RIGHT)
    assert shown() == ["nvidia-h200"] and not find("#products").is_displayed()
    assert not find("nav a[href='#products']").is_displayed() and find("nav a[href='#steps']").is_displayed()
    press(Keys.ARROW_RIGHT)
    assert "None of these cases was measured" in find("main").text
    press(Keys.ARROW_RIGHT)
    assert len(shown()) >= 2 and find("#products").is_displayed()

    # Tables sort both ways by their numbers, and say so.
    find("#steps details summary").send_keys(Keys.ENTER)
    column = "return [...document.querySelectorAll('#steps tbody tr')].map(r => +r.cells[2].dataset.value || 0)"
    heading = find("#steps th:nth-child(3)")
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    *times, missing = run(column)  # what failed has no time and stays below
    assert times == sorted(times) and missing == 0 and heading.get_attribute("aria-sort") == "ascending"
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert run(column) == [*reversed(times), 0] and heading.get_attribute("aria-sort") == "descending"

    # A chart is one stop of the Tab key; arrow keys walk along its marks and show their numbers.
    run("document.querySelector('#steps .card .mark').focus()")
    assert find("#tip").text.startswith("eager: 160 ms")
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert find("#tip").is_displayed() and find("#tip").text.startswith("ace_fast: 40.0 ms; 20 to 80 % of steps: 39")
    press(Keys.HOME)
    assert find("#tip").text.startswith("eager")
    press(Keys.ESCAPE)
    assert not find("#tip").is_displayed()
    assert run("return document.querySelector('#steps .card svg').querySelectorAll('[tabindex=\"0\"]').length") == 1

    # A bar leads to its command, which was folded away.
    press(Keys.ENTER)
    command = browser.switch_to.active_element
    assert command.is_displayed() and "python -m bench --workload nbody_segnn --case batch100" in command.text

    # The theme does not wait for the system.
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = run(paper)
    find(".theme").send_keys(Keys.ENTER)
    find(".theme").send_keys(Keys.ENTER)
    assert find(".theme").text == "Theme: dark" and run(paper) != light
