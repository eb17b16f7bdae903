"""TLS of the recorder: towards agents with a certificate given or made, towards upstreams with verification."""

# mitmproxy's addon is not typed.
# mypy: disable-error-code="no-untyped-call,no-any-return,misc"
from __future__ import annotations

import datetime

from mitmproxy import certs, tls
from mitmproxy.addons import tlsconfig
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.layers.modes import HttpProxy

_RENEWED_BEFORE = datetime.timedelta(hours=1)


class Handshake:
    """The part of mitmproxy's TLS addon that is needed: the whole would make an authority that nobody uses.

    `own`: what agents see who connect to the recorder itself; `authority`: issues what they see inside a tunnel.
    """

    def __init__(self, own: certs.CertStoreEntry | None = None, authority: certs.CertStore | None = None) -> None:
        self._config = _Config(own, authority)

    def tls_start_client(self, data: tls.TlsData) -> None:
        """An agent begins TLS; without a certificate for it mitmproxy closes the connection."""
        if not self._config.has_certificate:
            return
        self._config.tls_start_client(data)
        if data.ssl_conn is not None and _is_outermost(data.context) and isinstance(data.context.layers[0], HttpProxy):
            # mitmproxy takes no CONNECT over HTTP/2.
            data.ssl_conn.set_app_data({**data.ssl_conn.get_app_data(), "client_alpn": b"http/1.1"})

    def tls_start_server(self, data: tls.TlsData) -> None:
        """A connection to an upstream begins TLS."""
        self._config.tls_start_server(data)


class _Config(tlsconfig.TlsConfig):
    def __init__(self, own: certs.CertStoreEntry | None, authority: certs.CertStore | None) -> None:
        self._own = own
        if authority is not None:
            self.certstore = authority
        elif own is not None:
            self.certstore = certs.CertStore(own.privatekey, own.cert, None, b"", certs.DHParams(b""))

    @property
    def has_certificate(self) -> bool:
        return self.certstore is not None

    def get_cert(self, conn_context: Context) -> certs.CertStoreEntry:
        if self._own is not None and _is_outermost(conn_context):
            return self._own
        entry = super().get_cert(conn_context)
        if entry.cert.notafter < datetime.datetime.now(datetime.UTC) + _RENEWED_BEFORE:
            # mitmproxy makes leaves for half a year and gives the same one for as long as it runs.
            self.certstore.certs.clear()
            self.certstore.expire_queue.clear()
            entry = super().get_cert(conn_context)
        return entry


def _is_outermost(context: Context) -> bool:
    """Whether this TLS is with the recorder itself, not inside a tunnel."""
    layers = [isinstance(layer, ClientTLSLayer) for layer in context.layers]
    return layers[1] and sum(layers) == 1
