"""`agentdyno replay power`: what the devices draw now, and whether a run's power sources are whole."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from capture.fault import EnvironmentFault
from replay.commands import integrators, power_serve
from replay.commands.power_provisioned import provisioned
from replay.commands.shared import FILE, plain_faults, power_option, print_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Group

    from replay.power.domain import Scope, ScopeSet
    from replay.power.meter import Meter
    from replay.power.reading import Readings, ScopeReading
    from replay.power.source import SourceInfo

LINE_EVERY_S = 1.0
WIDE = 200  # columns of a table that goes to no terminal


@click.group(invoke_without_command=True)
@power_option
@click.option("--system", "system_file", type=FILE, help="system.toml: which devices belong together.")
@click.option("--record", type=FILE, metavar="FILE", help="Write every reading to a new file of power lines.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End after so long. [default: Ctrl-C]")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON a second.")
@click.pass_context
def power(
    context: click.Context,
    powers: tuple[str, ...],
    system_file: Path | None,
    record: Path | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Show what every device draws: average, instant, and the slope of its energy counter.

    Without --power the NVIDIA GPUs of this machine are read, or its CPU packages. A total is that of the counters, and
    of the averages where there is no counter. What --record writes can be added to a run that was made meanwhile:
    agentdyno replay rescore RUN --power file:FILE.

    \b
    agentdyno replay power
    agentdyno replay power --power nvml --power exporter:http://127.0.0.1:9400/metrics --record meter.jsonl
    agentdyno replay power --power rapl --seconds 10 --json
    """
    if context.invoked_subcommand is not None:
        if powers or system_file or record or seconds is not None or as_json:
            raise click.UsageError(f"options of the live meter stand before {context.invoked_subcommand!r}: move them")
        return
    with plain_faults():
        from replay.power.choice import parse_powers
        from replay.power.meter import Meter
        from replay.system import UNDISCLOSED, load_system

        system = load_system(system_file) if system_file is not None else UNDISCLOSED
        choices = parse_powers(powers)
        if record is not None and record.exists():
            raise click.UsageError(f"{record} exists: name a new file, or remove it")
        with (
            Meter(choices, system, strict=False) if choices else _first_of_this_machine() as meter,
            record.open("xb") if record is not None else contextlib.nullcontext() as out,
        ):
            _watch(meter, out, seconds=seconds, as_json=as_json)


@power.command()
@power_option
@click.option("--system", "system_file", required=True, type=FILE, help="system.toml: the devices that are expected.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found.")
@click.pass_context
def check(context: click.Context, powers: tuple[str, ...], system_file: Path, as_json: bool) -> None:
    """Open the power sources of a run and say which devices are found, missing and overlapping, before any load.

    Exits 1 where a device is missing or two overlap, with what to do.

    \b
    agentdyno replay power check --system system.toml --power nvml
    agentdyno replay power check --system system.toml --power nvml --power exporter:http://pdu:9116/metrics,map=pdu.toml
    """
    with plain_faults():
        from replay.power.choice import parse_powers
        from replay.power.meter import Meter
        from replay.system import load_system

        system = load_system(system_file)
        choices = parse_powers(powers)
        if not choices:
            raise click.UsageError("name the power sources that the run will have, for example --power nvml")
        with Meter(choices, system, strict=False) as meter:
            infos, scopes = meter.infos, meter.scopes
    if as_json:
        import msgspec

        value = {"sources": infos, "scopes": list(scopes.values())}
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
    else:
        print_text("\n".join((*check_lines(infos, scopes), *_next_step(scopes, system_file))))
    if any(found.missing or found.overlaps for found in scopes.values()):
        context.exit(1)


def check_lines(infos: Sequence[SourceInfo], scopes: dict[Scope, ScopeSet]) -> list[str]:
    """Sources with their devices, then each scope with what it lacks, one thing a line."""
    charged = {uid for found in scopes.values() for uid in found.devices}
    lines = []
    for info in infos:
        version = f", version {info.version}" if info.version else ""
        lines.append(f"{info.name}: {'measured' if info.measured else 'declared'}, every {info.period_s:g} s{version}")
        for device in info.devices:
            limit = f", limit {device.limit_w:g} W" if device.limit_w is not None else ""
            place = f", in {' / '.join(device.place[:-1])}" if device.place[:-1] else ""
            foreign = "" if device.uid in charged else "; in no total"
            lines.append(f"  found {device.domain} {device.uid} ({device.name}{limit}{place}){foreign}")
        lines += [f"  note: {note}" for note in info.notes]
    for scope, found in scopes.items():
        state = "whole" if found.whole else "no total"
        lines.append(f"{scope.replace('_', ' ')}: {len(found.devices)} found, {state}")
        lines += [f"  missing: {name}" for name in found.missing]
        lines += [f"  overlapping: {outer} and {inner}" for outer, inner in found.overlaps]
        lines += [f"  note: {note}" for note in found.notes]
    return lines


