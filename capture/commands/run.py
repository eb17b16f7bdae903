"""`capture run`: an agent behind a recorder of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from capture.commands.record import checked_hosts, need_recorder
from capture.commands.shared import named_store, recording_store, say
from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from capture.store import Store


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--mode",
    type=click.Choice(["auto", "reverse", "forward"]),
    default="auto",
    show_default=True,
    help="How calls reach the recorder: a base URL (reverse), or a proxy with a certificate of ours (forward).",
)
@click.option(
    "--upstream", metavar="URL", help="The provider's root URL [the agent's own setting, else the public one]."
)
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST", help="Forward mode: record this host's calls too. Repeatable."
)
@click.option("--websocket", is_flag=True, help="Let Codex use WebSockets [it uses HTTP, which is recorded alike].")
@click.option("--no-otel", is_flag=True, help="Do not ask the agent for its own tool times by OpenTelemetry.")
@click.option("--best-effort", is_flag=True, help="Run the agent unrecorded where it cannot be recorded.")
@click.option("--quiet", is_flag=True, help="Say only what looks wrong.")
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    help="Folder to record into [AGENTDYNO_STORE, else data home].",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    mode: Literal["auto", "reverse", "forward"],
    upstream: str | None,
    hosts: tuple[str, ...],
    websocket: bool,
    no_otel: bool,
    best_effort: bool,
    quiet: bool,
    store_path: Path | None,
    command: tuple[str, ...],
) -> None:
    """Run an agent behind a recorder of its own, and pass its exit code through.

    Knows Claude Code, Codex, opencode, pi, Gemini CLI, mini-swe-agent and Aider; any other command is told by
    ANTHROPIC_BASE_URL, OPENAI_BASE_URL and GOOGLE_GEMINI_BASE_URL. Where it cannot be recorded it is not started.

    \b
    Example:
      agentdyno capture run -- claude -p "fix the failing test"
      agentdyno capture run --mode forward -- opencode
      agentdyno capture run --upstream http://127.0.0.1:9000 -- codex exec "hi"
    """
    from capture.launch import LaunchError, NotRecording, Wishes, launch, plan_launch, run_unrecorded
    from capture.upstream import UpstreamError

    wishes = Wishes(
        mode=mode, upstream=upstream, websocket=websocket, telemetry=not no_otel, hosts=checked_hosts(hosts)
    )
    try:
        try:
            need_recorder()
            path = _path(store_path)
            if (reason := _not_wanted(path)) is not None:
                say(f"not recorded: {reason}")
                raise SystemExit(run_unrecorded(command, os.environ))
            try:
                plan = plan_launch(command, wishes=wishes, environment=dict(os.environ), folder=_here())
            except LaunchError as fault:
                raise NotRecording(str(fault)) from fault
            code = launch(plan, store=_store(path, named=store_path is not None), say=say, quiet=quiet)
        except (EnvironmentFault, NotRecording) as fault:
            if not best_effort:
                raise
            sentence = fault.message if isinstance(fault, click.ClickException) else str(fault)
            say(f"NOT RECORDED, the agent runs as if there were no recorder: {sentence}")
            code = run_unrecorded(command, os.environ)
    except UpstreamError as fault:
        raise click.UsageError(str(fault)) from fault
    except NotRecording as fault:
        raise EnvironmentFault(f"{fault}; the agent was not started (--best-effort runs it unrecorded)") from fault
    except LaunchError as fault:
        raise EnvironmentFault(str(fault)) from fault
    raise SystemExit(code)


def _path(named: Path | None) -> Path:
    try:
        return named_store(named)
    except RuntimeError as fault:  # neither HOME nor an entry in the password database
        raise EnvironmentFault(
            "there is no home folder to record into: name one by --store or AGENTDYNO_STORE"
        ) from fault


def _store(path: Path, *, named: bool) -> Store:
    try:
        return recording_store(path)
    except EnvironmentFault as fault:
        if named:
            raise
        raise EnvironmentFault(f"{fault.message}; name another folder by --store or AGENTDYNO_STORE") from fault


def _here() -> Path:
    """Where the agent will run; what the shell calls it where that folder was removed meanwhile."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/", os.environ.get("PWD", ""))


def _not_wanted(path: Path) -> str | None:
    """Why nothing is to be recorded here, by the user's own word; None where it is."""
    from capture.exclusion import ExclusionError, excluded
    from capture.pause import is_paused

    if is_paused(path):
        return f"recording into {path} is paused; `agentdyno capture resume` ends that"
    try:
        entry = excluded(path, _here())
    except ExclusionError as fault:
        raise EnvironmentFault(str(fault)) from fault
    return f"{entry} is excluded from {path}" if entry is not None else None


COMMANDS = (run,)
