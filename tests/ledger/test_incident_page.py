"""The report's page draws what the log says: opened in a real browser, and compared with it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pharox import InMemoryStorage, ProxyFilters, ProxyManager
from pharox.events import AcquireMissed, HealthChecked, LeaseAcquired, LeaseExpired, LeaseReleased
from pharox.events import ProxyChanged as Changed
from pharox.incident import Report, write_report
from pharox.log import Extract
from tests.conftest import fill
from tests.ledger.browser import Shown, driven, needs_chromium, opened
from tests.ledger.incident_story import START, Incident

pytestmark = needs_chromium

END = START + timedelta(minutes=14)
LENGTH_S = (END - START).total_seconds()


class Drawn:
    """An incident, its report, and the report's page in a browser."""

    def __init__(self, storage: InMemoryStorage, report: Report) -> None:
        self.storage, self.report = storage, report
        self.shown: Shown = opened(report.page)
        self.events = list(
            storage.history(
                Extract(
                    after=storage.seq_at(START - timedelta(microseconds=1)),
                    upto=storage.seq_at(END),
                )
            )
        )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """The incident of ``incident_story``, with two minutes before and after its window."""
    storage = InMemoryStorage()
    Incident(storage).play()
    folder = tmp_path_factory.mktemp("incident") / "report"
    return Drawn(storage, write_report(storage, START, END, folder))


def share(moment: datetime) -> float:
    """Return where in the window a moment is, from 0 to 1."""
    return min(1.0, max(0.0, (moment - START).total_seconds() / LENGTH_S))


def number(percent: str) -> float:
    return float(percent.removesuffix("%")) / 100


