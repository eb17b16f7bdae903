"""The one exception that the command line maps to exit code 3.

Exit codes: 0 done, 1 the run says no (SLO missed, verification failed), 2 usage, 3 environment.
"""

from __future__ import annotations

import click


class EnvironmentFault(click.ClickException):
    """Something outside the command's words is missing or broken: a server, a file, a library, a port."""

    exit_code = 3
