"""`capture doctor`: what a store holds, and what becomes of it."""

from __future__ import annotations

import click

COMMANDS: tuple[click.Command, ...] = ()
