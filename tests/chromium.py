"""Headless Chromium, driven over its DevTools protocol: enough to load a page, press keys and look at it."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 30


class Page:
    """One tab. `said` is what came over the console, `asked` are the URLs of all requests."""

    def __init__(self, browser_url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 0
        self.said: list[str] = []
        self.asked: list[str] = []
        self._run(self._connect(browser_url))
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _connect(self, browser_url: str) -> None:
        self._http = aiohttp.ClientSession()
        async with self._http.put(f"{browser_url}/json/new?about:blank") as answer:
            target = await answer.json()
        self._socket = await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._waiting.pop(told["id"]).set_result(told)
            elif told["method"] == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            elif told["method"] == "Runtime.consoleAPICalled":
                self.said.append(str([each.get("value") for each in told["params"]["args"]]))
            elif told["method"] == "Runtime.exceptionThrown":
                self.said.append(str(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded":
                self.said.append(f"{told['params']['entry']['text']} {told['params']['entry'].get('url', '')}")

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._next += 1
        answer = self._waiting[self._next] = self._loop.create_future()
        await self._socket.send_json({"id": self._next, "method": method, "params": parameters})
        return await answer

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        told = self._run(self._ask(method, parameters))
        assert "error" not in told, (method, told)
        result: dict[str, Any] = told["result"]
        return result

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        told = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, (script, told["exceptionDetails"])
        return told["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until an expression is true; gives its value."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"never true: {script}; console: {self.said}"
            time.sleep(0.02)
        return value

    def key(self, key: str) -> None:
        """Press a key, as a person does."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            words = {"text": text} if kind == "keyDown" and text else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **words)

    def write(self, text: str) -> None:
        """Type into the field that has the focus."""
        self.send("Input.insertText", text=text)

    def picture(self) -> bytes:
        """What is in sight, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Hang up."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _end(self) -> None:
        await self._socket.close()
        await self._reader
        await self._http.close()


@contextmanager
def page(folder: Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """A browser of its own with one empty tab; skips with the reason where there is no Chromium."""
    if PROGRAM is None:
        pytest.skip("Chromium is not installed: install Debian's package `chromium` to test the review page")
    profile = folder / "profile"
    command = [
        *(PROGRAM, "--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-extensions", "--mute-audio", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"),
        *(f"--window-size={width},{height}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
        "about:blank",
    ]
    with (folder / "chromium.log").open("wb") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
        try:
            tab = Page(f"http://127.0.0.1:{_port(browser, profile / 'DevToolsActivePort', folder)}")
            try:
                tab.send(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
                )
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                tab.send("Emulation.setEmulatedMedia", features=[scheme])
                yield tab
            finally:
                tab.close()
        finally:
            browser.terminate()
            browser.wait(PATIENCE_S)


def _port(browser: subprocess.Popen[bytes], path: Path, folder: Path) -> int:
    until = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text().count("\n")):
        waits = browser.poll() is None and time.monotonic() < until
        assert waits, (folder / "chromium.log").read_text()[-2000:]
        time.sleep(0.02)
    return int(path.read_text().splitlines()[0])
