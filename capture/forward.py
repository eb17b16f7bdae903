"""The private certificate authority of a forward proxy, and the bundle of roots that an agent is given.

Never the user's own mitmproxy authority: whoever holds this key can read what agents of this store say, nothing else,
and deleting the store's `ca` folder ends it.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import ssl
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import certs

_KEY_BITS = 2048
_NAMED_BY = ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CODEX_CA_CERTIFICATE")
"""Variables that name roots of the user's own. The agent's will be set to our bundle, so it must hold these too."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Files of a forward proxy's certificate authority."""

    ca_pem: Path  # the authority's certificate alone, for variables that add to the roots
    key_pem: Path  # certificate and key; nobody but the proxy reads it
    bundle_pem: Path  # every root and the authority, for variables that replace the roots
    roots_pem: Path  # every root without the authority: what an upstream is verified against


def prepare_ca(folder: Path, environment: Mapping[str, str] = os.environ) -> Authority:
    """Make the authority in `folder` (0700; files 0600) if there is none; renew the bundle where roots changed.

    OSError where that cannot be written. Two recorders that start together end with one authority.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = Authority(
        ca_pem=folder / "ca.pem",
        key_pem=folder / "ca-key.pem",
        bundle_pem=folder / "bundle.pem",
        roots_pem=folder / "roots.pem",
    )
    if not authority.key_pem.exists():
        _write_once(authority.key_pem, _new_authority(folder))
    certificate = _CERTIFICATE.findall(authority.key_pem.read_bytes())[0] + b"\n"
    roots = b"".join(_unique(_root_files(environment)))
    for path, content in (
        (authority.ca_pem, certificate),
        (authority.roots_pem, roots),
        (authority.bundle_pem, roots + certificate),
    ):
        if not path.exists() or path.read_bytes() != content:
            _replace(path, content)
    return authority


def load_store(authority: Authority) -> certs.CertStore:
    """The authority as mitmproxy issues leaves from it: each carries the key identifier that strict clients demand."""
    raw = authority.key_pem.read_bytes()
    key = certs.load_pem_private_key(raw, None)
    certificate = certs.Cert.from_pem(_CERTIFICATE.findall(raw)[0])
    # Ephemeral keys over elliptic curves need no Diffie-Hellman parameters, and nobody asks for a revocation list.
    return certs.CertStore(key, certificate, None, b"", certs.DHParams(b""))


def load_certificate(certificate: Path, key: Path) -> certs.CertStoreEntry:
    """A server's own certificate and key, for TLS with agents. ValueError or OSError where they are not usable."""
    chain = [certs.Cert.from_pem(found) for found in _CERTIFICATE.findall(certificate.read_bytes())]
    if not chain:
        raise ValueError(f"{certificate} holds no certificate in PEM format")
    private = certs.load_pem_private_key(key.read_bytes(), None)
    if chain[0].public_key() != private.public_key():
        raise ValueError(f"{certificate} and {key} do not belong together")
    return certs.CertStoreEntry(chain[0], private, certificate if len(chain) > 1 else None, chain)


def _new_authority(folder: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        certs.CertStore.create_store(
            Path(made), "new", _KEY_BITS, organization="agentdyno", cn="agentdyno recorder on this machine"
        )
        return (Path(made) / "new-ca.pem").read_bytes()


def _root_files(environment: Mapping[str, str]) -> Iterator[bytes]:
    # mitmproxy brings certifi; a minimal container has no roots of its own.
    yield importlib.resources.files("certifi").joinpath("cacert.pem").read_bytes()
    system = ssl.get_default_verify_paths()
    for name in (system.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt", *map(environment.get, _NAMED_BY)):
        if name:
            with suppress(OSError):
                yield Path(name).read_bytes()


def _unique(files: Iterable[bytes]) -> Iterator[bytes]:
    seen = set()
    for content in files:
        for certificate in _CERTIFICATE.findall(content):
            plain = b"".join(certificate.split())
            if plain not in seen:
                seen.add(plain)
                yield certificate.replace(b"\r\n", b"\n") + b"\n"


def _draft(path: Path, content: bytes) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
    return draft


def _write_once(path: Path, content: bytes) -> None:
    draft = _draft(path, content)
    with suppress(FileExistsError):
        path.hardlink_to(draft)  # unlike a rename, a link never replaces what another made
    draft.unlink()


def _replace(path: Path, content: bytes) -> None:
    _draft(path, content).replace(path)
