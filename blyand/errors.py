"""What can go wrong in a daemon besides foreign bytes; the class says whose fault it is.

A ProtocolError (blyan_proto.errors) is the sender's fault, a Reject or Ignore
(blyand.rules.verdict) a rule's verdict. Here is the rest: the other side cannot
now, or this machine cannot.
"""


class Unavailable(Exception):
    """The other side cannot now.

    Peer scoring: latency and route only, never points.
    """


class Busy(Unavailable):
    """The peer's queue or budget is full; try another one, or later."""


class NotHere(Unavailable):
    """The peer does not have what was asked for."""


class Pruned(NotHere):
    """The peer had it and dropped it after its retention window (DEC-B9)."""


class TooSlow(Unavailable):
    """No answer within the deadline."""


class NoRoute(Unavailable):
    """No reachable peer can do this."""


class StaleVersion(Unavailable):
    """The peer no longer, or does not yet, serve the version that was named (DEC-B8)."""


class WrongAnswer(Unavailable):
    """The peer answered what cannot be right, or what other holders do not.

    Routing leaves it out for a while; points only where the format was broken.
    """


class NotFinite(WrongAnswer):
    """The peer answered numbers that are not finite: an honest expert can overflow."""


class DiskFull(Unavailable):
    """This machine has no room: nothing new is kept until there is some again.

    Not a LocalFault, since it passes without a restart: reads go on, whoever writes
    tries again later, and callers are told that this node cannot now.
    """


class OverBudget(DiskFull):
    """What was to be kept does not fit into store.disk_mib."""


class LocalFault(Exception):
    """This machine cannot: disk, device or settings. Ends the daemon; blames no peer."""


class StorageFault(LocalFault):
    """The disk refused, or what it holds is damaged."""


class Damaged(StorageFault):
    """The database does not give what was written to it.

    It is marked, so that the next opening repairs it; `__main__` opens it again at once.
    """


class KeyChanged(LocalFault):
    """The chain has taken this node's new key: `__main__` opens the home again with it."""


class ComputeFault(LocalFault):
    """A worker process or a device failed."""


class ConfigFault(LocalFault):
    """The settings or the home are unusable; the text says what to change."""


class Halted(LocalFault):
    """A finalised checkpoint cannot be executed here: no more executing and signing.

    Serving and reads go on; `node status` says why (DEC-C2).
    """
