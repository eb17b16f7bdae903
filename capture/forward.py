"""The private certificate authority of a forward proxy, and the bundle of roots that an agent is given.

Never the user's own mitmproxy authority: whoever holds this key can read what agents of this store say, nothing else,
and deleting the store's `ca` folder ends it.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import certs

from capture.atomic import write_once
from capture.roots import certificates_in, private_folder, read_roots, write_private

_KEY_BITS = 2048


class AuthorityError(ValueError):
    """The authority that a store holds is of no use. The sentence names it and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Files of a forward proxy's certificate authority."""

    ca_pem: Path  # the authority's certificate alone, for variables that add to the roots
    key_pem: Path  # certificate and key; nobody but the proxy reads it
    bundle_pem: Path  # every root and the authority, for variables that replace the roots
    roots_pem: Path  # every root without the authority: what an upstream is verified against


def prepare_ca(folder: Path, environment: Mapping[str, str] = os.environ) -> Authority:
    """Make the authority in `folder` (0700; files 0600) if there is none; renew the bundle where roots changed.

    OSError where that cannot be written, AuthorityError where what is there is damaged. Two recorders that start
    together end with one authority.
    """
    private_folder(folder)
    authority = Authority(
        ca_pem=folder / "ca.pem",
        key_pem=folder / "ca-key.pem",
        bundle_pem=folder / "bundle.pem",
        roots_pem=folder / "roots.pem",
    )
    if not authority.key_pem.exists():
        write_once(authority.key_pem, _new_authority(folder), mode=0o600)
    authority.key_pem.chmod(0o600)
    certificate = _certificate(authority) + b"\n"
    roots = read_roots(environment)
    for path, content in (
        (authority.ca_pem, certificate),
        (authority.roots_pem, roots),
        (authority.bundle_pem, roots + certificate),
    ):
        write_private(path, content)
    return authority


def load_store(authority: Authority) -> certs.CertStore:
    """The authority as mitmproxy issues leaves from it: each carries the key identifier that strict clients demand.

    AuthorityError where key or certificate are damaged or out of date.
    """
    try:
        key = certs.load_pem_private_key(authority.key_pem.read_bytes(), None)
    except (ValueError, TypeError) as fault:
        raise _damaged(authority, "the key cannot be read") from fault
    certificate = certs.Cert.from_pem(_certificate(authority))
    if certificate.public_key() != key.public_key():
        raise _damaged(authority, "key and certificate do not belong together")
    if not certificate.notbefore <= datetime.datetime.now(datetime.UTC) <= certificate.notafter:
        raise _damaged(
            authority, f"by this machine's clock it is not valid; it is from {certificate.notbefore:%Y-%m-%d}"
        )
    # Ephemeral keys over elliptic curves need no Diffie-Hellman parameters, and nobody asks for a revocation list.
    return certs.CertStore(key, certificate, None, b"", certs.DHParams(b""))


def load_certificate(certificate: Path, key: Path) -> certs.CertStoreEntry:
    """A server's own certificate and key, for TLS with agents. ValueError or OSError where they are not usable."""
    chain = [certs.Cert.from_pem(found) for found in certificates_in(certificate.read_bytes())]
    if not chain:
        raise ValueError(f"{certificate} holds no certificate in PEM format")
    private = certs.load_pem_private_key(key.read_bytes(), None)
    if chain[0].public_key() != private.public_key():
        raise ValueError(f"{certificate} and {key} do not belong together")
    return certs.CertStoreEntry(chain[0], private, certificate if len(chain) > 1 else None, chain)


def _certificate(authority: Authority) -> bytes:
    found = certificates_in(authority.key_pem.read_bytes())
    try:
        certs.Cert.from_pem(found[0])
    except (ValueError, IndexError) as fault:
        raise _damaged(authority, "the certificate cannot be read") from fault
    return found[0]


def _damaged(authority: Authority, why: str) -> AuthorityError:
    at = authority.key_pem.parent
    return AuthorityError(
        f"the certificate authority in {at} is not usable: {why}. `rm -r {at}` lets the next start make a new one"
    )


def _new_authority(folder: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=folder) as made:
        certs.CertStore.create_store(
            Path(made), "new", _KEY_BITS, organization="agentdyno", cn="agentdyno recorder on this machine"
        )
        return (Path(made) / "new-ca.pem").read_bytes()
