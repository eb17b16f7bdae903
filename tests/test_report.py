"""The report of every way in which a run can end: as a page, as Markdown, as JSON, in the terminal."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from replay import chart
from replay.document import Chart, Document, Table
from replay.judge import SCORE_VERSION, power_totals
from replay.live import LiveWatcher, duration, phase_of
from replay.markdown import markdown
from replay.power.source import PowerSample
from replay.protocol import Progress
from replay.recent import Recent, at_rank
from replay.report import as_json, compose, page, render, write_report
from replay.runfolder import RunFolder
from replay.score import run
from replay.sections.cache import shares_over_time
from replay.sections.feed import feed, parse_feed, under_feed
from replay.sections.power import over_time, scope_watts
from replay.sections.source import Source
from replay.sentence import UNKNOWN, findings, share, value
from replay.summary import LABELS_MOST, summary_lines
from replay.trial import TrialOrder
from tests.power_example import GPUS, SYSTEM
from tests.report_example import SLOS, WINDOW, judged, run_source, seen
from tests.sample_sessions import text_session
from tests.simulated_run import PROTOCOL, SimulatedDriver, simulated_request

OUTCOMES = (
    *("found", "maximum", "undecided", "none_holds", "invalid", "unfinished"),
    *("run", "run_without_slo", "no_trial"),
)


class Reader(html.parser.HTMLParser):
    """A page's text, its tags with attributes, and whether every tag was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self._quiet = 0
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "hr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def without_charts(source: Source) -> Document:
    """The words and tables alone: drawing takes most of a report's time."""
    document = compose(source)
    sections = [
        dataclasses.replace(section, blocks=tuple(block for block in section.blocks if isinstance(block, Table)))
        for section in document.sections
    ]
    return dataclasses.replace(document, sections=tuple(sections))


