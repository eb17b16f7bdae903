"""`agentdyno replay power serve`: this node's power for a run that is made on another machine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import click

from replay.commands.shared import FILE, plain_faults


@click.command("serve")
@click.option(
    "--power",
    "powers",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="What is measured on this node: nvml, rapl, exporter:URL, command:…; repeatable.",
)
@click.option("--listen", default="127.0.0.1:9470", show_default=True, metavar="HOST:PORT", help="Port 0 picks one.")
@click.option(
    "--token-env",
    metavar="NAME",
    help="Environment variable with the token that clients must show; needed off loopback.",
)
@click.option("--cert", type=FILE, help="Certificate chain, PEM; needed off loopback.")
@click.option("--key", type=FILE, help="Its private key, PEM, without a passphrase.")
@click.option("--ready-file", type=FILE, help="Gets the URL once requests are accepted.")
def serve(
    powers: tuple[str, ...],
    listen: str,
    token_env: str | None,
    cert: Path | None,
    key: Path | None,
    ready_file: Path | None,
) -> None:
    """Serve this node's power readings to a run on another machine, until Ctrl-C.

    Prints its URL on stdout. The run reads it by --power URL,token-env=NAME; a certificate that no public authority
    signed is named there too, by ,ca-file=FILE. Nothing but power readings is served, and nothing is written to disk.

    \b
    export POWER_TOKEN=$(openssl rand -hex 24)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \\
      -subj /CN=node1 -addext subjectAltName=DNS:node1 \\
      -addext keyUsage=digitalSignature,keyCertSign \\
      -keyout power.key -out power.pem
    agentdyno replay power serve --power nvml --power rapl --listen 0.0.0.0:9470 \\
      --token-env POWER_TOKEN --cert power.pem --key power.key
    \b
    On the machine that scores, with the same token and a copy of power.pem:
      agentdyno replay score … --power https://node1:9470,token-env=POWER_TOKEN,ca-file=power.pem
    """
    host, separator, digits = listen.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not digits.isdecimal() or int(digits) > 65_535:
        raise click.UsageError(f"--listen takes HOST:PORT, not {listen!r}")
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key belong together")
    with plain_faults():
        from replay.power.choice import parse_powers
        from replay.power.serve import is_loopback, serve_until_told, server_tls

        choices = parse_powers(powers)
        if any(choice.kind == "declared" for choice in choices):
            raise click.UsageError("a nameplate is stated where the score is made: leave declared out here")
        if not is_loopback(host) and (cert is None or token_env is None):
            raise click.UsageError(
                f"{host} can be reached from other machines: give --cert, --key and --token-env, or listen on 127.0.0.1"
            )
        token = None if token_env is None else _token(token_env)
        tls = server_tls(cert, key) if cert is not None and key is not None else None
        with contextlib.ExitStack() as stack:
            # Until it serves: a command that is open already would stay behind.
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
            sources = []
            for choice in choices:
                source = choice.open()
                stack.callback(source.close)
                sources.append(source)
            serve_until_told(
                sources,
                host=host,
                port=int(digits),
                token=token,
                tls=tls,
                ready_file=ready_file,
                on_ready=_say,
            )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _token(name: str) -> str:
    """The token of an environment variable; raises UsageError for one that is guessed or cannot be sent."""
    from replay.power.serve import SHORTEST_TOKEN

    token = os.environ.get(name, "").strip()
    if not token:
        raise click.UsageError(f"--token-env names {name}, which is not set: export {name}=$(openssl rand -hex 24)")
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable() and " " not in token):
        raise click.UsageError(
            f"{name} holds no token: one word of at least {SHORTEST_TOKEN} ASCII letters, digits and signs, "
            f"for example of openssl rand -hex 24"
        )
    return token


def _say(url: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: then the ready file or a fixed port names the address
        click.echo(url)
    click.echo("serving power readings; stop with Ctrl-C", err=True)


COMMANDS = (serve,)
