"""Open a URL that holds a token in the user's browser.

On the command line of the browser every user of the machine would read the token: it is opened by a file that only
its owner can read and that leads there.
"""

from __future__ import annotations

import html
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from capture.atomic import write_atomically
from curate.manifest import PRIVATE

_PAGE = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={url}"><title>Review</title>'


@contextmanager
def opened(url: str, folder: Path, *, really: bool = True) -> Iterator[None]:
    """Open it, where there is a browser; the file is gone when the block ends."""
    if not really:
        yield
        return
    path = (folder / PRIVATE / "review.html").resolve()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, _PAGE.format(url=html.escape(url)).encode(), mode=0o600)
    try:
        with suppress(webbrowser.Error, OSError):
            webbrowser.open(path.as_uri())
        yield
    finally:
        path.unlink(missing_ok=True)