def check_words(text: str) -> None:
    assert re.findall(r"(?<![\w-])(None|nan|NaN|inf|undefined|Undefined|null)(?![\w-])", text) == []


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_reads_well_on_the_page_and_in_markdown(outcome: str) -> None:
    source = run_source(outcome)
    document = without_charts(source)
    text = page(document)
    reader = Reader(text)
    written = markdown(document)
    for words in (reader.text, written):
        check_words(words)
        for digest in source.score["files"].values():
            assert digest in words
        assert "agentdyno replay verify example-run" in words
        assert source.score["dataset_digest"] in words
        assert source.score["plan"]["digest"] in words
        assert "undisclosed" in words
        assert "methodology 1.1" in words
    assert len(text) < 1_500_000
    assert findings(source.score)[0].claim in reader.text
    names = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {attributes["href"] for tag, attributes in reader.tags if tag == "a"} <= {f"#{name}" for name in names}
    tables = [tag for tag, _ in reader.tags if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    trials = next(section for section in document.sections if section.slug == "trials")
    listed = trials.blocks[-1]
    assert isinstance(listed, Table)
    assert [line.cells[0].text for line in listed.rows] == [str(item["trial"]) for item in source.score["trials"]]


PER_MEGAWATT = (
    r"[\d,]+ agents per MW of accelerators \(measured\), [\d,]+ of nodes or racks \(measured\), "
    r"[\d,]+ of provisioned power, [\d,]+ of the facility, from what was drawn and a stated PUE \(declared\)"
)
SENTENCES = {
    "found": r"\d+ agents hold aa-shape-2026-07/20: estimate [\d.]+, 95 % interval [\d.]+ to [\d.]+; \d+ certified; "
    rf"\d+ agents hold it on their own requests; {PER_MEGAWATT}; class standard; methodology 1\.1\.",
    "maximum": r"At least 16 agents hold aa-shape-2026-07/20: the search ended at its maximum, no interval; nothing "
    r"certified; .*",
    "undecided": r"Undecided on aa-shape-2026-07/20: the confirmation trials do not say .*",
    "none_holds": r"Not even one agent holds aa-shape-2026-07/20: a single agent misses the level; class standard; "
    r"methodology 1\.1\.",
    "invalid": r"No score on aa-shape-2026-07/20: the trial at 8 agents was invalid twice.*",
    "unfinished": r"No score on aa-shape-2026-07/20: the search is not over: 32 agents come next; .*",
    "run": r"8 agents hold aa-shape-2026-07/20: one trial, not searched; \d agents hold it on their own requests; "
    r"power measured; methodology 1\.1\.",
    "run_without_slo": r"8 agents driven: no service level was asked; power measured; methodology 1\.1\.",
    "no_trial": r"No agents driven, and the numbers may not be believed: no trial was run; methodology 1\.1\.",
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_verdict_is_one_sentence_everywhere(outcome: str) -> None:
    score = run_source(outcome).score
    sentence = findings(score)[0].sentence
    assert re.fullmatch(SENTENCES[outcome], sentence)
    assert summary_lines(score)[0] == sentence
    assert json.loads(as_json(score))["verdict_sentences"][0] == sentence
    assert json.loads(as_json(score))["trials"] == score["trials"]
    check_words("\n".join(summary_lines(score)))


def test_the_page_needs_nothing_beside_it_and_shows_every_trial_in_its_charts() -> None:
    source = run_source("found")
    document = compose(source)
    text = page(document)
    reader = Reader(text)
    check_words(reader.text)
    assert [tag for tag, _ in reader.tags if tag in ("script", "link", "img", "iframe")] == []
    assert re.findall(r"url\((?!#)|@import|(?:src|href)=\"(?!#)", text) == []
    assert len(text) < 1_500_000
    names = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert "at least 400 agents at 60 tok/s and prompts of 90 kB, tried before the first trial" in reader.text
    assert "power cap (W)" in reader.text
    pictures = [attributes for _, attributes in reader.tags if attributes.get("role") == "img"]
    assert len(pictures) >= 12
    assert all(attributes["aria-label"] for attributes in pictures)
    assert f"{len(source.score['trials'])} trials between 2 and 33 agents" in str(pictures[0]["aria-label"])
    blocks = [block for section in compose(source).sections for block in section.blocks]
    again = next(block for block in blocks if isinstance(block, Chart))
    assert chart.with_own_ids(again.draw(), "chart1") in text  # the same run, the same bytes
    slugs = [section.slug for section in document.sections]
    assert slugs == [
        *("attainment", "trials", "speed", "cache", "server", "power", "devices", "client", "steady", "jobs"),
        *("failures", "work", "system", "policies", "files"),
    ]


def test_a_dead_server_has_no_number_but_a_page_with_charts() -> None:
    text = Reader(page(compose(run_source("none_holds")))).text
    check_words(text)
    assert "Not even one agent holds" in text
    assert "∞" in text


def test_text_from_a_server_or_a_file_stays_text() -> None:
    source = run_source("run")
    score = copy.deepcopy(source.score)
    evil = "<script>alert(1)</script> [x](http://e.example) | **b** `c`"
    score["endpoint"]["model"] = evil
    score["system"]["launch_command"] = evil
    score["labels"].append(evil)
    score["trials"][0]["measure"]["invalid_reasons"] = [evil]
    document = without_charts(dataclasses.replace(source, score=score))
    reader = Reader(page(document))
    assert "script" not in [tag for tag, _ in reader.tags]
    assert evil in reader.text
    written = markdown(document)
    assert "<script>" not in written.replace("\\<script\\>", "")
    assert "](http" not in written.replace("\\](http", "")


def test_a_real_folder_is_reported_and_its_changed_number_is_named(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path / "first")
    run(simulated_request(folder.path), sessions, driver=SimulatedDriver())
    score = json.loads(folder.score_path.read_bytes())
    untouched = folder.score_path.read_bytes()
    score["endpoint"]["model"] = score["labels"][0] = "\x1b]0;owned\x07 \x9b2J \u202e"
    folder.score_path.write_text(json.dumps(score))
    for form in ("html", "md"):
        assert not set(render(folder, form)) & set("\x1b\x07\x9b\u202e")  # type: ignore[arg-type]
    folder.score_path.write_bytes(untouched)

    path = write_report(folder)
    assert path == folder.path / "report.html"
    text = Reader(path.read_text()).text
    check_words(text)
    assert "agentdyno replay verify first" in text
    assert "do not follow" not in text
    assert "# " in render(folder, "md")
    assert json.loads(render(folder, "json"))["score_version"] == SCORE_VERSION

    score = json.loads(folder.score_path.read_bytes())
    score["trials"][0]["measure"]["ttft_s"]["p95"] = 0.001
    folder.score_path.write_text(json.dumps(score))
    assert "do not follow from the files of this run (1 differences)" in render(folder, "md")
    folder.score_path.unlink()
    assert "This run is not finished: first has no score.json" in render(folder, "md")


def sessions() -> list[Any]:
    return [text_session(f"session-{number}", turns=4) for number in range(4)]


def test_the_summary_is_short_and_says_where_the_rest_is() -> None:
    score = run_source("found").score
    score["labels"] = [f"label {number}" for number in range(LABELS_MOST + 3)]
    lines = summary_lines(score)
    assert lines[-1] == "  ! … and 3 more, in the report"
    assert sum(line.startswith("  !") for line in lines) == LABELS_MOST + 1
    assert any("agents per MW" in line and "certified" in line for line in lines)
    assert any(line.startswith(f"  trial {score['results'][0]['reference_trial']}, ") for line in lines)


def test_every_denominator_stands_beside_the_others_with_what_it_leaves_out() -> None:
    source = run_source("found")
    result = source.score["results"][0]
    section = next(section for section in without_charts(source).sections if section.slug == "power")
    table, energy = section.blocks[:2]
    assert isinstance(table, Table)
    assert isinstance(energy, Table)
    assert [line.cells[0].text for line in table.rows] == [
        *("accelerator", "MW of accelerators", "MW of nodes or racks", "MW of provisioned power"),
        *("MW of the facility, from what was drawn and a stated PUE", "MW of the facility, as provisioned"),
    ]
    assert [line.cells[1].text for line in table.rows] == [
        *("declared", "measured", "measured", "provisioned", "declared", "declared")
    ]
    assert all(item["scope"] in str(line.note) for item, line in zip(result["denominators"], table.rows, strict=True))
    assert "no CPU, network, cooling" in str(table.rows[1].note)
    assert re.fullmatch(r"[\d,.]+ W ± [\d.]+ W, k = 2", table.rows[1].cells[6].text)
    assert len(energy.rows) == len(result["energy"]) == 5
    assert energy.rows[0].cells[5].text == share(result["energy"]["accelerator"]["idle_share"])
    assert any("serves" in point and "engineers" in point for point in section.points)
    assert any("USD per agent-hour" in point and "USD per job" in point for point in section.points)
    said = "\n".join(summary_lines(source.score))
    for words in ("per output token", "jobs per MWh", "USD per agent-hour", "engineers", "k = 2", "no CPU"):
        assert words in said


def test_the_curve_holds_every_trial_and_its_chart_is_drawn() -> None:
    source = run_source("found")
    section = next(section for section in compose(source).sections if section.slug == "power")
    drawn = next(block for block in section.blocks if isinstance(block, Chart))
    assert "11 trials between 2 and 33 agents" in drawn.says
    assert len(drawn.draw.args[0]) == 5 * 11  # type: ignore[attr-defined]  # a point for each trial and denominator
    assert "<path" in drawn.draw()
    table = section.blocks[-1]
    assert isinstance(table, Table)
    assert sorted(line.cells[0].text for line in table.rows) == sorted(str(number) for number in range(1, 12))
    for line in table.rows:
        item = next(row for row in source.score["curve"] if str(row["trial"]) == line.cells[0].text)
        assert value(item["power"]["accelerator"]["agents_per_megawatt"]) in [cell.text for cell in line.cells]


def test_devices_idle_power_and_what_the_devices_said() -> None:
    section = next(section for section in without_charts(run_source("found")).sections if section.slug == "devices")
    totals, devices, budget, idle, sources, states = (block for block in section.blocks if isinstance(block, Table))
    assert [line.cells[0].text for line in totals.rows] == ["accelerator", "node or rack"]
    assert len(devices.rows) == len(budget.rows) == 9
    assert {line.cells[2].text for line in devices.rows} == {"counter", "gauge"}
    assert all(line.cells[-1].text != UNKNOWN for line in budget.rows)
    assert [line.cells[3].tone for line in idle.rows] == ["missed", "missed"]  # it moved by more than a tenth
    assert [line.cells[0].text for line in sources.rows] == ["nvml", "exporter:http://pdu.example.com/metrics"]
    assert [line.cells[1].text for line in states.rows] == ["700 W"] * 8
    assert [line.cells[7].text for line in states.rows].count("software power cap") == 1
    assert "ECC on" in states.caption


def test_a_lost_device_has_no_total_and_says_which_one() -> None:
    source = run_source("run")
    seen_trial = source.trials[1]
    score = copy.deepcopy(source.score)
    own = [item for item in seen_trial.samples if item.device != GPUS[5]]
    power, _ = power_totals(seen_trial.power_sources, own, SYSTEM, WINDOW)
    for row, total in zip(score["trials"][0]["power"], power, strict=True):
        row |= json.loads(msgspec.json.encode(total))
    score["results"][0]["denominators"] = []
    lost = dataclasses.replace(source, score=score, trials={1: dataclasses.replace(seen_trial, samples=tuple(own))})
    section = next(section for section in without_charts(lost).sections if section.slug == "devices")
    totals = section.blocks[0]
    assert isinstance(totals, Table)
    assert totals.rows[0].cells[-1].text == "no"
    assert totals.rows[0].cells[3].text == UNKNOWN
    assert GPUS[5] in str(totals.rows[0].note)
    chart_of = over_time(own, score["trials"][0]["power"], WINDOW)
    assert chart_of is not None
    assert chart_of.says == "Watts over time of node or rack (measured)."  # what is left of the others is no total


def test_watts_over_time_are_those_of_the_counters_and_a_gap_is_not_bridged() -> None:
    def counts(*seconds: int) -> list[PowerSample]:
        return [
            PowerSample(t_ns=at * 10**9, device="a", kind="energy_j", value=300.0 * at, read_us=0, flag="ok")
            for at in seconds
        ]

    whole = scope_watts([counts(*range(20))])
    assert [watts for _, watts in whole] == pytest.approx([300.0] * len(whole))
    assert len(whole) == 10  # two of the source's own steps each
    gap = scope_watts([counts(*range(8), *range(16, 24))])
    assert [watts for _, watts in gap] == pytest.approx([300.0] * len(gap))
    assert [at for at, _ in gap if 8 < at < 16] == []
    assert scope_watts([counts(*range(20)), []]) == []
    gauge = [dataclasses.replace(sample, kind="power_w", value=50.0) for sample in counts(*range(20))]
    both = scope_watts([gauge, counts(*range(20))])
    assert [watts for _, watts in both] == pytest.approx([350.0] * 10)
    fallen = counts(0, 1, 2, 3) + [
        dataclasses.replace(sample, value=(sample.value or 0.0) - 1e3) for sample in counts(4, 5, 6, 7)
    ]
    assert all(watts == pytest.approx(300.0) for _, watts in scope_watts([fallen]))


def test_a_feed_holds_whole_nodes_as_they_are_provisioned(tmp_path: Path) -> None:
    score = run_source("found").score
    result = score["results"][0]
    under = under_feed(score, 1e6)
    # 9,450 W a node by the rules, 11,812.5 W with a design PUE of 1.25: 84 of them are 992 kW.
    assert under["fit"]["units"] == 84
    assert under["fit"]["unit_w"] == pytest.approx(11_812.5)
    first = under["results"][0]
    assert first["agents"] == pytest.approx(84 * result["agents"])
    assert first["agents_certified"] == pytest.approx(84 * result["certified"])
    assert first["engineers"] == pytest.approx(84 * result["agents"] / 2.5)
    assert under["results"][1]["agents"] is None  # undecided
    words = markdown(without_charts(dataclasses.replace(run_source("found"), feed=under)))
    assert "1 MW hold 84 whole nodes, 672 accelerators, at 11.81 kW each" in words
    check_words(words)

    annual = {**score, "system": {**score["system"], "pue_kind": "annual"}}
    assert under_feed(annual, 1e6)["fit"]["units"] == 105
    assert under_feed(score, 11_000.0)["results"][0]["agents"] == 0  # not even one node
    nothing = {**score, "system": {**score["system"], "provisioned": None}}
    assert under_feed(nothing, 1e6)["fit"] is None
    assert "does not size a feed" in feed(under_feed(nothing, 1e6)).lead[0]
    broken = {**score, "system": {**score["system"], "provisioned": {"cooling": "air"}}}
    assert under_feed(broken, 1e6)["why_not"]


@pytest.mark.parametrize(
    ("text", "watts"), [("1MW", 1e6), ("0.5 MW", 5e5), ("250kW", 2.5e5), ("800000W", 8e5), ("250KW", 2.5e5)]
)
def test_feeds_in_words(text: str, watts: float) -> None:
    assert parse_feed(text) == watts


@pytest.mark.parametrize("text", ["", "1", "1mW", "-1MW", "0kW", "infMW", "1e6W", "1MVA", "1MW 2MW"])
def test_what_is_no_feed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--feed"):
        parse_feed(text)


def test_numbers_in_words() -> None:
    assert [value(number, "s") for number in (None, 0.0, 0.12345, 12.0, 1234.5, float("inf"))] == [
        *("–", "0 s", "0.123 s", "12 s", "1,234 s", "–"),
    ]
    assert [share(number) for number in (None, 0.0, 0.004, 0.5, 0.997, 1.0)] == [
        "–",
        "0%",
        "0.4%",
        "50%",
        "99.7%",
        "100%",
    ]


def test_cached_shares_over_time_are_weighted_by_tokens_and_unknown_where_nothing_reports() -> None:
    records = seen(8).records
    found = shares_over_time(records, WINDOW, slices=6)
    assert [at for at, _, _ in found] == [15.0, 25.0, 35.0, 45.0, 55.0, 65.0]
    done = [
        item
        for item in records
        if item.outcome == "ok" and WINDOW.start_ns <= item.sent_at_ns < WINDOW.start_ns + 10**10
    ]
    cached = sum(item.cached_tokens or 0 for item in done) / sum(item.prompt_tokens or 0 for item in done)
    assert found[0][1] == pytest.approx(cached)
    silent = [dataclasses.replace(item, cached_tokens=None) for item in records]
    assert {reported for _, reported, _ in shares_over_time(silent, WINDOW)} == {None}


def test_charts_thin_their_lines_and_keep_both_ends() -> None:
    points = chart.cumulative([float(number) for number in range(10_000)])
    assert len(points) == chart.POINTS_MOST
    assert [*points[0], *points[-1]] == pytest.approx([1.0, 2e-4, 9999.0, 1.0])
    assert chart.cumulative([1.0, float("inf")]) == ((1.0, 0.5),)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_a_long_run_shows_where_it_is(terminal: bool) -> None:
    out, clock = io.StringIO(), iter(range(0, 1000, 30))
    console = Console(file=out, force_terminal=terminal, width=160, color_system=None)
    protocol = dataclasses.replace(PROTOCOL, min_measure_s=60.0, max_phase_s=120.0)
    progress = Progress(
        agents=26,
        elapsed_s=31.0,
        measured_s=30.0,
        finished_trajectories=12,
        finished_per_agent_min=0,
        requests=512,
        in_flight=20,
        p25_output_tok_s=21.4,
        p95_ttft_s=3.2,
        watts=5120.0,
    )
    with LiveWatcher(console, clock=lambda: float(next(clock))) as watcher:
        watcher.say("planning \x9b2J")
        watcher.trial_begins(TrialOrder(trial=7, agents=26, purpose="confirm", draw=2), protocol)
        watcher.progress(progress)
    said = out.getvalue()
    assert "planning" in said
    assert "\x9b" not in said
    for words in ("trial 7 · 26 agents · confirming around the answer", "measured 30 of 60 s", "speed P25 21.4 tok/s"):
        assert (words in said) == terminal
    assert ("first token P95 3.2 s · 5,120 W · 20 in flight" in said) == terminal
    assert ("\x1b" in said) == terminal


def test_a_trial_that_takes_minutes_says_so_in_a_log() -> None:
    out, now_s = io.StringIO(), [0.0]
    protocol = dataclasses.replace(PROTOCOL, min_measure_s=300.0, max_phase_s=600.0)
    with LiveWatcher(Console(file=out, width=80, color_system=None), clock=lambda: now_s[0]) as watcher:
        watcher.trial_begins(TrialOrder(trial=7, agents=26, purpose="confirm", draw=2), protocol)
        for second in range(0, 200, 10):
            now_s[0] = float(second)
            progress = Progress(
                agents=26,
                elapsed_s=now_s[0],
                measured_s=max(0.0, now_s[0] - 30),
                finished_trajectories=12,
                finished_per_agent_min=0,
                requests=512,
                in_flight=20,
                watts=5120.0,
            )
            watcher.progress(progress)
    lines = out.getvalue().splitlines()
    assert [re.search(r"measured (\d+) of 300 s", line)[1] for line in lines] == ["30", "90", "150"]  # type: ignore[index]
    assert lines[0].startswith("trial 7 · 26 agents · confirming around the answer · measured 30 of 300 s · 5,120 W · ")
    assert "left of this trial" in lines[0]


def test_a_finished_trial_says_what_it_drew_or_why_that_is_not_known() -> None:
    item = judged(1, 8, "confirm", slos=SLOS[:1], late=0, dead=False)
    lost = dataclasses.replace(item.power[0], valid=False, power_w=None, reasons=("GPU-3 was lost \x1b[2J",))
    for found, words in (
        (item, r"· [\d,]+ ± \d+ W accelerator$"),
        (dataclasses.replace(item, power=(lost,)), r"· no power of accelerator: GPU-3 was lost  \[2J$"),
        (dataclasses.replace(item, power=()), r"agents wait \d+%$"),
    ):
        out = io.StringIO()
        with LiveWatcher(Console(file=out, width=400, color_system=None)) as watcher:
            watcher.trial_ends(found, reused=False)
        assert re.search(words, out.getvalue().splitlines()[0])


def test_phases_and_durations_in_words() -> None:
    def at(elapsed_s: float, measured_s: float) -> str:
        progress = Progress(
            agents=300,
            elapsed_s=elapsed_s,
            measured_s=measured_s,
            finished_trajectories=0,
            finished_per_agent_min=0,
            requests=0,
            in_flight=0,
        )
        return phase_of(PROTOCOL, progress)[0]

    assert at(1.0, 0.0) == "starting agents, 101 of 300"
    assert at(3.5, 0.0) == "settling, 4 s since the start"
    assert at(9.0, 5.0) == "measured 5 of 20 s"
    assert [duration(seconds) for seconds in (40.0, 720.0, 12_600.0)] == ["40 s", "12 min", "3.5 h"]


def test_the_live_numbers_are_of_the_latest_answers() -> None:
    recent = Recent()
    assert at_rank(recent.ttfts_s, 0.95) is None
    done = [item for item in seen(8).records if item.outcome == "ok"]
    for record in done:
        recent.note(record)
    last = done[-1]
    assert last.first_content_at_ns is not None
    assert recent.ttfts_s[-1] == pytest.approx((last.first_content_at_ns - last.intended_at_ns) / 1e9, abs=1e-4)
    assert at_rank([3.0, 1.0, 2.0, 4.0], 0.25) == 2.0
    for _ in range(20):
        recent.note(dataclasses.replace(last, outcome="timeout"))
    assert at_rank(recent.ttfts_s, 0.95) is None  # it never came
    assert at_rank(recent.ttfts_s, 0.5) is not None
