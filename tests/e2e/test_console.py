"""The console in a real browser (Debian's Chromium, headless) against a service that listens.

Screenshots of every view, wide and narrow, light and dark, are written to build/console, or where MEMR1_ARTEFACTS says.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.console_story import HOSTILE, ORDER, Story, told

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install memr1[dev]")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from tests.e2e.console_page import NARROW, OUTSIDE, POOR_CONTRAST, WIDE, Page  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)
BANK = "name=memories&user_id=mara"
VIEWS = {
    "banks": "",
    "memories": f"entries?{BANK}",
    "memory": f"entries?{BANK}&id=m1",
    "timeline": f"timeline?{BANK}",
    "search": f"search?{BANK}&query=Where+does+Mara+live%3F",
    "chat": f"chat?{BANK}",
    "held": f"held?{BANK}",
    "runs": "runs",
    "run": "run?run=first-try&step=52&index=0",
    "nothing": "entries?name=new&user_id=nobody",
}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with told(tmp_path_factory.mktemp("console")) as story:
        yield story


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Any, story: Story) -> Iterator[Page]:
    page = Page(browser, story)
    page.resize(WIDE)
    page.complaints()
    yield page
    assert page.complaints() == []


def test_a_key_is_asked_for_and_kept_in_the_tab_only(page: Page) -> None:
    page.sign_out()
    page.browser.get(f"{page.story.url}/console")
    page.find(".sign-in input").send_keys("memr1_no_such_key", Keys.ENTER)
    page.says("This key is not accepted")
    assert page.script("return sessionStorage.length") == 0
    box = page.find(".sign-in input")
    box.clear()
    box.send_keys(page.story.admin, Keys.ENTER)
    page.says("console · default · admin")
    assert page.script("return Object.values(sessionStorage)") == [page.story.admin]
    assert page.script("return [localStorage.length, document.cookie, location.href.includes('memr1_')]") == [
        0,
        "",
        False,
    ]
    page.click("button", "Sign out")
    page.find(".sign-in")
    assert page.script("return sessionStorage.length") == 0


def test_who_signs_in_next_sees_nothing_of_who_was_here_before(page: Page) -> None:
    view = "chat?name=left&user_id=max"
    page.open(view)
    page.find(".composer textarea").send_keys("Where is the key?", Keys.ENTER)
    page.says("Where is the key?", ".said")
    page.script("window.before = true")
    page.click("button", "Sign out")
    page.find(".sign-in input").send_keys(page.story.stranger, Keys.ENTER)
    page.find(".composer")
    assert view in page.browser.current_url and page.all(".turn") == []
    assert page.script("return window.before === undefined"), "the page of before is gone with its requests"


def test_text_of_a_memory_is_shown_as_text_and_runs_nothing(page: Page) -> None:
    for view in ("entries?name=odd&user_id=mara&id=m1", "timeline?name=odd&user_id=mara",
                 "search?name=odd&user_id=mara&query=img"):  # fmt: skip
        page.open(view)
        page.says(HOSTILE, "main")
        assert page.all("main img, main script") == [], view
    page.open("chat?name=odd&user_id=mara")
    page.find(".composer textarea").send_keys(HOSTILE, Keys.ENTER)
    page.says(HOSTILE, ".said")
    page.says(HOSTILE, ".basis")
    page.until(lambda: page.all(".did"), "the manager never decided")
    assert page.all("main img, main script") == []
    assert page.script("return window.hacked === undefined")


def test_a_memory_shows_where_it_came_from_and_how_its_versions_differ(page: Page) -> None:
    page.open(f"entries?{BANK}")
    page.click(".entry", "Mara lives in Bergen")
    page.says("Mara lives in Bergen since the spring.", ".wording")
    facts = page.text(".detail .facts")
    assert "manager" in facts and "scripted" in facts and "live, version 2" in facts
    assert "chat-3" in page.text(".sources")
    assert [e.text for e in page.all(".history ins")] == ["Bergen since the spring."]
    assert [e.text for e in page.all(".history del")] == ["Oslo."]
    assert "id=m1" in page.browser.current_url
    page.browser.back()
    page.until(lambda: not page.all(".detail"), "back did not close the memory")


def test_the_numbers_of_a_bank_are_those_of_the_api(page: Page) -> None:
    page.open(f"entries?{BANK}")
    info = page.story.api("GET", "/v1/banks/memories")
    assert page.text("[data-test=live]") == str(info["live"])
    legend = page.text(".legend")
    assert info["events"]["UPDATE"] >= 2
    assert all(f"{count} {event}" in legend for event, count in info["events"].items() if count)


def test_the_bank_of_a_time_is_what_was_live_then(page: Page) -> None:
    page.open(f"timeline?{BANK}")
    log = page.story.api("GET", "/v1/banks/memories/log")["records"]
    second = next(r for r in log if r["seq"] == 6)
    card = next(e for e in page.all(".decision") if e.text.startswith("#6\n") or e.text.startswith("#6 "))
    card.find_element(By.LINK_TEXT, "The bank then").click()
    page.says("This is what the bank held")
    page.says("Mara lives in Oslo.", ".entries")
    page.settled()
    then = page.story.api("GET", "/v1/banks/memories/memories", as_of=second["time"])
    assert [e.text for e in page.all(".entry .text")] == [m["text"] for m in then["memories"]]
    assert "Ben is learning Norwegian." in page.text(".entries") and "maritime" not in page.text(".entries")
    page.click("a", "Back to now")
    page.says("maritime", ".entries")


def test_search_shows_the_scores_of_the_api(page: Page) -> None:
    page.open(f"search?{BANK}")
    page.find("input[type=search]").send_keys("Where does Mara live?", Keys.ENTER)
    page.until(lambda: page.all(".found .score"), "nothing was found")
    page.settled()
    asked = {"query": "Where does Mara live?", "k": 10}
    found = page.story.api("POST", "/v1/banks/memories/search", asked)["results"]
    assert [e.text.strip() for e in page.all(".found .score")] == [f"{m['score']:.3f}" for m in found]
    page.click(".segments label", "Words")
    page.until(lambda: "by=words" in page.browser.current_url, "the way was not kept in the address")
    page.settled()
    worded = page.story.api("POST", "/v1/banks/memories/search", {**asked, "by": "words"})["results"]
    assert [e.text for e in page.all(".found .text")] == [m["text"] for m in worded]


def test_a_search_can_look_back(page: Page) -> None:
    log = page.story.api("GET", "/v1/banks/memories/log")["records"]
    then = next(r for r in log if r["seq"] == 6)["time"]
    asked = {"query": "Mara lives", "k": 10, "as_of": then}
    page.open(f"search?{BANK}&query=Mara+lives&as_of={quote(then)}")
    found = page.story.api("POST", "/v1/banks/memories/search", asked)["results"]
    assert found[0]["text"] == "Mara lives in Oslo."
    assert [e.text for e in page.all(".found .text")] == [m["text"] for m in found]


def test_long_banks_and_logs_come_in_pages(page: Page) -> None:
    at, whose = "/v1/banks/long/memories", {"user_id": "max"}
    for number in range(101):
        page.story.api("POST", at, {"text": f"Note {number}.", "infer": False}, **whose)
    page.open("timeline?name=long&user_id=max")
    assert len(page.all(".decision")) == 100 and "#101" in page.find(".decision").text
    page.click(".pager button", "Next")
    page.until(lambda: [e.text.split()[0] for e in page.all(".decision")] == ["#1"], "the first decision is not there")
    page.open("entries?name=long&user_id=max")
    shown = [e.text for e in page.all(".entry .text")]
    for _ in range(2):
        page.click(".pager button", "Next")
        first = f"Note {len(shown)}."
        page.until(lambda wanted=first: page.all(".entry .text")[0].text == wanted, f"{first} never came")
        shown += [e.text for e in page.all(".entry .text")]
    assert shown == [f"Note {number}." for number in range(101)]


def test_a_chat_shows_what_it_rests_on_and_what_it_did_and_takes_it_back(page: Page) -> None:
    page.open("chat?name=talk&user_id=tom")
    page.find(".composer textarea").send_keys("Tom lives in Turku.", Keys.ENTER)
    page.says("ADD", ".did")
    page.find(".composer textarea").send_keys("Where does Tom live?", Keys.ENTER)
    page.until(lambda: len(page.all(".did")) == 2, "the second message was not remembered")
    assert page.all(".answer")[1].text == "Turku"
    assert [e.text.split("\n")[1] for e in page.all(".basis li.selected")] == ["Tom lives in Turku."]
    held = page.story.api("GET", "/v1/banks/talk/memories", user_id="tom")
    assert [m["text"] for m in held["memories"]] == ["Tom lives in Turku.", "Where does Tom live?"]
    page.click(".turn:nth-child(2) .did button", "Undo")
    page.says("Undone: m2", ".toasts")
    held = page.story.api("GET", "/v1/banks/talk/memories", user_id="tom")
    assert [m["text"] for m in held["memories"]] == ["Tom lives in Turku."]
    page.until(lambda: page.text("[data-test=live]") == "1", "the numbers did not follow")


def test_a_reply_of_the_manager_that_cannot_be_read_is_shown_and_nothing_is_kept(page: Page) -> None:
    page.open("chat?name=talk&user_id=una")
    page.find(".composer textarea").send_keys("garble this", Keys.ENTER)
    page.says("nothing was kept", ".did")
    page.says("Well, let me", ".did pre")
    page.script("document.querySelector('.composer .choice input').click()")
    page.find(".composer textarea").send_keys("garble that", Keys.ENTER)
    page.until(lambda: len(page.all(".turn")) == 2 and not page.all(".writing"), "no answer")
    assert len(page.all(".did")) == 1, "what is not to be remembered is not"


def test_what_was_done_can_be_undone_and_rolled_back_in_the_timeline(page: Page) -> None:
    at, whose = "/v1/banks/undo/memories", {"user_id": "ivy"}
    for text in ("Ivy rows.", "Ivy paints."):
        page.story.api("POST", at, {"text": text, "infer": False}, **whose)
    page.open("timeline?name=undo&user_id=ivy")
    page.click("button[aria-label='Undo decision 2']")
    page.click("dialog button.primary", "Undo")
    page.says("Undone: m2", ".toasts")
    page.says("REVERT", ".timeline")
    assert [m["text"] for m in page.story.api("GET", at, **whose)["memories"]] == ["Ivy rows."]
    page.click("button[aria-label='Roll back to decision 2']")
    page.click("dialog button.primary", "Back to here")
    page.says("Back to decision 2; changed: m2", ".toasts")
    assert [m["text"] for m in page.story.api("GET", at, **whose)["memories"]] == ["Ivy rows.", "Ivy paints."]


def test_what_the_guards_held_is_shown_and_released_or_dropped(page: Page) -> None:
    whose = {"user_id": "zoe"}
    page.open("chat?name=guarded&user_id=zoe")
    page.find(".composer textarea").send_keys(ORDER, Keys.ENTER)
    page.says("Held for an operator to release: standing order", ".did")
    page.story.api("POST", "/v1/banks/guarded/memories", {"text": f"{ORDER} Twice.", "trusted": False}, **whose)
    page.open("held?name=guarded&user_id=zoe")
    assert [e.text for e in page.all("blockquote")] == [ORDER, f"{ORDER} Twice."]
    assert page.story.api("GET", "/v1/banks", **whose)["banks"] == []
    page.click(".decision:nth-child(2) button", "Drop")
    page.click("dialog button.primary", "Drop")
    page.until(lambda: len(page.all("blockquote")) == 1, "what was dropped is still there")
    page.click(".decision button", "Release")
    page.click("dialog button.primary", "Release")
    page.says("Nothing is held")
    held = page.story.api("GET", "/v1/banks/guarded/memories", **whose)
    assert [m["text"] for m in held["memories"]] == [ORDER]


def test_a_memory_is_added_changed_and_deleted_by_hand(page: Page) -> None:
    page.open("entries?name=by-hand&user_id=kim")
    page.says("Nothing is remembered yet")
    page.click("button", "Add memory")
    page.find("dialog textarea").send_keys("Kim skates.")
    page.click("dialog button", "Try out")
    page.says("This would be done", "dialog")
    assert page.story.api("GET", "/v1/banks", user_id="kim")["banks"] == []
    page.click("dialog .buttons button.primary", "Add")
    page.click(".entry", "Kim skates.")
    page.click(".detail button", "Edit")
    box = page.find(".edit textarea")
    box.clear()
    box.send_keys("Kim skis.")
    page.click(".edit button.primary")
    page.says("Kim skis.", ".wording")
    page.click(".detail button", "Delete")
    page.click("dialog button.primary", "Delete")
    page.says("Deleted; its history stays", ".toasts")
    page.says("Nothing is remembered now", ".list")
    history = page.story.api("GET", "/v1/banks/by-hand/memories/m1/history", user_id="kim")["versions"]
    assert [(v["text"], v["status"]) for v in history] == [
        ("Kim skates.", "live"), ("Kim skis.", "live"), ("Kim skis.", "deleted"),
    ]  # fmt: skip


def test_somebody_elses_change_is_not_overwritten_and_shows_up_by_itself(page: Page) -> None:
    at, whose = "/v1/banks/shared/memories", {"user_id": "lea"}
    page.story.api("POST", at, {"text": "Lea swims.", "infer": False}, **whose)
    page.open("entries?name=shared&user_id=lea&id=m1")
    page.click(".detail button", "Edit")
    page.story.api("PATCH", f"{at}/m1", {"text": "Lea dives."}, **whose)
    box = page.find(".edit textarea")
    box.clear()
    box.send_keys("Lea sings.")
    page.click(".edit button.primary")
    page.until(lambda: page.all(".toast.bad"), "the conflict was not told")
    assert page.story.api("GET", f"{at}/m1", **whose)["text"] == "Lea dives."
    page.says("Lea dives.", ".list")


def test_a_key_that_may_only_read_sees_no_way_to_write(page: Page) -> None:
    for view in ("memory", "timeline", "chat"):
        page.open(VIEWS[view], key=page.story.reader)
        shown = {button.text for button in page.all("main button")} | {
            button.text for button in page.all(".side button")
        }
        assert not shown & {"New", "Add memory", "Edit", "Delete", "Undo", "Back to here"}, view
    assert not page.all(".composer input") and "Held" not in page.text(".tabs")
    assert "user ben" not in page.text(".side"), "nor anybody else's banks"
    page.open("runs", key=page.story.reader)
    page.says("the right to read, and admin is needed")


def test_a_run_shows_its_curve_and_its_rollouts(page: Page) -> None:
    page.open("runs")
    page.click("a", "first-try")
    page.settled()
    assert "reward/mean: 40 steps" in page.find(".chart svg").get_attribute("aria-label")
    assert "answerer-grpo (24)" in page.text(".numbers")
    page.click(".list .entry")
    page.says("Ada lives in Oslo.", ".detail")
    detail = page.text(".detail")
    assert "rejected: no live entry 7" in detail and "em_set" in detail
    assert [e.text for e in page.all(".detail .change ins")] == ["Oslo.", "Ada likes ferries."]
    assert "Facts: Ada moved to Oslo." in page.text(".call[open] .prompt")
    page.click("button[aria-label='Step before']")
    page.says("Where does Ada live?", ".group")
    box = page.find("input[type=search]")
    box.send_keys("reward<0.5", Keys.ENTER)
    page.says("1 rollout fit", ".list")
    assert "in `Paris`" in page.text(".entry")
    page.find("input[type=search]").clear()
    page.find("input[type=search]").send_keys("reward<much", Keys.ENTER)
    page.says("compare with a number")
    page.open("runs", key=page.story.stranger)
    page.says("No training runs are shown here")


def test_everything_can_be_reached_with_the_keyboard(page: Page) -> None:
    page.open(f"entries?{BANK}")
    page.press(Keys.TAB)
    assert page.script("return document.activeElement.textContent") == "Skip to the content"
    page.press("j", "j")
    page.says("Memory m2", ".detail")
    page.press("k")
    page.says("Memory m1", ".detail")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all(".detail"), "Escape did not close the memory")
    page.press("/")
    page.until(lambda: page.script("return document.activeElement.type") == "search", "/ did not lead to the search")
    page.press("cello", Keys.ENTER)
    page.says("Ben plays the cello", ".found")
    page.script("document.activeElement.blur()")
    page.press("?")
    page.says("Keyboard", "dialog")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"), "Escape did not close the dialog")
    # whatever can be clicked gets the focus in its turn, and shows it
    page.open(VIEWS["timeline"])
    controls = "document.querySelectorAll('a[href], button:not(:disabled), input, select')"
    wanted = page.script(f"return [...{controls}].filter((e) => e.checkVisibility()).length")
    met = set()
    for _ in range(wanted):
        page.press(Keys.TAB)
        met.add(page.script(
            "const e = document.activeElement; return [...document.querySelectorAll('*')].indexOf(e) + ' ' +"
            " (getComputedStyle(e).outlineStyle !== 'none')"
        ))  # fmt: skip
    assert len(met) == wanted and all(place.endswith("true") for place in met)


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name_and_every_text_a_contrast(page: Page, view: str) -> None:
    for scheme in ("light", "dark"):
        page.resize(WIDE, scheme)
        page.open(VIEWS[view])
        nodes = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "img", "navigation"}
        controls = [n for n in nodes if not n.get("ignored") and n["role"]["value"] in roles]
        assert len(controls) > 5
        assert [n["role"]["value"] for n in controls if not n.get("name", {}).get("value", "").strip()] == []
        assert page.script(POOR_CONTRAST) == [], scheme
        page.shoot(f"{view}-wide-{scheme}")
    headings = [e.tag_name for e in page.all("h1")]
    assert headings == ["h1"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_needs_no_scrolling_sideways(page: Page, view: str) -> None:
    for scheme in ("light", "dark"):
        page.resize(NARROW, scheme)
        page.open(VIEWS[view])
        assert page.script("return document.documentElement.scrollWidth") <= NARROW[0]
        assert page.script(OUTSIDE) == []
        page.shoot(f"{view}-narrow-{scheme}")