class TestPicture:
    def test_there_is_one_bar_for_each_lease_where_the_log_has_it(self, drawn: Drawn) -> None:
        """Every lease that was held in the window has its bar, as long as it was held."""
        held = {
            row.id: [START, END, row.consumer_name, "held"]
            for row in drawn.storage.state_at(drawn.events[0].seq - 1)["leases"].values()
        }
        assert len(held) == 6
        for event in drawn.events:
            if isinstance(event, LeaseAcquired):
                held[event.lease_id] = [event.recorded_at, END, event.consumer, "held"]
            elif isinstance(event, LeaseReleased | LeaseExpired):
                ending = "released" if isinstance(event, LeaseReleased) else "expired"
                held[event.lease_id][1::2] = [event.recorded_at, ending]
        bars = [bar for bar in drawn.shown.elements("lease") if "data-lease" in bar]
        assert len(bars) == len(held) == drawn.report.leases
        assert {bar["data-ending"] for bar in bars} == {"held", "released", "expired"}
        by_id = {str(lease_id): facts for lease_id, facts in held.items()}
        for bar in bars:
            began, ended, consumer, ending = by_id[bar["data-lease"]]
            assert number(bar["x"]) == pytest.approx(share(began), abs=1e-6)
            assert number(bar["width"]) == pytest.approx(share(ended) - share(began), abs=1e-6)
            assert (bar["data-consumer"], bar["data-ending"]) == (consumer, ending)

    def test_a_lease_from_before_starts_at_the_edge_and_says_so(self, drawn: Drawn) -> None:
        """What began before the window is marked, and told when it began."""
        before = [bar for bar in drawn.shown.elements("lease") if "data-before" in bar]
        assert len(before) == len(drawn.shown.elements("from-before")) - 1 == 6  # one of the legend
        assert all(bar["x"] == "0%" and "before the window" in bar["data-tip"] for bar in before)

    def test_misses_are_counted_where_they_happened(self, drawn: Drawn) -> None:
        """Each column has the misses of its ten seconds, and all together are those of the log."""
        misses = [event for event in drawn.events if isinstance(event, AcquireMissed)]
        columns = [part for part in drawn.shown.elements("r-at_capacity") if "data-count" in part]
        shown = {round(number(c["x"]) * LENGTH_S / 10): int(c["data-count"]) for c in columns}
        expected = Counter(int((m.recorded_at - START).total_seconds() // 10) for m in misses)
        assert shown == expected
        assert sum(shown.values()) == len(misses) == drawn.report.misses > 100

    def test_availability_is_that_of_the_log(self, drawn: Drawn) -> None:
        """At each step the numbers are the pool's statistics of that moment."""
        steps = drawn.shown.elements("slot")
        assert len(steps) > 100
        for step in steps[::20]:
            seq = drawn.storage.seq_at(datetime.fromisoformat(step["data-at"]))
            (counts,) = drawn.storage.state_at(seq)["pool_stats"].values()
            numbers = (counts.total_proxies, counts.active_proxies, counts.available_proxies)
            names = ("data-total", "data-active", "data-available")
            assert tuple(int(step[name]) for name in names) == numbers
        assert {int(step["data-available"]) for step in steps} >= {0, 5}

    def test_the_time_without_any_proxy_is_a_band_of_its_own_colour(self, drawn: Drawn) -> None:
        """Wherever none was available the band is drawn, in the legend's colour, over nothing."""
        steps = drawn.shown.elements("slot")
        dry = [(s["x"], s["width"]) for s in steps if s["data-available"] == "0"]
        band = [part for part in drawn.shown.elements("dry") if part["tag"] == "rect"]
        assert [(part["x"], part["width"]) for part in band] == dry
        assert 0 < len(dry) < len(steps)
        colours, lowest, areas = driven(
            drawn.report.page,
            "const band = [...document.querySelectorAll('rect.dry')];"
            "const key = getComputedStyle(document.querySelector('.key .dry'), '::before');"
            "const style = band.map(part => getComputedStyle(part));"
            "const colours = style.flatMap(part => [part.fill, part.fillOpacity, part.opacity]);"
            "return [[...new Set([...colours, key.backgroundColor])],"
            " Math.max(...band.map(part => part.getBoundingClientRect().bottom)),"
            " document.querySelector('.area.total').getBoundingClientRect().top];",
        )
        assert colours == ["rgb(209, 52, 56)", "1"]
        assert lowest < areas

    def test_no_mark_hides_a_lease(self, drawn: Drawn) -> None:
        """On each line the marks stand above the bars, so that a lease of a blink is seen too."""
        lines = driven(
            drawn.report.page,
            "return [...document.querySelectorAll('svg.lane')].map(lane => {"
            "const boxes = (what) => [...lane.querySelectorAll(what)]"
            ".map(part => part.getBoundingClientRect());"
            "const {top, bottom} = lane.getBoundingClientRect();"
            "return {top, bottom, marks: boxes('.mark').map(box => [box.top, box.bottom]),"
            " bars: boxes('.lease').map(box => [box.top, box.bottom])}; });",
        )
        assert sum(bool(line["marks"] and line["bars"]) for line in lines) == 5
        for line in lines:
            drawn_to = [line["top"], *(bottom for _, bottom in line["marks"])]
            begins = [line["bottom"], *(top for top, _ in line["bars"])]
            assert max(drawn_to) <= min(begins)
            assert all(line["top"] <= top for top, _ in line["marks"])
            assert all(bottom <= line["bottom"] for _, bottom in line["bars"])

    def test_changes_of_status_are_marked(self, drawn: Drawn) -> None:
        """Each change has its mark, at its moment."""
        changes = [
            (event.after.status.value, round(share(event.recorded_at), 5))
            for event in drawn.events
            if isinstance(event, HealthChecked | Changed) and event.before != event.after
        ]
        marks = [mark for mark in drawn.shown.elements("mark") if "data-at" in mark]
        shown = [(mark["data-status"], round(number(mark["x"]), 5)) for mark in marks]
        assert sorted(shown) == sorted(changes)
        assert {status for status, _ in shown} == {"active", "banned", "slow"}

    def test_every_event_is_listed(self, drawn: Drawn) -> None:
        """The list beside the picture has each event, in order."""
        rows = driven(
            drawn.report.page,
            "return [...document.querySelectorAll('tbody tr')].map(r => "
            "[+r.cells[0].textContent, r.cells[2].textContent]);",
        )
        assert rows == [[event.seq, event.type] for event in drawn.events]


class TestAlone:
    def test_nothing_goes_wrong_and_nothing_is_asked_of_a_network(self, drawn: Drawn) -> None:
        """The console stays silent, and the page refers to nothing outside of itself."""
        assert (drawn.shown.console, drawn.shown.requests) == ([], [])
        for element in drawn.shown.dom.split("<")[1:]:
            assert " src=" not in element
            if " href=" in element:
                assert ' href="#' in element
        assert "default-src 'none'" in drawn.shown.dom

    def test_the_console_would_have_told(self, tmp_path: Path) -> None:
        """The browser that the tests use reports errors and requests."""
        page = tmp_path / "bad.html"
        page.write_text("<img src='http://example.org/x.png'><script>nothing()</script>")
        shown = opened(page)
        assert any("nothing is not defined" in line for line in shown.console)
        assert shown.requests == ["example.org/x.png"]

    def test_an_injected_script_would_not_run(self, drawn: Drawn) -> None:
        """The page's policy refuses every script but its own."""
        html = drawn.report.page.read_text("utf-8")
        copy = drawn.report.page.with_name("injected.html")
        copy.write_text(html.replace("</body>", "<script>document.title = 'x'</script></body>"))
        shown = opened(copy)
        assert "<title>Incident report" in shown.dom
        assert any("Content Security Policy" in line for line in shown.console)


class TestUse:
    def test_pointing_at_a_lease_tells_about_it(self, drawn: Drawn) -> None:
        """Who, when, for how long, with which filters; a click keeps it, Escape lets it go."""
        (bar, *_) = (
            event
            for event in drawn.events
            if isinstance(event, LeaseAcquired) and event.consumer == "search-eu"
        )
        told = driven(
            drawn.report.page,
            f"const bar = document.querySelector('[data-lease=\"{bar.lease_id}\"]');"
            "const tip = document.getElementById('tip');"
            "const at = {bubbles: true, clientX: 300, clientY: 300};"
            "const hidden = [tip.hidden];"
            "bar.dispatchEvent(new PointerEvent('pointermove', at));"
            "hidden.push(tip.hidden);"
            "const text = tip.innerText;"
            "bar.dispatchEvent(new MouseEvent('click', at));"
            "document.body.dispatchEvent(new PointerEvent('pointermove', at));"
            "hidden.push(tip.hidden);"
            "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}));"
            "hidden.push(tip.hidden);"
            "return {hidden, text};",
        )
        assert told["hidden"] == [True, False, False, True]
        assert told["text"].startswith("search-eu\n")
        for fact in (f"{bar.recorded_at:%H:%M:%S}", "country=DE", "least_used", str(bar.lease_id)):
            assert fact in told["text"]

    def test_bars_are_where_their_times_are_on_the_screen(self, drawn: Drawn) -> None:
        """In pixels, too, positions are proportional to times; magnified as much as they should."""
        measure = (
            "const measure = () => {"
            "const track = document.querySelector('.lane').parentElement.getBoundingClientRect();"
            "return [...document.querySelectorAll('.lane [data-lease]')].map(bar => {"
            "const box = bar.getBBox(), place = bar.getScreenCTM();"
            "return [bar.dataset.lease, (box.x + place.e - track.left) / track.width,"
            " box.width / track.width]; }); };"
            "const whole = measure();"
            "for (let n = 0; n < 2; n++) document.querySelector('[data-zoom=closer]').click();"
            "const closer = measure();"
            "const level = document.querySelector('.level.on').dataset.zoom;"
            "document.querySelector('[data-zoom=all]').click();"
            "return {whole, closer, level, again: measure()};"
        )
        found = driven(drawn.report.page, measure)
        bars = {
            bar["data-lease"]: bar for bar in drawn.shown.elements("lease") if "data-lease" in bar
        }
        assert found["level"] == "4"
        assert found["again"] == found["whole"]
        assert len(found["whole"]) == len(bars)
        for zoom, begins, name in ((1, 0.0, "whole"), (4, 0.375, "closer")):
            for lease, left, width in found[name]:
                x, wide = (number(bars[lease][part]) for part in ("x", "width"))
                assert left == pytest.approx((x - begins) * zoom, abs=2e-3)
                assert width == pytest.approx(wide * zoom, abs=2e-3)

    @pytest.mark.parametrize("width", [700, 1400])
    def test_only_the_chart_scrolls_sideways(self, drawn: Drawn, width: int) -> None:
        """In a narrow window the sentences and labels stay in sight; a wide one shows it all."""
        found = driven(
            drawn.report.page,
            "const view = document.querySelector('.view');"
            "const scrolls = view.scrollWidth > view.clientWidth;"
            "view.scrollLeft = 9999;"
            "const ends = [...document.querySelectorAll('.heading li, .label')]"
            ".map(part => part.getBoundingClientRect());"
            "return {window: innerWidth, page: document.documentElement.scrollWidth, scrolls,"
            " left: Math.min(...ends.map(box => box.left)),"
            " right: Math.max(...ends.map(box => box.right))};",
            width=width,
        )
        assert found["window"] == width
        assert found["page"] <= width
        assert found["scrolls"] == (width == 700)
        assert 0 <= found["left"] < found["right"] <= width

    def test_a_drag_shows_that_part_of_the_window(self, drawn: Drawn) -> None:
        """Dragged across the second quarter, the picture shows it alone."""
        shown = driven(
            drawn.report.page,
            "const track = document.querySelector('.lane').parentElement;"
            "const box = track.getBoundingClientRect();"
            "const at = (share) => ({bubbles: true, button: 0,"
            " clientX: box.left + share * box.width, clientY: box.top + 3});"
            "track.dispatchEvent(new PointerEvent('pointerdown', at(0.25)));"
            "track.dispatchEvent(new PointerEvent('pointermove', at(0.5)));"
            "track.dispatchEvent(new PointerEvent('pointerup', at(0.5)));"
            "const style = document.documentElement.style;"
            "return [+style.getPropertyValue('--zoom'), +style.getPropertyValue('--from')];",
        )
        assert shown == [pytest.approx(4, rel=0.01), pytest.approx(0.25, abs=0.002)]

    def test_lines_can_be_read_with_the_keyboard(self, drawn: Drawn) -> None:
        """In a line that has the focus, arrow keys go from mark to mark, and say what it is."""
        first = min(
            (event for event in drawn.events if isinstance(event, AcquireMissed)),
            key=lambda event: event.recorded_at,
        )
        told = driven(
            drawn.report.page,
            "const misses = document.querySelector('svg.misses'); misses.focus();"
            "const press = (key) => misses.dispatchEvent("
            "new KeyboardEvent('keydown', {key, bubbles: true}));"
            "press('ArrowRight'); press('ArrowRight'); press('ArrowLeft');"
            "return [document.activeElement === misses, misses.getAttribute('aria-label'),"
            " document.getElementById('tip').innerText];",
        )
        assert told[:2] == [True, f"{drawn.report.misses} misses, counted every 10 s."]
        assert first.consumer in told[2]
        assert "every proxy that fits was at capacity" in told[2]

    def test_the_list_can_be_searched(self, drawn: Drawn) -> None:
        """Only the lines that have the text remain."""
        left = driven(
            drawn.report.page,
            "const find = document.getElementById('find'); find.value = 'BULK-import';"
            "find.dispatchEvent(new Event('input'));"
            "return [...document.querySelectorAll('tbody tr')].filter(row => !row.hidden)"
            ".map(row => row.cells[4].textContent);",
        )
        expected = [event for event in drawn.events if event.consumer == "bulk-import"]
        assert left == ["bulk-import"] * len(expected)

    def test_one_consumer_can_be_brought_forward(self, drawn: Drawn) -> None:
        """Its leases stay as they are and all others fade; and colours can tell the endings."""
        found = driven(
            drawn.report.page,
            "document.querySelector('button[data-only=\"bulk-import\"]').click();"
            "const bright = [...document.querySelectorAll('.lane .lease:not(.dimmed)')]"
            ".map(bar => bar.dataset.consumer);"
            "document.querySelector('[data-set-colour=ending]').click();"
            "return [bright, document.documentElement.dataset.colour];",
        )
        assert found == [["bulk-import"] * 7, "ending"]


NAMES = (
    "</script><script>document.title='hacked'</script>",
    '"><img src=x onerror="document.title=\'hacked\'">',
    "'; alert(1); //&amp;<!--]]>",
    "\u202egnorw\u202c \u200f\u2066x",
    "a\tb\r\nc\x1b[31m\x07\x85",
    "שלום עולם",
    "📦: 100%",
)


def test_a_hostile_name_is_only_text(tmp_path: Path) -> None:
    """Names with markup, quotes, control characters or other directions are shown, never obeyed."""
    storage = InMemoryStorage()
    manager = ProxyManager(storage)
    for name in NAMES:
        fill(storage, 1, name=name, country=name, source=name)
        manager.acquire_proxy(name, name)
        manager.acquire_proxy(name, name, filters=ProxyFilters(country=name, source=name))
        manager.acquire_proxy(f"unknown {name}", name)
    events = list(storage.events())
    report = write_report(
        storage, events[0].recorded_at, events[-1].recorded_at, tmp_path / "report"
    )
    shown = opened(report.page)
    assert shown.console == []
    assert "<title>Incident report" in shown.dom
    told = driven(
        report.page,
        "return {names: [...document.querySelectorAll('h2 bdi')].map(e => e.textContent),"
        "foreign: document.querySelectorAll('img, iframe, [onerror]').length,"
        "scripts: document.scripts.length,"
        "text: document.body.textContent,"
        "tips: [...document.querySelectorAll('[data-tip]')].map(e => e.dataset.tip).join('\\n')};",
    )
    escaped = {
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
        for name in NAMES
    }
    assert set(told["names"]) == escaped | {f"unknown {name}" for name in escaped}
    assert (told["foreign"], told["scripts"]) == (0, 2)  # the page's own and the test's
    for name in escaped:
        assert told["text"].count(name) > 3
        assert name in told["tips"]
    assert not any(char in told["text"] + told["tips"] for char in "\u202e\u2066\u200f\x1b\x07")