def _next_step(scopes: dict[Scope, ScopeSet], system_file: Path) -> list[str]:
    """What to do where a scope has no total, and what a run would lack until then."""
    lacking = [scope.replace("_", " ") for scope, found in scopes.items() if found.missing or found.overlaps]
    if not lacking:
        return []
    lines = [f"as it stands a run would measure no total of {', '.join(lacking)}:"]
    if any(found.missing for found in scopes.values()):
        lines += [
            f"  what is missing needs a --power that shows it, or its right name in {system_file} (uuid, [[meters]]); "
            "readings of a meter can also be added after the run by agentdyno replay rescore"
        ]
    if any(found.overlaps for found in scopes.values()):
        lines += [
            "  what overlaps stops a run before it begins: leave one of the two out, or say in [[meters]] what each "
            "covers"
        ]
    return lines


def _first_of_this_machine() -> Meter:
    """An open meter of the first source here that opens; raises PowerFault with why none does."""
    from replay.power.choice import parse_powers
    from replay.power.meter import Meter
    from replay.power.source import PowerFault

    faults = []
    for text in ("nvml", "rapl"):
        try:
            return Meter(parse_powers([text])).__enter__()
        except PowerFault as fault:
            faults.append(f"{text}: {fault}")
    raise PowerFault("no power source here. " + "; ".join(faults))


def _watch(meter: Meter, out: BinaryIO | None, *, seconds: float | None, as_json: bool) -> None:
    """Shows the meter until the time is over, Ctrl-C, or the meter's end."""
    import time

    from rich.console import Console
    from rich.live import Live

    from replay.power.lines import encode_header, encode_sample, unix_offset_ns
    from replay.power.reading import Readings

    offset_ns = unix_offset_ns()
    readings = Readings(meter.infos, meter.scopes)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # nothing is cut or folded in a file
    if out is not None:
        out.write(encode_header(meter.infos))

    def read() -> None:
        samples = meter.take()
        if out is not None:
            out.writelines(encode_sample(sample, offset_ns) for sample in samples)
            out.flush()
        readings.hear(samples)

    start_s = time.monotonic()
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    # Ctrl-C is the ordinary end of a live meter.
    with contextlib.suppress(KeyboardInterrupt), live if live is not None else contextlib.nullcontext():
        over, ticks = False, 0
        while meter.alive and not over:
            ticks += 1
            until_s = start_s + ticks * LINE_EVERY_S
            if seconds is not None and until_s >= start_s + seconds:
                over, until_s = True, start_s + seconds
            time.sleep(max(0.0, until_s - time.monotonic()))
            read()
            if as_json:
                click.echo(_json_line(readings, offset_ns))
            elif live is not None:
                live.update(_table(readings), refresh=True)
    read()
    if not as_json and live is None:
        console.print(_table(readings))
    if not meter.alive:
        raise EnvironmentFault("the power meter's process ended by itself: nothing is read any more")


def _json_line(readings: Readings, offset_ns: int) -> str:
    import time

    import msgspec

    now_ns = time.monotonic_ns()
    value: dict[str, Any] = {
        "t_unix_ns": now_ns + offset_ns,
        "devices": readings.devices(now_ns),
        "scopes": readings.scopes(now_ns),
    }
    return msgspec.json.encode(value).decode()


def _table(readings: Readings) -> Group:
    """All devices, then the total of each scope, which rests on counters before gauges."""
    import time

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from curate.words import printable

    now_ns = time.monotonic_ns()
    devices = Table(box=None, pad_edge=False)
    devices.add_column("device", overflow="fold")  # a name that is cut cannot be written into a system file
    devices.add_column("name", overflow="fold")
    devices.add_column("scope", no_wrap=True)
    for name in ("average", "instant", "counter", "limit"):
        devices.add_column(f"{name} W", justify="right", no_wrap=True)
    devices.add_column("")
    for row in readings.devices(now_ns):
        texts = (row.device, row.name, row.domain.replace("_", " "))
        numbers = (row.power_w, row.power_instant_w, row.counter_w, row.limit_w)
        devices.add_row(
            *(Text(printable(text)) for text in texts),
            *(_watts(number) for number in numbers),
            "" if row.flag == "ok" else row.flag,
        )
    totals = Table(box=None, pad_edge=False)
    for name in ("scope", "total W", "basis", "devices"):
        totals.add_column(name, justify="right" if name in ("total W", "devices") else "left", no_wrap=True)
    totals.add_column("")
    for total in readings.scopes(now_ns):
        totals.add_row(
            Text(total.scope.replace("_", " "), style="bold"),
            Text(_watts(total.watts), style="bold"),
            ("measured" if total.measured else "declared") if total.devices else "–",
            str(total.devices),
            Text(printable(_lack(total))),
        )
    return Group(devices, "", totals)


def _watts(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _lack(total: ScopeReading) -> str:
    words = [f"missing {name}" for name in total.missing]
    words += [f"{outer} and {inner} overlap" for outer, inner in total.overlaps]
    return words[0] + (f" (and {len(words) - 1} more)" if len(words) > 1 else "") if words else ""


for command in (*power_serve.COMMANDS, *integrators.COMMANDS, provisioned):
    power.add_command(command)

COMMANDS = (power,)
