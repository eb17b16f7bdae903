"""A run as a report: one HTML file that needs nothing beside it, the same as Markdown, and its score as JSON."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import msgspec

from capture.atomic import write_atomically
from curate.words import printable_lines
from replay import chart
from replay.added_meter import AddedMeter, meter_sources
from replay.document import Document, Section
from replay.judge import judge_run, observe_trial, read_score
from replay.markdown import markdown
from replay.runfolder import RunFolder
from replay.sections import cache, client, feed, megawatt, power, score, server, setup, speed, steady, work
from replay.sections.feed import under_feed
from replay.sections.source import Seen, Source
from replay.sentence import denominator_name, findings, slo_text
from replay.slo import slo_from_json
from replay.trial import Trial, read_trial
from replay.verify import verify

type Format = Literal["html", "md", "json"]

_NOT_SAID = (
    "Whether the answers are any good: they are drained and thrown away; the canary only sees a shift. Tools are a "
    "wait, not a program.",
    "How another dataset, other delays or another length policy would do: results under unlike policies do not "
    "compare.",
)


def write_report(
    folder: RunFolder, out: Path | None = None, form: Format = "html", *, feed_w: float | None = None
) -> Path:
    """Writes report.html, .md or .json and returns its path. Raises RunFault or TrialFault for what is missing."""
    path = out or folder.path / f"report.{form}"
    write_atomically(path, render(folder, form, feed_w=feed_w).encode())
    return path


def render(folder: RunFolder, form: Format = "html", *, feed_w: float | None = None) -> str:
    """The report's text, with what a feed of so many watts holds where one is named.

    A run that is not finished is judged from the trials that are there.
    """
    unfinished = not folder.score_path.is_file()
    contents = judge_run(folder) if unfinished else read_score(folder.score_path)
    under = under_feed(contents, feed_w) if feed_w is not None else None
    if form == "json":
        return as_json(contents, under)
    meters = folder.meters()
    source = Source(
        score=contents,
        trials={
            number: _seen(read_trial(folder.trial_path(number)), contents, meters) for number in folder.trial_numbers()
        },
        folder=folder.path.resolve().name,
        differences=() if unfinished else tuple(str(difference) for difference in verify(folder)),
        unfinished=unfinished,
        feed=under,
    )
    document = compose(source)
    return printable_lines(markdown(document) if form == "md" else page(document))


def _seen(trial: Trial, contents: dict[str, Any], meters: Sequence[AddedMeter]) -> Seen:
    zero_unix_us, end_ns = trial.facts.zero_unix_us, trial.facts.phase_end_ns
    later = [sample for meter in meters for sample in meter.cut(zero_unix_us=zero_unix_us, end_ns=end_ns)]
    return Seen(
        records=trial.records,
        observation=observe_trial(
            trial,
            [slo_from_json(slo) for slo in contents["slos"]],
            exact_length=contents["policies"]["length"]["mode"] == "exact",
        ),
        samples=(*trial.samples, *later),
        power_sources=(*trial.facts.power_sources, *meter_sources(meters)),
        server=trial.server,
    )


def as_json(contents: dict[str, Any], under: dict[str, Any] | None = None) -> str:
    """score.json with the verdict sentences in front, and what a feed holds where one was named."""
    said: dict[str, Any] = {"verdict_sentences": [finding.sentence for finding in findings(contents)]}
    said |= {"feed": under} if under is not None else {}
    said |= contents
    return msgspec.json.format(msgspec.json.encode(said), indent=1).decode() + "\n"


def page(document: Document) -> str:
    """The document as one HTML file without any outer resource or script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count(1)
    environment.filters["own_ids"] = lambda text: chart.with_own_ids(text, f"chart{next(numbers)}")
    return environment.get_template("report.html.j2").render(document=document)


def compose(source: Source) -> Document:
    """The document of a run, top to bottom what a buyer asks."""
    contents = source.score
    sections: tuple[Section | None, ...] = (
        score.attainment(source),
        score.search(source),
        speed.speed(source),
        cache.cache(source),
        server.server(source),
        megawatt.megawatt(source),
        feed.feed(source.feed) if source.feed is not None else None,
        power.power(source),
        client.client(source),
        steady.steady(source),
        work.jobs(source),
        work.failures(source),
        work.tokens(source),
        setup.system(source),
        setup.policies(source),
        setup.files(source),
    )
    started = datetime.datetime.fromtimestamp(contents["started_unix_us"] / 1e6, tz=datetime.UTC)
    return Document(
        findings=findings(contents),
        because=_because(contents),
        subject=f"{contents['endpoint']['model']} on {contents['system']['name']}, {started:%Y-%m-%d %H:%M} UTC",
        alarm=_alarm(source),
        not_said=_not_said(contents),
        at_a_glance=score.at_a_glance(contents),
        beside=tuple(contents["labels"]),
        sections=tuple(section for section in sections if section is not None),
        foot=f"agentdyno {contents['agentdyno_version']}, methodology {contents['methodology_version']}, plan "
        f"{contents['plan']['digest']}, dataset {contents['dataset_digest']}.",
    )


def _because(contents: dict[str, Any]) -> tuple[str, ...]:
    """Why the first verdict is what it is; a number that was found explains itself in its section."""
    first = contents["results"][0] if contents["results"] else contents
    if contents["results"] and (first["search"] or {}).get("outcome") == "found":
        return ()
    said = findings(contents)[0].detail
    return tuple(reason for reason in first["reasons"] if reason not in said)


def _alarm(source: Source) -> tuple[str, ...]:
    if source.unfinished:
        return (
            f"This run is not finished: {source.folder} has no score.json. What stands here is judged from its trials "
            "so far.",
        )
    if not source.differences:
        return ()
    first = source.differences[:10]
    more = len(source.differences) - len(first)
    return (
        f"The numbers of score.json do not follow from the files of this run ({len(source.differences)} differences):",
        *first,
        *((f"… and {more} more.",) if more else ()),
    )


def _not_said(contents: dict[str, Any]) -> tuple[str, ...]:
    said = []
    if contents["slos"]:
        names = "; ".join(f"{slo['name']} is {slo_text(slo)}" for slo in contents["slos"][:1])
        said.append(f"Anything about another service level: {names}.")
    said += _NOT_SAID
    rows = [row for result in contents["results"] for row in result["denominators"] if row["unit"] == "W"]
    if rows:
        drawn = [row for row in rows if row["id"] in ("accelerator", "accelerator_engaged", "node_or_rack")] or rows
        scopes = "; ".join(dict.fromkeys(f"{denominator_name(row)}: {row['scope']}" for row in drawn))
        said.append(f"The power of anything outside a denominator's scope. {scopes[0].upper()}{scopes[1:]}.")
    else:
        said.append("Anything about power: none was measured or declared for this number.")
    if contents["kind"] == "run":
        said.append(
            "How many agents this system sustains: this is one trial at a number that was asked for, no search."
        )
    elif not contents["restart"]["command_given"]:
        said.append("How much a restart of the server changes: it was not restarted, and no interval holds that.")
    return tuple(said)
