"""/blyan/delta/1, both ends: bundles in, receipts out. docs/protocols/delta.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from blyan_proto.errors import BadSignature, UnexpectedMessage
from blyan_proto.protocols.delta import (
    ANSWER,
    DEADLINE_S,
    MAX_BUNDLE_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Bundle,
    EntryVerdict,
    Manifest,
    Receipt,
    ReceiptClaim,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, SigningKey, check_signature
from blyand.net.host import Host
from blyand.net.identity import public_key_of
from blyand.net.stream import MessageStream, Serve, expect_ok

MAX_RECEIPT_BYTES = 64 * 1024


class Client:
    """Hands bundles to primaries."""

    def __init__(self, host: Host, network: bytes) -> None:
        self._host = host
        self._network = network

    async def push(self, peer: str, bundle: Bundle) -> Receipt:
        """Send a bundle and return what became of its entries, under a signature."""
        async with self._host.request(
            peer, PROTOCOL_ID, DEADLINE_S, bulk=True
        ) as stream:
            await stream.send_message(bundle, REQUEST, deadline_s=DEADLINE_S)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            receipt: Receipt = await stream.receive_message(
                ANSWER, MAX_RECEIPT_BYTES, DEADLINE_S
            )
        if receipt.signer != public_key_of(peer):
            raise BadSignature("a receipt signed by somebody else than its sender")
        check_receipt(receipt, bundle.manifest, self._network)
        return receipt


def serve(network: bytes, take: Callable[[Bundle], Awaitable[Receipt]]) -> Serve:
    """Return the handler: checks the bundle's form and signature, then asks `take`."""

    async def answer(stream: MessageStream) -> None:
        bundle = await stream.receive_message(REQUEST, MAX_BUNDLE_BYTES, DEADLINE_S)
        check_bundle(bundle, network)
        if bundle.signer != public_key_of(stream.peer):
            raise BadSignature("a bundle signed by somebody else than its sender")
        receipt = await take(bundle)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(receipt, ANSWER)

    return answer


def check_bundle(bundle: Bundle, network: bytes) -> None:
    """Raise ProtocolError unless deltas, manifest and signature belong together."""
    manifest = bundle.manifest
    named = [entry for entry in manifest.entries if entry.delta is not None]
    digests = [delta.digest for delta in bundle.deltas]
    if digests and digests != [entry.delta for entry in named]:
        raise UnexpectedMessage("a bundle's deltas are not those of its manifest")
    groups = [entry.group for entry in manifest.entries]
    if groups != sorted(set(groups)):
        raise UnexpectedMessage("a bundle's groups are not ascending")
    for entry, delta in zip(named, bundle.deltas):
        of = (delta.run, delta.round, delta.learner, delta.group)
        if of != (manifest.run, manifest.round, manifest.learner, entry.group):
            raise UnexpectedMessage("a delta of another run, round, learner or group")
    check_signature(
        Purpose.DELTA_BUNDLE, network, manifest, bundle.signer, bundle.signature
    )


def signed_receipt(
    key: SigningKey,
    network: bytes,
    manifest: Manifest,
    verdicts: Sequence[EntryVerdict],
) -> Receipt:
    """Return a primary's answer to a manifest."""
    claim = ReceiptClaim(manifest.run, manifest.round, tuple(verdicts), manifest.digest)
    signature = key.sign(Purpose.DELTA_RECEIPT, network, claim)
    return Receipt(
        claim.run, claim.round, claim.verdicts, claim.manifest, key.public, signature
    )


def check_receipt(receipt: Receipt, manifest: Manifest, network: bytes) -> None:
    """Raise ProtocolError unless a receipt answers exactly this manifest, and is signed."""
    asked = [entry.group for entry in manifest.entries]
    if [one.group for one in receipt.verdicts] != asked:
        raise UnexpectedMessage("a receipt about other groups than those sent")
    named = (receipt.run, receipt.round, receipt.manifest)
    if named != (manifest.run, manifest.round, manifest.digest):
        raise UnexpectedMessage("a receipt for another bundle")
    check_signature(
        Purpose.DELTA_RECEIPT,
        network,
        receipt.claim,
        receipt.signer,
        receipt.signature,
    )
