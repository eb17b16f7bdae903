"""`capture token`: who may record through a team's recorder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.commands.shared import named_store, say, store_option
from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from capture.store import Store


@contextmanager
def _faults() -> Iterator[None]:
    from capture.people import PeopleError
    from capture.store import StoreError

    try:
        yield
    except (PeopleError, StoreError) as fault:
        raise click.UsageError(str(fault)) from fault
    except OSError as fault:
        raise EnvironmentFault(f"cannot change the store's people: {fault}") from fault


def _store(path: Path | None, *, create: bool = False) -> Store:
    from capture.store import Store

    return Store.open(named_store(path), create=create)


@click.group()
def token() -> None:
    """Give people tokens for a team's recorder, list and revoke them."""


@token.command()
@click.argument("name")
@click.option("--consent", required=True, help="What this person agreed to; kept beside every exchange.")
@click.option(
    "--base-url", default="https://HOST:PORT", show_default=True, help="The recorder's own, to print ready lines."
)
@click.option("--route", "routes", multiple=True, metavar="NAME", help="A route of the recorder. Repeatable.")
@store_option
def add(name: str, consent: str, base_url: str, routes: tuple[str, ...], store_path: Path | None) -> None:
    """Make a token for NAME and print it, once: the store keeps only a hash of it.

    \b
    Example:
      agentdyno capture token add ada --consent "internal benchmarks, 2026" \\
        --base-url https://recorder.example.com:8443 --store /srv/agentdyno \\
        --route anthropic --route openai
    """
    from capture.people import add_person

    with _faults():
        made = add_person(_store(store_path, create=True), name, consent)
    click.echo(made)
    say("kept only as a hash: this line is the last time that it is shown. Ready lines:")
    for line in _lines(base_url.rstrip("/"), name, made, routes or ("anthropic", "openai")):
        say(f"  {line}")


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@store_option
def list_people(as_json: bool, store_path: Path | None) -> None:
    """List people, their consent and whether their token still holds.

    \b
    Example:
      agentdyno capture token list --store /srv/agentdyno
    """
    from capture.people import People

    with _faults():
        people = People.load(_store(store_path))
    for person in people.persons:
        revoked = None if person.revoked is None else str(person.revoked)
        if as_json:
            entry = {"name": person.name, "consent": person.consent, "added": str(person.added), "revoked": revoked}
            click.echo(json.dumps({**entry, "label": people.label(person.name)}))
        else:
            state = f"revoked {revoked}" if revoked else "active"
            click.echo(f"{person.name}\t{state}\tsince {person.added}\t{person.consent}")


@token.command()
@click.argument("name")
@store_option
def revoke(name: str, store_path: Path | None) -> None:
    """Make the token of NAME void; a running recorder notices within a second.

    \b
    Example:
      agentdyno capture token revoke ada --store /srv/agentdyno
    """
    from capture.people import revoke_person

    with _faults():
        revoke_person(_store(store_path).own(), name)
    say(f"the token of {name} is void")


def _lines(base_url: str, name: str, made: str, routes: tuple[str, ...]) -> Iterator[str]:
    from urllib.parse import quote

    variables = {"anthropic": "ANTHROPIC_BASE_URL", "openai": "OPENAI_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL"}
    for route in routes:
        path = f"{route}/v1" if route == "openai" else route
        yield f"{variables.get(route, f'{route.upper()}_BASE_URL')}={base_url}/p/{made}/{path}"
    scheme, separator, rest = base_url.partition("://")
    yield f"HTTPS_PROXY={scheme}{separator}{quote(name, safe='')}:{made}@{rest}   (recorder in --mode forward)"


COMMANDS = (token,)
