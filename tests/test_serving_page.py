"""The server's page in a real browser; skipped where Playwright or Chromium is not installed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.model import Reranker
from trainer.serving.app import create_app
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOSTILE = [
    "disk </script><img src=x onerror=\"document.title='taken'\">",
    "lock full </textarea><b>bold</b>",
    "{{7*7}} ${7*7}",
    "cert \u202edesrever",
    "queue " + "word" * 2500,
    "probe route مرحبا بالعالم",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def address(tiny: dict[str, Path], listening: Callable[..., str], request: pytest.FixtureRequest) -> str:
    """A server on loopback with the settings of the test's parameter."""
    engine = Engine(Reranker.load(tiny["reranker"], device="cpu"), "tiny")
    return listening(create_app(engine, getattr(request, "param", Settings())))


class Visit:
    """One tab, with everything that went wrong in it."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda sent: self.elsewhere(sent.url, address))
        self.page.goto(address)

    def elsewhere(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:")):
            self.faults.append(url)

    def rerank(self, query: str, documents: list[str]) -> list[int]:
        """Fill in the form and return the positions of the documents in the order shown."""
        self.page.fill("#query", query)
        self.page.fill("#documents", "\n".join(documents))
        self.page.press("#query", "Enter")
        self.page.wait_for_selector("#after .row")
        return [int(row.get_attribute("data-index")) for row in self.page.query_selector_all("#after .row")]

    def says(self, words: str) -> None:
        """Wait until the line of state has these words; a script that polls would break the page's policy."""
        playwright.expect(self.page.locator("#state")).to_contain_text(words)

    def state(self) -> str:
        return self.page.inner_text("#state")

    def widest(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth")


@pytest.fixture
def visit(browser, address) -> Iterator[Any]:
    visits: list[Visit] = []

    def visit(**wanted: Any) -> Visit:
        visits.append(Visit(browser, address, **wanted))
        return visits[-1]

    yield visit
    for one in visits:
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_hostile_texts_are_shown_as_they_are_and_in_the_order_of_the_reranker(visit, tiny, width, scheme):
    tab = visit(width=width, scheme=scheme)
    query = "disk </title><script>"
    order = tab.rerank(query, HOSTILE)
    assert order == [row.index for row in Reranker.load(tiny["reranker"], device="cpu").rank(query, HOSTILE)]
    assert tab.page.text_content("#after li:nth-child(1) .text") == HOSTILE[order[0]]
    assert tab.page.query_selector_all("#lists img, #lists b, #lists script") == []
    assert tab.page.title() == "tiny · Reranker"
    assert tab.widest() <= width
    assert tab.faults == []


def test_moves_are_shown_as_text_and_drawn(visit):
    tab = visit()
    order = tab.rerank("disk", ["disk full", "lock held", "cert expired", "queue lag"])
    chips = [chip.inner_text() for chip in tab.page.query_selector_all("#after .chip")]
    for rank, (index, chip) in enumerate(zip(order, chips, strict=True)):
        sign = "▲" if index > rank else "▼"
        assert chip == ("= same" if index == rank else f"{sign} {abs(index - rank)} (was {index + 1})")
    assert len(tab.page.query_selector_all("#moves path")) == 4
    assert "4 documents in" in tab.state()


def test_on_a_phone_one_list_is_shown_at_a_time(visit):
    tab = visit(width=390)
    tab.rerank("disk", ["disk full", "lock held"])
    assert (tab.page.is_visible("#after"), tab.page.is_visible("#before")) == (True, False)
    tab.page.click("#show-before")
    assert (tab.page.is_visible("#after"), tab.page.is_visible("#before")) == (False, True)
    assert tab.page.get_attribute("#show-before", "aria-pressed") == "true"
    for button in tab.page.query_selector_all("button:visible"):
        assert button.bounding_box()["height"] >= 44


def test_the_keyboard_reaches_everything(visit):
    tab = visit()
    tab.page.focus("#query")
    tab.page.keyboard.type("disk")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.insert_text("one document\n\nsecond document")
    assert tab.page.input_value("#separator") == "blank"
    tab.page.keyboard.press("Control+Enter")
    tab.page.wait_for_selector("#after .row")
    row = tab.page.locator("#after .row").first
    row.focus()
    tab.page.keyboard.press("Enter")
    assert row.get_attribute("aria-expanded") == "true"


def test_typed_text_survives_errors_and_a_reload_and_can_be_cleared(visit):
    tab = visit()
    tab.page.fill("#query", "disk")
    tab.page.fill("#documents", "one\ntwo")
    tab.page.route("**/rerank", lambda route: route.abort())
    tab.page.click("#go")
    tab.says("does not respond")
    tab.page.reload()
    assert (tab.page.input_value("#query"), tab.page.input_value("#documents")) == ("disk", "one\ntwo")
    tab.page.click("#clear")
    tab.page.reload()
    assert (tab.page.input_value("#query"), tab.page.input_value("#documents")) == ("", "")


def test_missing_input_is_reported(visit):
    tab = visit()
    tab.page.click("#go")
    assert tab.state() == "Enter a query first."
    tab.page.fill("#query", "disk")
    tab.page.click("#go")
    assert tab.state() == "Paste at least one document."
    tab.page.fill("#documents", "\n".join(map(str, range(1001))))
    tab.page.click("#go")
    assert tab.state() == "There are 1,001 documents; the server accepts at most 1,000 in one request."


def test_a_busy_server_says_when_to_try_again(visit):
    tab = visit()
    tab.page.route("**/rerank", lambda route: route.fulfill(status=429, headers={"Retry-After": "7"}, body="{}"))
    tab.page.click("#example")
    tab.page.click("#go")
    tab.says("busy")
    assert tab.state() == "The server is busy. Try again in 7 seconds; your text is still here."


@pytest.mark.parametrize("address", [Settings(key="secret")], indirect=True)
def test_the_key_is_asked_for_and_kept_out_of_storage(visit):
    tab = visit()
    tab.page.wait_for_selector("#key")
    tab.page.click("#example")
    tab.page.click("#go")
    tab.says("key")
    assert tab.state() == "The API key is missing or wrong. Enter it above and try again."
    tab.page.fill("#key", "secret")
    tab.page.click("#go")
    tab.page.wait_for_selector("#after .row")
    assert "secret" not in tab.page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}, location.href])")
    assert "secret" not in tab.page.text_content("#curl")


