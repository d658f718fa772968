"""The page in a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recblr.serving.keys import add_key
from recblr.serving.model import ServedModel
from serving.fixtures import OpenSite, Site

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("no Chromium", allow_module_level=True)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.implicitly_wait(10)
    yield browser
    browser.quit()


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def first_lines(browser: Any, selector: str) -> list[str]:
    elements = browser.find_elements("css selector", selector)
    return [element.text.splitlines()[0] for element in elements]


def shown_items(browser: Any) -> list[str]:
    return [line.split()[0] for line in first_lines(browser, "#items button")]


def wait_for(browser: Any, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120).until(lambda page: text in find(page, "#state").text)


@pytest.mark.parametrize("width", [1200, 390])
def test_show_a_user_and_add_events(browser: Any, site: Site, a: ServedModel, width: int) -> None:
    ids = a.item_ids
    events = [
        {"event_id": f"e{n}", "user_id": "ann", "item_id": item, "timestamp": n}
        for n, item in enumerate([*ids[:3], "never seen"])
    ]
    site.client.post("/v1/events", json={"events": events})
    browser.set_window_size(width, 800)
    browser.get(str(site.client.base_url))
    assert find(browser, "#users option").get_attribute("value") == "ann"
    assert not find(browser, "#keys").is_displayed()

    from selenium.webdriver.common.keys import Keys

    find(browser, "#user").send_keys("ann", Keys.ESCAPE, Keys.TAB, Keys.ENTER)  # no mouse
    wait_for(browser, "4 events in a state of")
    assert first_lines(browser, "#past li") == [
        "never seen",
        ids[2],
        ids[1],
        f"A title ({ids[0]})",
    ]
    parts = site.client.get("/v1/users/ann/influence").json()["events"]
    by_memory = sum(part["memory"] != 0 for part in parts)
    assert by_memory > 0
    assert len(browser.find_elements("css selector", "#past svg")) == 6 + by_memory
    assert len(browser.find_elements("css selector", "#past rect.memory")) == by_memory
    assert "contribution of the memory" in find(browser, "#meaning").text
    best = site.client.get("/v1/users/ann/recommendations").json()["items"]
    assert shown_items(browser) == [item["item_id"] for item in best]

    find(browser, "#items button").send_keys(Keys.ENTER)
    wait_for(browser, "5 events in a state of")
    assert "Event recorded and recommendations updated in" in find(browser, "#state").text
    assert first_lines(browser, "#past li")[0] == best[0]["item_id"]
    best = site.client.get("/v1/users/ann/recommendations").json()["items"]
    assert shown_items(browser) == [item["item_id"] for item in best]

    find(browser, "#item").send_keys(ids[5], Keys.ENTER)
    wait_for(browser, "6 events in a state of")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []


def test_a_new_user_sees_popular_items(browser: Any, site: Site) -> None:
    browser.get(str(site.client.base_url))
    find(browser, "#user").send_keys("<b>nobody</b>")
    find(browser, "#ask button").click()
    wait_for(browser, "No events yet.")
    assert "most popular items" in find(browser, "#basis").text
    assert len(browser.find_elements("css selector", "#items button")) == 10


def test_an_empty_list_says_why(browser: Any, site: Site, a: ServedModel) -> None:
    events = [
        {"event_id": f"e{n}", "user_id": "all", "item_id": item, "timestamp": n}
        for n, item in enumerate(a.item_ids)
    ]
    site.client.post("/v1/events", json={"events": events})
    browser.get(str(site.client.base_url))
    find(browser, "#user").send_keys("all")
    find(browser, "#ask button").click()
    wait_for(browser, "24 events in a state of")
    assert find(browser, "#basis").text == "No items: allow, deny and hide_seen leave none."


def test_the_page_asks_for_a_key(browser: Any, open_site: OpenSite, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "shop")
    site = open_site(tmp_path / "keys")
    browser.get(str(site.client.base_url))
    wait_for(browser, "send a key")
    find(browser, "#key").send_keys(key)
    find(browser, "#keys button").click()
    wait_for(browser, "Select or type a user id.")
    assert not find(browser, "#keys").is_displayed()
