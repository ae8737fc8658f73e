"""Digests: known values, and no two purposes or splits that share one."""

from blake3 import blake3

from blyan_proto.digest import (
    Domain,
    begun,
    digest,
    digest_alike,
    leaf_digest,
    node_digest,
)


def test_the_definition():
    expected = blake3(
        (2).to_bytes(8, "little") + b"ab" + (0).to_bytes(8, "little"),
        derive_key_context="blyan 1 block header",
    ).digest()
    assert digest(Domain.BLOCK, b"ab", b"") == expected
    assert (
        leaf_digest(b"ab")
        == blake3(b"ab", derive_key_context="blyan 1 merkle leaf").digest()
    )


def test_known_values():
    assert digest(Domain.EMPTY).hex() == EMPTY
    assert digest(Domain.BLOCK, b"abc").hex() == ABC


def test_domains_are_distinct():
    assert len({domain.value for domain in Domain}) == len(Domain)
    assert len({digest(domain, b"x") for domain in Domain}) == len(Domain)


def test_parts_do_not_run_together():
    splits = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), ()]
    assert len({digest(Domain.BLOCK, *parts) for parts in splits}) == len(splits)


def test_the_quick_ways_give_the_same():
    for count in (0, 1, 2, 20):
        parts = [bytes([n]) * 64 for n in range(count)]
        assert digest_alike(Domain.BUCKET, 64, parts) == digest(Domain.BUCKET, *parts)
    left, right = bytes(32), bytes(range(32))
    for pair in (left + right, bytearray(left + right)):
        assert node_digest(pair) == digest(Domain.NODE, left, right)
    long = bytes(5000)  # longer than what is copied
    assert digest(Domain.BLOCK, long) == begun(Domain.BLOCK, 5000, long).digest()


def test_a_leaf_is_the_same_from_any_buffer():
    raw = bytes(range(256)) * 4
    assert leaf_digest(memoryview(raw)[10:200]) == leaf_digest(raw[10:200])


EMPTY = "fafef3dd1289658319d71c38b615989870f53fbf80ec19732b526650b8ba237d"
ABC = "186b241511437e279e95347df01e6fb673c945f330866ce8be42089ed1f0d521"
