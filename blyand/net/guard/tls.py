"""libp2p's TLS (`/tls/1.0.0`), with its verification of peers and a session of ours.

The certificate, the signature of the identity key over it and the peer id are checked
by the library's own functions. Mended: a stalled or failed handshake counted as done
until something else failed; a temporary file with a key was written for each
connection; errors of every kind left it. Only TLS 1.3.
"""

from __future__ import annotations

import ssl
from typing import Any

import trio
from cryptography import x509
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.tls.certificate import verify_certificate_chain
from libp2p.security.tls.transport import TLSTransport

from blyand.net.tls import TlsSession
from blyand.net.wire import wire_of

HANDSHAKE_S = 10.0
HANDSHAKE_BYTES = 64 * 1024  # of the peer's, more than any certificate needs
_READ_BYTES = 4096


class GuardedTls(TLSTransport):  # type: ignore[misc]
    """Secures connections; contexts are made once, for each direction."""

    def __init__(self, key_pair: Any) -> None:
        super().__init__(key_pair)
        self._contexts = {
            server: self.create_ssl_context(server_side=server)
            for server in (False, True)
        }
        for context in self._contexts.values():
            context.maximum_version = ssl.TLSVersion.TLSv1_3
            context.options |= ssl.OP_NO_TICKET
        self._contexts[True].num_tickets = 0  # sessions are not resumed

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        return await self._secure(conn, None)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        return await self._secure(conn, peer_id)

    async def _secure(self, conn: IRawConnection, wanted: ID | None) -> ISecureConn:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._contexts[wanted is None].wrap_bio(
            incoming, outgoing, server_side=wanted is None
        )
        try:
            with trio.fail_after(HANDSHAKE_S):
                await _shake_hands(conn, tls, incoming, outgoing)
            raw_certificate = tls.getpeercert(binary_form=True)
            if not raw_certificate:
                raise HandshakeFailure("the peer shows no certificate")
            key = _key_in(raw_certificate)
            peer = ID.from_pubkey(key)
            if wanted is not None and peer != wanted:
                raise HandshakeFailure(f"{peer} answers, not {wanted}")
        except trio.TooSlowError as error:
            raise HandshakeFailure("no TLS handshake in time") from error
        except (ssl.SSLError, BaseLibp2pError, OSError) as error:
            raise HandshakeFailure(f"no TLS: {error}") from error
        return TlsSession(
            conn,
            wire_of(conn),
            tls,
            incoming,
            outgoing,
            local_peer=self.local_peer,
            local_private_key=self.libp2p_privkey,
            remote_peer=peer,
            remote_permanent_pubkey=key,
            is_initiator=wanted is not None,
        )


async def _shake_hands(
    conn: IRawConnection,
    tls: ssl.SSLObject,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
) -> None:
    received = 0
    while True:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        finally:  # an alert, too, is for the peer to read
            if outgoing.pending:
                await conn.write(outgoing.read())
        if done:
            return
        raw = await conn.read(_READ_BYTES)
        received += len(raw)
        if not raw or received > HANDSHAKE_BYTES:
            raise HandshakeFailure("the peer ended the handshake")
        incoming.write(raw)


def _key_in(certificate: bytes) -> Any:
    """Return the identity key that a certificate proves."""
    try:
        return verify_certificate_chain([x509.load_der_x509_certificate(certificate)])
    except Exception as error:
        raise HandshakeFailure(f"not a libp2p certificate: {error}") from error
