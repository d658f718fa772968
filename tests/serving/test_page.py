"""The page in a browser."""

import re
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


def texts(browser: Any, selector: str, what: str = "innerText") -> list[str]:
    """The texts of elements, all at one moment."""
    script = "return [...document.querySelectorAll(arguments[0])].map(each => each[arguments[1]])"
    found: list[str] = browser.execute_script(script, selector, what)
    return found


def shown_items(browser: Any) -> list[str]:
    """Ids of the recommended items."""
    return [
        text.split()[-1].strip("()") for text in texts(browser, "#items .item > span:nth-child(2)")
    ]


def wait_for(browser: Any, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120).until(lambda page: text in find(page, "#state").text)


def record(site: Site, user: str, items: list[Any], first_time: float = 0) -> None:
    events = [
        {"event_id": f"{user}{n}", "user_id": user, "item_id": item, "timestamp": first_time + n}
        for n, item in enumerate(items)
    ]
    site.client.post("/v1/events", json={"events": events}).raise_for_status()


@pytest.mark.parametrize("width", [1200, 390])
def test_show_a_user_and_add_events(browser: Any, site: Site, a: ServedModel, width: int) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    ids = a.item_ids
    record(site, "ann", [*ids[:3], "never seen"])
    record(site, "bob", [ids[0]])
    browser.set_window_size(width, 800)
    browser.get("about:blank")
    browser.get_log("browser")  # drops what the page of a stopped server has logged
    browser.get(str(site.client.base_url))
    wait_for(browser, "4 events in a state of")  # of the first user that has enough to see
    assert find(browser, "#user").get_attribute("value") == "ann"
    assert texts(browser, "#samples button") == ["ann", "bob"]
    assert not find(browser, "#keys").is_displayed()
    assert texts(browser, "#past .name") == ["never seen", ids[2], ids[1], "A title"]
    assert texts(browser, "#past .id") == [ids[0]]
    best = site.client.get("/v1/users/ann/recommendations").json()["items"]
    assert shown_items(browser) == [item["item_id"] for item in best]
    WebDriverWait(browser, 60).until(lambda _: all(texts(browser, "#items .why")))
    assert texts(browser, "#past small")[:2] == ["at 3 · unknown to the model", "at 2"]
    parts = site.client.get("/v1/users/ann/influence").json()["events"]
    strongest = max((event for event in parts), key=lambda event: event["memory"])
    assert strongest["memory"] > max(event["score"] for event in parts)
    assert texts(browser, "#items .why")[0].startswith(f"often follows {strongest['item_id']}")
    assert texts(browser, "#past .bars", "title") == [
        f"network {part['score']:.3f}, memory {part['memory']:.3f}" for part in parts
    ]
    second = browser.find_elements("css selector", "#items .item")[1]
    second.send_keys(Keys.ENTER)  # the history explains the selected item
    item = best[1]["item_id"]
    parts = site.client.get("/v1/users/ann/influence", params={"item_id": item}).json()["events"]
    assert texts(browser, "#past .bars", "title")[0].startswith(f"network {parts[0]['score']:.3f}")

    find(browser, "#items .add").send_keys(Keys.ENTER)
    wait_for(browser, "5 events in a state of")
    assert "Event recorded and recommendations updated in" in find(browser, "#state").text
    assert texts(browser, "#past .name")[0] == best[0]["item_id"]
    assert texts(browser, "#past small")[0] == "at 4"  # the unit of the log, not a date
    best = site.client.get("/v1/users/ann/recommendations").json()["items"]
    assert shown_items(browser) == [item["item_id"] for item in best]

    find(browser, "#item").send_keys(ids[5], Keys.ENTER)
    wait_for(browser, "6 events in a state of")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []


def test_a_new_user_sees_popular_items(browser: Any, site: Site) -> None:
    browser.get(str(site.client.base_url))
    wait_for(browser, "The event log has no users yet")
    for name in ("<b>nobody</b>", "אבג", "a/b?c"):
        find(browser, "#user").clear()
        find(browser, "#user").send_keys(name)
        find(browser, "#ask button").click()
        wait_for(browser, "No events yet.")
        assert "most popular items" in find(browser, "#basis").text
        assert len(browser.find_elements("css selector", "#items .item")) == 10
    find(browser, "#items .add").click()
    wait_for(browser, "1 event in a state of")
    assert site.client.get("/v1/users").json()["users"] == ["a/b?c"]
    assert re.fullmatch(r"\d+ \w+ 20\d\d", texts(browser, "#past small")[0])  # now


def test_an_empty_list_says_why(browser: Any, site: Site, a: ServedModel) -> None:
    record(site, "all", list(a.item_ids))
    browser.get(str(site.client.base_url))
    wait_for(browser, "24 events in a state of")
    assert find(browser, "#basis").text == "No items: allow, deny and hide_seen leave none."


def test_an_error_leaves_nothing_stale(browser: Any, site: Site, a: ServedModel) -> None:
    record(site, "ann", list(a.item_ids[:3]))
    browser.get(str(site.client.base_url))
    wait_for(browser, "3 events in a state of")
    find(browser, "#item").send_keys("x" * 257)
    find(browser, "#other button").click()
    wait_for(browser, "item_id: must have 1 to 256 bytes")
    assert not find(browser, "#shown").is_displayed()
    find(browser, "#ask button").click()
    wait_for(browser, "3 events in a state of")
    assert find(browser, "#shown").is_displayed()


def test_the_page_asks_for_a_key(browser: Any, open_site: OpenSite, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "shop")
    site = open_site(tmp_path / "keys")
    browser.get(str(site.client.base_url))
    wait_for(browser, "send a key")
    assert not find(browser, "#shown").is_displayed()
    find(browser, "#key").send_keys(key)
    find(browser, "#keys button").click()
    wait_for(browser, "The event log has no users yet")
    assert not find(browser, "#keys").is_displayed()
