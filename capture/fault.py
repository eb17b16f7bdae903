"""The one exception that the command line maps to exit code 3.

Exit codes: 0 done, 1 the run says no (SLO missed, verification failed), 2 usage, 3 environment.
"""

from __future__ import annotations

import click


class EnvironmentFault(click.ClickException):
    """Something outside the command's words is missing or broken: a server, a file, a library, a port."""

    exit_code = 3

    def format_message(self) -> str:
        """The sentence; what it quotes of a server or a file gives a terminal no orders."""
        return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in self.message)
