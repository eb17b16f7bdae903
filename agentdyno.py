"""agentdyno: record coding agents, curate their sessions, replay them, score agents per megawatt.

The root command group. It loads a stage only when that stage is named, so that `--help` stays instant.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click

__version__ = "0.1.0"

STAGES = {
    "capture": "Record real coding-agent sessions, or import recorded ones.",
    "curate": "Turn recorded sessions into a dataset with length statistics on its card.",
    "replay": "Replay a dataset against a serving system and score agents per megawatt.",
}


class MissingExtra(click.ClickException):
    """A stage was named whose libraries are not installed."""

    exit_code = 3

    def __init__(self, stage: str, module: str) -> None:
        super().__init__(
            f"`agentdyno {stage}` needs the package {module!r}, which is not installed: "
            f"install agentdyno with its extra [{stage}], or with [all] for every stage."
        )


class StageGroup(click.Group):
    """Imports `<stage>.command` when the stage is invoked, never for the root's own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*STAGES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in STAGES:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(f"{cmd_name}.command"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        stage = next((word for word in ctx._protected_args if word in STAGES), None)
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as fault:
            # Ours are always there: a missing module of ours is a defect and keeps its traceback.
            top = (fault.name or "").partition(".")[0]
            if stage is None or top in {*STAGES, "agentdyno"}:
                raise
            raise MissingExtra(stage, top) from fault
        except KeyboardInterrupt:
            # As a shell names an interrupted program; click would say "Aborted!" and 1, which is "the run says no".
            raise click.exceptions.Exit(130) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        own = [(name, self.commands[name].get_short_help_str(80)) for name in sorted(self.commands)]
        with formatter.section("Commands"):
            formatter.write_dl([*STAGES.items(), *own])


@click.group(cls=StageGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentdyno")
def main() -> None:
    """How many coding agents does a GPU system sustain, within a service level, per megawatt?

    \b
    agentdyno demo                               the whole path on this machine, no GPU needed
    agentdyno capture run -- claude              record an agent
    agentdyno curate build --store S --out D     make a dataset of it
    agentdyno replay score D --url U --model M … agents per accelerator and per megawatt
    """


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results; must be new.  [default: ./agentdyno-demo-TIME]",
)
@click.option(
    "--power", help="Power source, e.g. rapl or declared:65W.  [default: rapl where readable, else a declared figure]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the score as JSON.")
def demo(out: Path | None, power: str | None, as_json: bool) -> None:
    """Record, curate, replay and score here, in under three minutes, without a GPU.

    A small agent runs real shell commands for a scripted model and is recorded; its sessions and a few imported
    ones become a dataset; llama.cpp with a made-up model serves it; the capacity search scores that engine.
    """
    from replay.demo.provision import missing_parts, run_provisioned

    if missing := missing_parts():
        run_provisioned(missing)
    from replay.demo.demo import run_demo

    run_demo(out=out, power=power, as_json=as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do: agents, GPUs, power, tokenizers, engine, limits."""
    from replay.doctor import print_findings

    print_findings(as_json=as_json)


if __name__ == "__main__":
    main()