def test_of_many_documents_only_the_first_are_shown_until_all_are_requested(visit):
    tab = visit()
    order = tab.rerank("disk", [f"disk {number}" for number in range(100)])
    assert len(order) == 20
    tab.page.click("#more")
    assert len(tab.page.query_selector_all("#after .row")) == 100


def test_the_call_for_the_shell_holds_quotes_safely(visit):
    tab = visit()
    tab.page.fill("#query", "it's $HOME `id`")
    tab.page.fill("#documents", 'one "quoted" document')
    curl = tab.page.text_content("#curl")
    assert """'{"query":"it'\\''s $HOME `id`","documents":["one \\"quoted\\" document"]}'""" in curl


@pytest.fixture
def searching(exported: tuple[Path, Path], listening: Callable[..., str]) -> str:
    """A server of a run with its corpus."""
    from trainer.serving.corpus import Corpus

    folder = exported[1] / "exported"
    engine = Engine(Reranker.load(folder, device="cpu"), "exported")
    return listening(create_app(engine, Settings(), Corpus.open(folder)))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_corpus_of_a_run_is_searched(browser, searching, exported, width):
    from trainer.serving.corpus import Corpus

    tab = Visit(browser, searching, width=width)
    tab.page.check("#corpus")
    assert not tab.page.is_visible("#documents")
    assert "16 documents, the first 6 are reranked" in tab.page.inner_text("#corpus-field")
    tab.page.fill("#query", "disk shows free space")
    tab.page.click("#go")
    tab.page.wait_for_selector("#after .row", state="attached")
    found = Corpus.open(exported[1] / "exported").search("disk shows free space")
    before = [one.text_content() for one in tab.page.query_selector_all("#before .text")]
    assert before == found.texts
    assert sorted(one.text_content() for one in tab.page.query_selector_all("#after .text")) == sorted(found.texts)
    assert "/search" in tab.page.text_content("#curl")
    assert tab.widest() <= width
    tab.page.fill("#query", "zzz")
    tab.page.click("#go")
    tab.says("No document was found.")
    tab.page.uncheck("#corpus")
    assert tab.page.is_visible("#documents")
    assert tab.faults == []
    tab.context.close()


def test_a_server_without_a_corpus_does_not_offer_a_search(visit):
    tab = visit()
    tab.rerank("disk", ["a", "b"])
    assert not tab.page.is_visible("#corpus-field")
