"""`agentdyno curate redact`: a filter that takes secrets out of a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from curate.commands.shared import faults


@click.command(epilog="\b\nExample: git diff | agentdyno curate redact > diff.txt")
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--store", type=click.Path(path_type=Path), help="Also remove the credentials that this store's recorder saw."
)
@click.option(
    "--identity",
    is_flag=True,
    help="Also replace e-mails, users, home paths, hosts and git remotes by pseudonyms.",
)
@click.option("--no-scanner", is_flag=True, help="Use our own rules alone, without betterleaks.")
def redact(file: BinaryIO, store: Path | None, identity: bool, no_scanner: bool) -> None:
    """Copy text to stdout without its secrets; what was found is counted on stderr.

    It does not prove a text clean. Placeholders and pseudonyms are the same for the same value within a run, and
    across runs with the same --store.
    """
    from curate.recipe import RedactionPolicy
    from curate.redact import Redactor

    policy = RedactionPolicy(identity=identity, scanner=not no_scanner)
    if store is None:
        redactor = Redactor(policy=policy)
    else:
        with faults():
            from capture.store import Store

            opened = Store.open(store)
            redactor = Redactor(seen=opened.seen_secrets(), key=opened.key, policy=policy)
    # Bytes that are no UTF-8 pass through as they came.
    redacted, counts = redactor.text(file.read().decode("utf-8", "surrogateescape"))
    sys.stdout.buffer.write(redacted.encode("utf-8", "surrogateescape"))
    found = ", ".join(f"{kind} {number:,}" for kind, number in counts.most_common())
    click.echo(f"redacted: {found or 'nothing found'}", err=True)


COMMANDS = (redact,)
