"""The certificates of authorities that upstreams are verified against: the system's, certifi's and the user's own.

A company's proxy may answer in an upstream's name. Whoever works behind one has named its authority in one of the
variables that their tools read, and what those tools trust a recorder between them and the upstream has to trust too.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from capture.atomic import write_atomically

_NAMED_BY = ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CODEX_CA_CERTIFICATE")
_SYSTEMS = (  # where OpenSSL as Python was built with it may not look
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def certificates_in(text: bytes) -> list[bytes]:
    """Every certificate of a file in PEM format."""
    return _CERTIFICATE.findall(text)


def read_roots(environment: Mapping[str, str] = os.environ) -> bytes:
    """Every root once, PEM. A file that a variable names and that cannot be read is left out."""
    return b"".join(_unique(environment))


def write_roots(folder: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """`roots.pem` in a private folder, renewed where roots changed. OSError where that cannot be written."""
    path = folder / "roots.pem"
    private_folder(folder)
    write_private(path, read_roots(environment))
    return path


def tls_context(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """For clients of the standard library: verifies servers by all roots."""
    context = ssl.create_default_context()
    # Companies' own authorities often lack the key identifiers that Python 3.13 began to demand.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=read_roots(environment).decode("ascii"))
    return context


def private_folder(folder: Path) -> None:
    """Make a folder that nobody else can look into. OSError where that cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody else can read, if it does not have this content already."""
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content, mode=0o600)


def _files(environment: Mapping[str, str]) -> Iterator[bytes]:
    # A minimal container has no roots of its own; certifi comes with mitmproxy.
    with suppress(ModuleNotFoundError):
        yield importlib.resources.files("certifi").joinpath("cacert.pem").read_bytes()
    system = ssl.get_default_verify_paths().openssl_cafile
    for name in (system, *_SYSTEMS, *map(environment.get, _NAMED_BY)):
        if name:
            with suppress(OSError):
                yield Path(name).read_bytes()


def _unique(environment: Mapping[str, str]) -> Iterator[bytes]:
    seen = set()
    taker = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for content in _files(environment):
        for certificate in certificates_in(content):
            plain = b"".join(certificate.split())
            if plain in seen:
                continue
            seen.add(plain)
            with suppress(ssl.SSLError, UnicodeDecodeError, ValueError):  # one that is damaged would spoil all others
                taker.load_verify_locations(cadata=certificate.decode("ascii"))
                yield certificate.replace(b"\r\n", b"\n") + b"\n"
