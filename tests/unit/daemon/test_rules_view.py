"""Overlays read like the state that they would become, as far as anybody reads."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.rules.view import Overlay

KEYS = st.binary(max_size=2)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=1), max_size=12)


class Plain:
    """A view of a dictionary that counts how many pairs were taken of a scan."""

    def __init__(self, pairs):
        self.pairs, self.taken = pairs, 0

    def get(self, key):
        return self.pairs.get(key)

    def scan(self, prefix):
        for key in sorted(self.pairs):
            if key.startswith(prefix):
                self.taken += 1
                yield key, self.pairs[key]


@settings(max_examples=300, deadline=None)
@given(
    pairs=st.dictionaries(KEYS, st.binary(max_size=1), max_size=12),
    layers=st.lists(CHANGES, max_size=3),
    prefix=st.binary(max_size=1),
)
def test_layers_read_like_what_they_would_become(pairs, layers, prefix):
    view, became = Plain(dict(pairs)), dict(pairs)
    for changes in layers:
        view = Overlay(view)
        for key, value in changes.items():
            view.put(key, value)
            became[key] = value
    present = {key: value for key, value in became.items() if value is not None}
    wanted = [pair for pair in sorted(present.items()) if pair[0].startswith(prefix)]
    assert list(view.scan(prefix)) == wanted
    assert all(view.get(key) == present.get(key) for key in became)


def test_a_scan_stands_still_and_goes_no_further_than_it_is_asked():
    below = Plain({b"%03d" % n: b"" for n in range(500)})
    view = Overlay(below)
    view.put(b"000", None)
    view.put(b"0015", b"new")
    scan = view.scan(b"")
    assert next(scan) == (b"001", b"")
    for key in (b"001", b"002", b"0015"):
        view.put(key, None)
    view.put(b"0016", b"late")
    assert [next(scan)[0] for _ in range(3)] == [b"0015", b"002", b"003"]
    assert below.taken < 8
