"""The page, used in a browser."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

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


def wait_for(browser: Any, text: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda it: text in find(it, "#state").text)


@pytest.mark.parametrize("width", [1200, 390])
def test_a_user_is_looked_at_and_takes_something(
    browser: Any, site: Any, a: Any, width: int
) -> None:
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
    past = [it.text for it in browser.find_elements("css selector", "#past li")]
    assert [it.splitlines()[0] for it in past] == [
        "never seen",
        ids[2],
        ids[1],
        f"A title ({ids[0]})",
    ]
    parts = site.client.get("/v1/users/ann/influence").json()["events"]
    by_memory = [it["memory"] for it in parts if it["memory"]]
    assert len(by_memory) > 0
    assert len(browser.find_elements("css selector", "#past svg")) == 6 + len(by_memory)
    assert len(browser.find_elements("css selector", "#past rect.memory")) == len(by_memory)
    assert "added by the memory" in find(browser, "#meaning").text
    best = site.client.get("/v1/users/ann/recommendations").json()["items"]
    shown = [it.text.split()[0] for it in browser.find_elements("css selector", "#items button")]
    assert shown == [it["item_id"] for it in best]

    find(browser, "#items button").send_keys(Keys.ENTER)
    wait_for(browser, "5 events in a state of")
    assert "Kept, and recommended anew, in" in find(browser, "#state").text
    assert find(browser, "#past li").text.splitlines()[0] == best[0]["item_id"]
    now = site.client.get("/v1/users/ann/recommendations").json()["items"]
    shown = [it.text.split()[0] for it in browser.find_elements("css selector", "#items button")]
    assert shown == [it["item_id"] for it in now]

    find(browser, "#item").send_keys(ids[5], Keys.ENTER)
    wait_for(browser, "6 events in a state of")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []


def test_who_is_new_is_shown_what_is_popular(browser: Any, site: Any) -> None:
    browser.get(str(site.client.base_url))
    find(browser, "#user").send_keys("<b>nobody</b>")
    find(browser, "#ask button").click()
    wait_for(browser, "No events yet.")
    assert "what most take" in find(browser, "#basis").text
    assert len(browser.find_elements("css selector", "#items button")) == 10


def test_a_key_is_asked_for(browser: Any, open_site: Any, tmp_path: Any) -> None:
    from recblr.serving.keys import add_key

    key = add_key(tmp_path / "keys", "shop")
    site = open_site(tmp_path / "keys")
    browser.get(str(site.client.base_url))
    wait_for(browser, "send a key")
    find(browser, "#key").send_keys(key)
    find(browser, "#keys button").click()
    wait_for(browser, "Pick or type a user.")
    assert not find(browser, "#keys").is_displayed()
