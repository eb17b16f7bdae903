"""A company's HTTP proxy on loopback: CONNECT and whole URLs, with a password; names lead where a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.loop_server import running_on_loopback

USER, PASSWORD = "ada", "c0rp-p@ssword/9"
URL_CREDENTIALS = "ada:c0rp-p%40ssword%2F9"
BASIC = b"Basic YWRhOmMwcnAtcEBzc3dvcmQvOQ=="


@dataclass
class CorporateProxy:
    """`asked` holds the first line of every request; `leads` maps `host:port` to a port of loopback."""

    leads: Mapping[str, int]
    port: int = 0
    asked: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{URL_CREDENTIALS}@127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether another request may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.partition(b"\r\n")[0].decode()
        method, target, _ = line.split(" ")
        self.asked.append(line)
        self.heads.append(head)
        if b"\r\nProxy-Authorization: " + BASIC + b"\r\n" not in head:
            writer.write(b"HTTP/1.1 407 Nobody said %s\r\nconnection: close\r\n\r\n" % BASIC)
            return False
        if method == "CONNECT":
            authority, path = target, ""
        else:
            authority, slash, path = target.removeprefix("http://").partition("/")
            authority, path = authority if ":" in authority else f"{authority}:80", slash + path
        if authority not in self.leads:
            writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return False
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.leads[authority])
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: corp\r\n\r\n")
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
            return False
        kept = [each for each in head.split(b"\r\n")[1:] if not each.lower().startswith(b"proxy-")]
        far_writer.write(b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), *kept]))
        far_writer.write(await reader.readexactly(_length(head)))
        answer = await far_reader.readuntil(b"\r\n\r\n")
        writer.write(answer + await far_reader.readexactly(_length(answer)))
        far_writer.close()
        return True


def _length(head: bytes) -> int:
    found = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return int(found[0]) if found else 0


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def running_corporate_proxy(leads: Mapping[str, int]) -> Iterator[CorporateProxy]:
    """The proxy in a thread of its own, gone at the end."""
    proxy = CorporateProxy(leads)
    with running_on_loopback(proxy.serve) as proxy.port:
        yield proxy
