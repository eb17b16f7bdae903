"""The review page in a real browser: keys decide, findings show, hostile text stays text, nothing leaves loopback."""

from __future__ import annotations

import copy
import dataclasses
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from curate.review.decision import REASONS, Decisions
from curate.review.queue import Queue
from curate.review.server import Review, ReviewServer, serving
from curate.review.view import SessionView
from tests.chromium import Page, page
from tests.review_sample import build_sample, hostile, invoice, long_output

# The page has loaded the session whole that it names.
LOADED = (
    "!!document.body?.dataset.session && "
    "document.body.dataset.session === document.querySelector('.row.picked .id')?.textContent"
)
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "review.png"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample(tmp_path_factory.mktemp("review") / "team-week-47")


@pytest.fixture
def server(built: Path) -> Iterator[ReviewServer]:
    (built / ".private" / "review.jsonl").unlink(missing_ok=True)
    with serving(Review(Queue.open(built), reviewer="hannah")) as server:
        yield server


@pytest.fixture
def tab(tmp_path: Path, server: ReviewServer) -> Iterator[Page]:
    with page(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait(LOADED)
        yield tab
        assert {urlsplit(url).netloc for url in tab.asked if urlsplit(url).scheme != "data"} == {
            f"127.0.0.1:{server.port}"
        }


def state(server: ReviewServer, session_id: str) -> str:
    """As another process reads it from the disk."""
    queue = server.review.queue
    return Decisions(queue.folder).standing(session_id, queue.cases[session_id].digest).state


def picked(tab: Page) -> str:
    return str(tab.run("document.querySelector('.row.picked .id').textContent"))


def pick(tab: Page, session_id: str) -> None:
    tab.run(f"document.getElementById('row-{session_id}').click()")
    tab.wait(f"document.body.dataset.session === '{session_id}'")


def test_keys_walk_decide_and_undo_and_every_decision_is_on_the_disk(tab: Page, server: ReviewServer) -> None:
    first, second, third, *_ = server.review.queue.cases
    assert picked(tab) == first == invoice().session_id
    assert tab.run("location.href") == f"http://127.0.0.1:{server.port}/"  # the token is out of the address bar
    assert tab.run("document.querySelectorAll('.row').length") >= 8
    tab.key("j")
    tab.wait(LOADED)
    assert picked(tab) == second
    tab.key("k")
    tab.wait(LOADED)
    assert picked(tab) == first

    tab.key("a")
    tab.wait(f"document.body.dataset.session === '{second}'")  # on to the next to decide
    assert state(server, first) == "approved"
    tab.key("d")
    tab.wait("document.getElementById('drop-dialog').open")
    tab.key("2")
    tab.wait(f"document.body.dataset.session === '{third}'")
    assert state(server, second) == "dropped"
    decision = Decisions(server.review.queue.folder).standing(second, server.review.queue.cases[second].digest).decision
    assert decision is not None
    assert (decision.reason, decision.reviewer) == (REASONS[1], "hannah")
    tab.wait("document.getElementById('tally').textContent.startsWith('1 approved, 1 dropped')")

    tab.key("u")
    tab.wait(
        f"document.body.dataset.session === '{second}' && document.getElementById('badge').textContent === 'to decide'"
    )
    assert state(server, second) == "undecided"
    tab.key("d")
    tab.wait("document.getElementById('drop-dialog').open")
    tab.run("document.getElementById('drop-text').focus()")
    tab.write("1 word of mine")
    tab.key("Enter")
    tab.wait(f"document.body.dataset.session === '{third}'")
    assert state(server, second) == "dropped"
    tab.key("?")
    tab.wait("document.getElementById('help-dialog').open")
    tab.key("a")  # keys of the page do nothing behind a dialog
    tab.key("Escape")
    tab.wait("!document.getElementById('help-dialog').open")
    assert state(server, third) == "undecided"

    tab.send("Page.reload")  # the tab knows its token still, and the page what was decided
    tab.wait("document.body?.dataset.session === '" + third + "'")
    assert tab.run("document.querySelectorAll('.row.approved, .row.dropped').length") == 2
    assert tab.said == []


def test_findings_are_highlighted_stepped_through_and_searched(tab: Page, server: ReviewServer) -> None:
    pick(tab, invoice().session_id)
    tab.wait("document.querySelectorAll('#reading mark.secret').length > 0")
    assert "<SECRET:" in tab.run("document.querySelector('#reading mark.secret').textContent")
    assert "in this session" in tab.run("document.querySelector('#reading mark.secret').title")
    said = [tab.run("document.getElementById('finding-at').textContent")]
    kinds = set()
    for _ in range(tab.run("document.querySelectorAll('#legend input').length")):
        tab.key("n")
        said.append(tab.wait(f"(t => t !== {said[-1]!r} && t)(document.getElementById('finding-at').textContent)"))
        assert tab.run(
            "(m => m.top > 0 && m.bottom < innerHeight)(document.querySelector('mark.now').getBoundingClientRect())"
        )
        kinds.add(said[-1].partition(": ")[2])
    assert said[1].startswith("1 of ")
    assert "named value" in kinds or "sensitive file" in kinds
    assert "is Winter" not in "".join(kinds)

    pick(tab, long_output().session_id)
    assert tab.run("document.querySelector('#reading').textContent.length") < 20_000
    tab.key("n")
    tab.wait("document.querySelector('mark.now')?.textContent.startsWith('<SECRET:')")
    tab.key("/")
    tab.write("Needle 47")
    tab.key("Enter")
    tab.wait("document.getElementById('search-at').textContent === '1 of 1'")
    assert tab.run("[...CSS.highlights.get('hit')][0].toString()") == "needle 47"
    before = tab.run("document.querySelector('#reading').textContent.length")
    tab.run("document.querySelector('button.more').click()")
    tab.wait(f"document.querySelector('#reading').textContent.length > {before} + 30000")
    tab.key("Escape")
    tab.wait("document.activeElement.id !== 'search-text'")
    assert tab.said == []


def test_hostile_text_stays_text(tab: Page, server: ReviewServer) -> None:
    pick(tab, hostile().session_id)
    tab.wait("[...document.querySelectorAll('#reading .text')].some(text => text.textContent.includes('onerror='))")
    assert tab.run("document.querySelector('#facts').textContent").count("<script>") >= 3
    tab.key("n")
    assert tab.wait("document.querySelector('mark[data-hidden]')?.dataset.hidden") == "⟨U+202E⟩"
    assert tab.run("window.__ran") is None
    assert tab.run("/\\u202e/.test(document.querySelector('#facts').textContent)") is False
    assert (
        tab.run("document.querySelectorAll('body script, body img, body a, body iframe, body svg [onload]').length")
        == 0
    )
    assert tab.run("document.scripts.length") == 1
    assert (
        tab.run(
            "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
        )
        == []
    )
    markup = "document.body.innerHTML = '<b>x</b>'"
    refused = f"(() => {{ try {{ {markup}; return false }} catch (fault) {{ return fault instanceof TypeError }} }})()"
    assert tab.run(refused) is True  # trusted types: no string becomes markup, whoever tries
    assert all("Trusted" in said or "trusted" in said for said in tab.said)


def test_a_tab_without_the_token_sees_nothing(tmp_path: Path, server: ReviewServer) -> None:
    with page(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url.partition("#")[0])
        tab.wait("document.getElementById('said')?.textContent.includes('it holds the token')")
        assert tab.run("document.querySelectorAll('.row').length") == 0
        frame = f"document.body.append(Object.assign(document.createElement('iframe'), {{ src: '{server.url}' }}))"
        tab.send("Page.navigate", url="data:text/html,<p>a page of a stranger</p>")
        tab.wait("document.body?.textContent.includes('stranger')")
        answer = f"fetch('http://127.0.0.1:{server.port}/api/queue').then(a => a.status, () => 'refused')"
        assert tab.run(answer) == "refused"
        tab.run(frame)
        tab.wait("window.frames.length === 1")
        # The browser puts a page of its own there, which no other page can look into.
        tab.wait("(() => { try { return !frames[0].document } catch { return true } })()")
        assert tab.asked[-1].startswith(f"http://127.0.0.1:{server.port}/")


class Many(Review):
    """Shows the rows of one session under every name."""

    def view(self, session_id: str) -> SessionView:
        self.case(session_id)
        view = copy.copy(super().view(invoice().session_id))
        view.outline = dataclasses.replace(view.outline, session_id=session_id)
        return view


def test_ten_thousand_sessions_are_a_scroll(built: Path, tmp_path: Path) -> None:
    queue = Queue.open(built)
    one = queue.cases[invoice().session_id]
    more = {f"session-{n:05d}": dataclasses.replace(one, session_id=f"session-{n:05d}") for n in range(10_000)}
    queue = dataclasses.replace(queue, cases={**queue.cases, **more})
    with serving(Many(queue, reviewer="r")) as server, page(tmp_path) as tab:
        tab.send("Page.navigate", url=server.url)
        tab.wait(LOADED)
        assert tab.run("document.querySelectorAll('.row').length") < 60
        tab.run("document.getElementById('queue').scrollTop = 1e9")
        tab.wait("!!document.getElementById('row-session-09999')")
        assert tab.run("document.querySelectorAll('.row').length") < 60
        pick(tab, "session-09999")
        shown = "document.getElementById('row-session-09999')"
        assert tab.run(f"{shown}.getAttribute('aria-posinset')") == str(len(queue.cases))
        tab.key("k")
        tab.wait("document.body.dataset.session === 'session-09998'")


def test_the_picture_in_the_docs_is_of_this_page(tab: Page, server: ReviewServer) -> None:
    """Set AGENTDYNO_PICTURES=1 to draw it again."""
    take_picture(tab)
    drawn = tab.picture()
    if os.environ.get("AGENTDYNO_PICTURES"):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(drawn)
    kept = PICTURE.read_bytes()
    assert len(kept) < 300_000
    assert struct.unpack(">II", kept[16:24]) == struct.unpack(">II", drawn[16:24]) == (1400, 900)


def take_picture(tab: Page) -> None:
    """The view that the docs show: some decided, a risky session open at a finding."""
    for _ in range(2):
        tab.key("j")
        tab.wait(LOADED)
    for key in ("a", "a"):
        before = picked(tab)
        tab.key(key)
        tab.wait(f"{LOADED} && document.body.dataset.session !== '{before}'")
    pick(tab, invoice().session_id)
    for _ in range(10):
        tab.key("n")
        tab.wait("!!document.querySelector('mark.now')")
        if "sensitive" in tab.run("document.getElementById('finding-at').textContent"):
            break
    tab.wait("document.getElementById('said').textContent = '', true")
