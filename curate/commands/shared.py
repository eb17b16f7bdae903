"""What the curate commands share: faults as sentences and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from capture.fault import EnvironmentFault


@contextmanager
def faults() -> Iterator[None]:
    """Turn the library's errors into one sentence and an exit code."""
    from capture.store import StoreError
    from curate.manifest import DatasetFault
    from curate.tokens import EncodingUnavailable
    from curate.words import printable

    try:
        yield
    except (DatasetFault, StoreError) as fault:
        raise click.UsageError(printable(str(fault))) from fault  # it may quote a file of somebody else's
    except EncodingUnavailable as fault:
        raise EnvironmentFault(str(fault)) from fault
    except BrokenPipeError:
        raise  # whoever read what is printed went away: click's matter
    except OSError as fault:  # a full disk, a folder that may not be written, a path that leads nowhere
        place = f"{fault.filename}: " if fault.filename else ""
        raise EnvironmentFault(
            f"{place}{fault.strerror or fault}; mend that, then run the same command again"
        ) from fault
    except ModuleNotFoundError as fault:
        raise EnvironmentFault(
            f"{fault.name} is not installed: install agentdyno with its extra [curate], or with [all] for every stage"
        ) from fault
