"""`agentdyno replay selftest`: how many agents this machine can drive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replay.commands.shared import plain_faults

if TYPE_CHECKING:
    from replay.selftest import Level, SelfTest


@click.command()
@click.option("--speed", default=50.0, show_default=True, type=click.FloatRange(1, 1000), help="Tokens a second.")
@click.option(
    "--prompt-tokens",
    default=27_000,
    show_default=True,
    type=click.IntRange(1, 2_000_000),
    help="Size of every prompt, taken as four bytes a token.",
)
@click.option(
    "--ttft", default=0.2, show_default=True, type=click.FloatRange(0.0, 60.0), help="Seconds to the first token."
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Client processes that share the agents.",
)
@click.option("--most", type=click.IntRange(1, 16_384), metavar="N", help="Try no more agents than these.")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(1, 3600), help="Time to spend, about."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was measured.")
def selftest(
    speed: float, prompt_tokens: int, ttft: float, workers: int, most: int | None, seconds: float, as_json: bool
) -> None:
    """Say how many agents this machine can drive at a speed and a prompt size, without any model server.

    The client runs against a source of answers on this machine, in a process of its own: keep a core free for it.

    \b
    agentdyno replay selftest --speed 50 --prompt-tokens 27000
    """
    with plain_faults():
        from replay import selftest as module

        def tell(level: Level) -> None:
            said = "held" if level.held else "the source was late" if level.source_late else "late"
            click.echo(
                f"{level.agents:>6,} agents: {said}; TTFT {_ms(level.ttft_error_ms)} and gaps "
                f"{_ms(level.gap_error_ms)} off at p99, {level.cpu_share:.0%} of a core",
                err=True,
            )

        found = module.selftest(
            tok_s=speed,
            prompt_bytes=prompt_tokens * module.BYTES_PER_TOKEN,
            seconds=seconds,
            ttft_s=ttft,
            workers=workers,
            most=most,
            prompt_cost=True,
            on_level=tell,
        )
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        click.echo("\n".join(_lines(found)))
    if not found.agents:
        raise click.exceptions.Exit(1)


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.1f} ms"


def _lines(found: SelfTest) -> list[str]:
    lines = [found.sentence()]
    if found.streams_per_core is not None:
        lines.append(f"streams per core of the client: {found.streams_per_core:,.0f}")
    if found.cpu_us_per_event is not None:
        lines.append(f"CPU per event, prompts included: {found.cpu_us_per_event:.1f} µs")
    held = [level for level in found.levels if level.held]
    if held:
        best = max(held, key=lambda level: level.agents)
        lines.append(f"peak memory of the client so far: {best.memory_mb:,.0f} MB")
    if found.prompt_cost is not None:
        memory = found.prompt_cost.memory_mb_per_mb
        lines.append(
            f"per MB of prompt: {found.prompt_cost.cpu_ms_per_mb:.2f} ms CPU"
            + (f", {memory:.1f} MB of memory while in flight" if memory is not None else "")
        )
    return lines


COMMANDS = (selftest,)
