"""The two ways in which a rule says no."""


class Reject(Exception):
    """Well-formed but against the rules, whoever looks and whenever.

    Peer scoring: the author pays, and whoever forwarded it without checking.
    """


class Ignore(Exception):
    """Not usable here and now; nobody's fault (seen, too new, parent unknown, no room)."""
