"""`agentdyno replay probe`: what a server honours."""

from __future__ import annotations

import click

from replay.commands.shared import (
    plain_faults,
    server_options,
)


@click.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found.")
def probe(url: str, model: str, key_env: str | None, as_json: bool) -> None:
    """Ask a server what it honours: output length, usage, prompts of token ids, context limit.

    \b
    agentdyno replay probe --url http://127.0.0.1:8000 --model m
    """
    with plain_faults():
        import msgspec

        from replay import loop
        from replay.endpoint import Endpoint
        from replay.probe import probe as probe_server

        found = loop.run(probe_server(Endpoint(url, model, key_env)))
        values = msgspec.to_builtins(found)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(values), indent=1).decode())
        return
    for key, item in values.items():
        click.echo(f"{key.replace('_', ' ')}: {'unknown' if item is None else item}")


COMMANDS = (probe,)
