"""`agentdyno replay engine`: a real serving system on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.commands.shared import (
    FILE,
    plain_faults,
)


@click.command()
@click.option("--backend", type=click.Choice(["llama"]), default="llama", show_default=True, help="Serving engine.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0 picks one.")
@click.option("--ready-file", type=FILE, help="Gets the base URL once requests are accepted.")
@click.option("--preset", type=click.Choice(["nano", "tiny"]), default="nano", show_default=True, help="Model's size.")
@click.option("--slots", type=click.IntRange(1, 512), default=4, show_default=True, help="Requests decoded together.")
@click.option(
    "--context",
    type=click.IntRange(min=256),
    default=32_768,
    show_default=True,
    metavar="TOKENS",
    help="Prompt and output of one request, at most; each slot has so many.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: half of the cores]")
@click.option(
    "--cache-ram",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="MIB",
    help="Memory for prefixes that slots gave up; 0 lets thrashing show.",
)
def engine(
    backend: str,  # noqa: ARG001 - there is one so far
    listen: str,
    ready_file: Path | None,
    preset: str,
    slots: int,
    context: int,
    threads: int | None,
    cache_ram: int,
) -> None:
    """Serve a made-up model on this machine's CPU: a real engine to try the replay on, no GPU and no download.

    \b
    agentdyno replay engine --listen 127.0.0.1:8091 --slots 8 --ready-file /tmp/engine.url
    """
    from replay.engine.llama import serve_until_told

    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65_535:
        raise click.UsageError(f"--listen takes HOST:PORT, not {listen!r}")

    def say(running: Any) -> None:
        click.echo(running.url)
        click.echo(f"{running.label}; stop with Ctrl-C", err=True)

    with plain_faults():
        serve_until_told(
            ready_file=ready_file,
            on_ready=say,
            preset=preset,
            host=host.strip("[]"),
            port=int(port),
            slots=slots,
            slot_context=context,
            threads=threads,
            cache_ram_mib=cache_ram,
        )


COMMANDS = (engine,)
