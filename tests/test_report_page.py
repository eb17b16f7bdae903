"""The report in a real browser: no error on the console, nothing fetched, no width that overflows, dark and light."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from replay.report import compose, page
from tests import chromium
from tests.report_example import run_source

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "report.png"
WIDTH, HEIGHT = 1200, 2120


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(compose(run_source("found"))))
    return path


def test_the_page_is_quiet_alone_and_fits(tmp_path: Path, file: Path) -> None:
    """Set AGENTDYNO_PICTURES=1 to draw the picture of the docs again."""
    with chromium.page(tmp_path, width=WIDTH, height=HEIGHT) as tab:
        tab.send("Page.navigate", url=file.as_uri())
        tab.wait("document.readyState === 'complete'")
        assert tab.run("document.querySelectorAll('svg.chart').length") >= 12
        assert tab.run(
            "[...document.querySelectorAll('svg.chart')].every(it => it.getBoundingClientRect().height > 80)"
        )
        light = tab.run("getComputedStyle(document.body).backgroundColor")
        drawn = tab.picture()
        if os.environ.get("AGENTDYNO_PICTURES"):
            PICTURE.parent.mkdir(exist_ok=True)
            PICTURE.write_bytes(drawn)

        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.run("getComputedStyle(document.body).backgroundColor") != light
        assert tab.run(
            "[...document.querySelectorAll('svg.chart text')].every(it => getComputedStyle(it).fill !== 'rgb(0, 0, 0)')"
        )

        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        tab.send("Emulation.setDeviceMetricsOverride", **size)
        assert tab.run("document.documentElement.scrollWidth") <= 390

        tab.send("Emulation.setEmulatedMedia", media="print")
        assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.asked == [file.as_uri()]
        assert tab.said == []
    kept = PICTURE.read_bytes()
    assert len(kept) < 400_000
    assert struct.unpack(">II", kept[16:24]) == struct.unpack(">II", drawn[16:24]) == (WIDTH, HEIGHT)
