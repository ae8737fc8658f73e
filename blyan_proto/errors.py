"""What foreign bytes can do wrong. The class of an error says whose fault it is."""


class ProtocolError(Exception):
    """The sender broke a format.

    Peer scoring: the sender pays; its stream ends with INVALID_REQUEST.
    """


class DecodeError(ProtocolError):
    """Bytes are not the canonical encoding of the expected type."""


class NotFinite(DecodeError):
    """A number is infinite or none at all."""


class LimitExceeded(ProtocolError):
    """A length, count or size is above its published bound."""


class BadSignature(ProtocolError):
    """A signature does not verify under the named key."""


class BadProof(ProtocolError):
    """Content does not hash to the root that was asked for."""


class UnexpectedMessage(ProtocolError):
    """A well-formed message of a type that has no place here."""
