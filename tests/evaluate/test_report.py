"""The report in a real browser: it renders, the filters work, nothing is logged, no request leaves the page."""

import json
import shutil

import pytest

from evaluate.cli.main import main
from tests.evaluate.conftest import save_untrained

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")


@pytest.fixture(scope="module")
def report(tmp_path_factory, checkpoint):
    """A report of two checkpoints with a comparison."""
    out = tmp_path_factory.mktemp("report")
    other = save_untrained(out / "plain", "demo", seed=2)
    main(
        [
            "--ckpt",
            str(other),
            str(checkpoint),
            "--data",
            "scenes",
            "--limit",
            "12",
            "--out",
            str(out),
            "--workers",
            "0",
            "--protocol",
            "paper",
            "aligned",
            "--compare",
            "plain",
            "untrained_dcls",
        ]
    )
    return out / "report.html"


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    found.set_window_size(1300, 2000)
    yield found
    found.quit()


def shown(browser, selector):
    return [e for e in browser.find_elements("css selector", selector) if e.is_displayed()]


def test_report_in_a_browser(browser, report):
    browser.get(f"file://{report}")
    assert "Alignment with human attention: scenes" in browser.find_element("tag name", "h1").text
    assert len(shown(browser, "figure.chart svg")) == 8
    assert browser.execute_script(
        "return [...document.images].map(i => { i.loading = 'eager'; return i; }).length"
    ) == len(browser.find_elements("tag name", "img"))
    browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode())).then(done, done)"
    )
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")

    rows, maps = len(shown(browser, "tr[data-checkpoints]")), len(shown(browser, "section figure[data-explainers]"))
    browser.find_element("css selector", "input[data-explainer=grad_cam]").click()
    assert len(shown(browser, "section figure[data-explainers]")) == maps / 2
    assert len(shown(browser, "tr[data-checkpoints]")) == rows / 2
    assert len(shown(browser, "figure.chart svg")) == 4
    browser.find_element("css selector", "input[data-checkpoint=plain]").click()
    visible = shown(browser, "section div[data-checkpoints]")
    assert visible and {e.get_attribute("data-checkpoints") for e in visible} == {"untrained_dcls"}
    assert not [e for e in shown(browser, "tr[data-checkpoints]") if "plain" in e.get_attribute("data-checkpoints")]

    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    addresses = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert addresses and all(url.startswith(("file:", "data:")) for url in addresses)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_the_page_in_light_and_dark(browser, report, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(f"file://{report}")
    # System colours resolve with the scheme; a canvas turns them into numbers.
    light = browser.execute_script(
        """
        const rgb = (css) => { const c = document.createElement('canvas').getContext('2d');
          c.fillStyle = css; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
        const style = getComputedStyle(document.querySelector('figure.chart svg text') ||
                                       document.querySelector('figure.chart svg g'));
        document.body.style.background = 'Canvas';
        return {text: rgb(getComputedStyle(document.body).color), chart: rgb(style.fill),
                page: rgb(getComputedStyle(document.body).backgroundColor)};
        """
    )
    brightness = {name: sum(value) / 3 for name, value in light.items()}
    assert (brightness["page"] > 200) == (scheme == "light")
    for name in ("text", "chart"):
        assert abs(brightness[name] - brightness["page"]) > 150, (name, brightness)
