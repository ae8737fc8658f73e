"""The Merkle tree: shape, proofs, and what must not verify."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto import merkle
from blyan_proto.digest import Domain, digest, leaf_digest
from blyan_proto.errors import BadProof


def leaves_of(count: int) -> list[bytes]:
    return [leaf_digest(index.to_bytes(4, "little")) for index in range(count)]


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962's definition, with our hashes."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return digest(
        Domain.NODE, recursive_root(leaves[:split]), recursive_root(leaves[split:])
    )


def test_root_has_the_shape_of_rfc_6962():
    for count in range(1, 34):
        assert merkle.root(leaves_of(count)) == recursive_root(leaves_of(count))


def test_empty_root_is_no_leaf_and_no_node():
    assert merkle.root([]) == merkle.EMPTY == digest(Domain.EMPTY)
    assert merkle.EMPTY != leaf_digest(b"")


def test_one_leaf_is_its_own_root():
    (leaf,) = leaves_of(1)
    assert merkle.root([leaf]) == leaf
    merkle.verify(leaf, 0, 1, (), leaf)


def test_every_leaf_proves():
    for count in (*range(1, 18), 31, 32, 33):
        leaves = leaves_of(count)
        top = merkle.root(leaves)
        for index, leaf in enumerate(leaves):
            proof = merkle.prove(leaves, index)
            assert len(proof) == merkle.proof_length(index, count)
            merkle.verify(leaf, index, count, proof, top)


def test_many_proofs_at_once_are_those_one_by_one():
    for count in (1, 2, 3, 5, 8, 13, 31, 64, 70):
        leaves = leaves_of(count)
        every = merkle.prove_all(leaves, range(count))
        assert every == [merkle.prove(leaves, index) for index in range(count)]
    with pytest.raises(ValueError):
        merkle.prove_all(leaves, [70])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 200), st.data())
def test_nothing_else_proves(count, data):
    leaves = leaves_of(count)
    top = merkle.root(leaves)
    index = data.draw(st.integers(0, count - 1))
    proof = merkle.prove(leaves, index)
    other = data.draw(st.integers(0, count - 1).filter(lambda i: i != index))
    at = data.draw(st.integers(0, len(proof) - 1))
    bad = list(proof)
    bad[at] = bytes([bad[at][0] ^ 1]) + bad[at][1:]
    with pytest.raises(BadProof):
        merkle.verify(leaves[other], index, count, proof, top)
    with pytest.raises(BadProof):
        merkle.verify(leaves[index], other, count, proof, top)
    with pytest.raises(BadProof):
        merkle.verify(leaves[index], index, count, tuple(bad), top)
    with pytest.raises(BadProof):
        merkle.verify(leaves[index], index, count, proof[:-1], top)
    with pytest.raises(BadProof):
        merkle.verify(leaves[index], index, count, (*proof, bytes(32)), top)


def test_index_outside_is_refused():
    leaves = leaves_of(3)
    for index in (-1, 3, 2**40):
        with pytest.raises(BadProof):
            merkle.verify(leaves[0], index, 3, (), merkle.root(leaves))
        with pytest.raises(ValueError):
            merkle.prove(leaves, index)
    with pytest.raises(BadProof):
        merkle.verify(leaves[0], 0, 0, (), merkle.EMPTY)


def test_a_node_is_not_a_leaf():
    left, right = leaves_of(2)
    assert merkle.root([left, right]) != leaf_digest(left + right)
    assert merkle.root([left, right]) != merkle.root([right, left])


def test_proof_length_of_a_huge_count_is_computed_not_built():
    assert merkle.proof_length(0, 2**60) == 60
    with pytest.raises(BadProof):
        merkle.verify(bytes(32), 5, 2**60, (), bytes(32))
