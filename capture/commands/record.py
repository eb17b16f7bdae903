"""`capture serve`: record."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from capture.atomic import write_atomically
from capture.commands.shared import recording_store, say
from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from capture.upstream import Routes


def need_recorder() -> None:
    """Stop before a store is made where nothing could be recorded into it."""
    if importlib.util.find_spec("mitmproxy") is None:
        raise EnvironmentFault("mitmproxy is missing: install the extra `agentdyno[capture]`")


def _routes(upstream: str | None, routes: tuple[str, ...], mode: Literal["reverse", "forward"]) -> Routes:
    from capture.secret import without_secrets
    from capture.upstream import Routes, Upstream, UpstreamError

    if mode == "reverse" and not upstream and not routes:
        raise click.UsageError("name an upstream: --upstream URL, or --route anthropic=URL --route openai=URL")
    try:
        named: list[tuple[str, Upstream]] = []
        for route in routes:
            segment, equals, url = route.partition("=")
            if not equals or not segment or "/" in segment:
                raise click.UsageError(
                    f"--route {without_secrets(route)!r}: write NAME=URL, where NAME is the first segment of the path"
                )
            if segment in dict(named):
                raise click.UsageError(f"--route {segment}=… is given twice: which upstream is meant?")
            named.append((segment, Upstream.parse(url)))
        return Routes(default=Upstream.parse(upstream) if upstream else None, by_segment=tuple(named))
    except UpstreamError as fault:
        raise click.UsageError(str(fault)) from fault


def checked_hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Values of --host as they are compared; click.UsageError for one that is no host."""
    from capture.model_hosts import HostError, parse_host

    try:
        return tuple(parse_host(name) for name in names)
    except HostError as fault:
        raise click.UsageError(f"--host: {fault}") from fault


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"--listen {text!r}: write HOST:PORT, for example 127.0.0.1:0 for a free port")
    return host, int(port)


@click.command()
@click.option(
    "--mode",
    type=click.Choice(["reverse", "forward"]),
    default="reverse",
    show_default=True,
    help="reverse: the agent's base URL points here. forward: its HTTPS_PROXY does, and it trusts ca/bundle.pem.",
)
@click.option("--upstream", metavar="URL", help="Where every request goes; in forward mode, every model host's.")
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="NAME=URL",
    help="Requests under /NAME/… go there; in forward mode, those to the host NAME. Repeatable.",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Forward mode: decrypt and record this host too (HOST, HOST:PORT or .SUFFIX). Repeatable.",
)
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0 picks a free one."
)
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    help="Folder to record into [AGENTDYNO_STORE, else data home].",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Gets the URL once connections are accepted.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate chain, PEM; needed off loopback.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key, PEM.")
@click.option(
    "--public-host",
    "public_hosts",
    multiple=True,
    metavar="NAME",
    help="A name agents call this machine by. Repeatable.",
)
@click.option(
    "--require-token", is_flag=True, help="Only people with a token may come through; always so off loopback."
)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a stop waits for running streams.",
)
@click.option(
    "--idle-timeout",
    "idle_timeout_s",
    type=click.IntRange(min=1),
    default=7 * 86_400,  # an agent may think, or be thought for, longer than mitmproxy's ten minutes
    show_default=True,
    metavar="SECONDS",
    help="Close a connection on which nothing passed for so long.",
)
@click.option(
    "--no-upstream-proxy",
    is_flag=True,
    help="Connect to upstreams directly [through the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names].",
)
@click.option(
    "--routes-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    hidden=True,
    help="More of --route, one a line, and =URL for --upstream: what others may not read in a command line.",
)
@click.option("--label", default="", hidden=True, help="Written into the journal, to find it again.")
@click.option("--note", "notes", multiple=True, hidden=True, metavar="NAME=VALUE", help="Likewise: about the agent.")
@click.option("--stop-with-stdin", is_flag=True, hidden=True, help="Stop when stdin ends: the launcher is gone.")
def serve(
    mode: Literal["reverse", "forward"],
    upstream: str | None,
    routes: tuple[str, ...],
    hosts: tuple[str, ...],
    listen: str,
    store_path: Path | None,
    ready_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    public_hosts: tuple[str, ...],
    require_token: bool,
    grace_s: float,
    idle_timeout_s: int,
    no_upstream_proxy: bool,
    routes_file: Path | None,
    label: str,
    notes: tuple[str, ...],
    stop_with_stdin: bool,
) -> None:
    """Record what agents send through this proxy, until it is stopped.

    Prints its URL on stdout; point the agent there. Ends with 1 if something of the recording was lost, and with 3 if
    recording had to stop; relaying goes on in either case. GET /healthz tells meanwhile, /metrics counts, and telemetry
    sent to /otlp/v1/traces, /logs and /metrics is recorded too.

    \b
    Example:
      agentdyno capture serve --listen 127.0.0.1:8100 \\
        --upstream https://api.anthropic.com
      ANTHROPIC_BASE_URL=http://127.0.0.1:8100 claude
    \b
      agentdyno capture serve --mode forward --listen 127.0.0.1:8101 --store DIR
      HTTPS_PROXY=http://127.0.0.1:8101 NODE_EXTRA_CA_CERTS=DIR/ca/ca.pem \\
        SSL_CERT_FILE=DIR/ca/bundle.pem codex
    """
    if routes_file is not None:
        lines = routes_file.read_text().splitlines()
        routes = (*routes, *(line for line in lines if not line.startswith("=")))
        upstream = next((line[1:] for line in lines if line.startswith("=")), upstream)
    where = _routes(upstream, routes, mode)
    address, added = _address(listen), checked_hosts(hosts)
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    if hosts and mode == "reverse":
        raise click.UsageError("--host is for --mode forward; a reverse proxy takes --route NAME=URL")
    need_recorder()
    store = recording_store(store_path)
    from capture.forward import AuthorityError
    from capture.outbound import Outbound, OutboundError
    from capture.people import PeopleError
    from capture.proxy import ListenError, Service, serve

    service = Service(
        routes=where,
        listen=address,
        mode=mode,
        outbound=Outbound() if no_upstream_proxy else Outbound.of(os.environ),
        hosts=added,
        certificate=(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None,
        public_hosts=public_hosts,
        require_token=require_token,
        grace_s=grace_s,
        idle_timeout_s=idle_timeout_s,
        label=label,
        notes=tuple((name, value) for name, _, value in (note.partition("=") for note in notes)),
        stop_with_stdin=stop_with_stdin,
    )

    def ready(url: str) -> None:
        if ready_file is not None:
            try:
                write_atomically(ready_file, f"{url}\n".encode())
            except OSError as error:
                raise EnvironmentFault(f"cannot write the ready file {ready_file}: {error.strerror}") from error
        with suppress(OSError):  # nobody reads it: then the ready file or a fixed port names the address
            click.echo(url)

    def loud(sentence: str) -> None:
        say(f"RECORDING STOPPED, relaying goes on: {sentence}")

    try:
        served = serve(service, store=store, on_ready=ready, on_fault=loud)
    except (ListenError, PeopleError, AuthorityError, OutboundError) as error:
        raise EnvironmentFault(str(error)) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot record into {store.path}: {error}") from error
    if served.fault is not None:
        raise EnvironmentFault(f"the recording in {served.journal} is not complete: {served.fault}")
    if served.gaps:
        gaps = "1 gap" if served.gaps == 1 else f"{served.gaps} gaps"
        say(f"the recording in {served.journal} has {gaps}; the exchanges concerned are marked")
        raise SystemExit(1)


COMMANDS = (serve,)
