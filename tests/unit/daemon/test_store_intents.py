"""Promises: no sequence twice, no second vote, torn tails against damage."""

import os

import pytest

from blyan_proto.checkpoint import VoteStage
from blyand.errors import LocalFault, StorageFault
from blyand.store import intents
from blyand.store.intents import SLOT_BYTES, AlreadySigned, IntentLog

ACCOUNT, OTHER = b"a" * 20, b"b" * 20
RUN = b"r" * 32


@pytest.fixture
def log(tmp_path):
    log = IntentLog(tmp_path / "intents")
    assert log.fresh and not log.damaged
    log.settle()
    return log


def reopened(log, tmp_path):
    log.close()
    return IntentLog(tmp_path / "intents")


def test_sequences_count_on_after_a_restart(log, tmp_path):
    assert [log.reserve_sequence(ACCOUNT) for _ in range(3)] == [1, 2, 3]
    assert log.reserve_sequence(OTHER) == 1
    log.raise_sequence_to(OTHER, 40)
    log.raise_sequence_to(OTHER, 30)
    log = reopened(log, tmp_path)
    assert not log.fresh and not log.damaged
    assert (log.sequence_of(ACCOUNT), log.sequence_of(OTHER)) == (3, 40)
    assert log.sequence_of(bytes(20)) == 0
    assert log.reserve_sequence(OTHER) == 41
    log.close()
    with pytest.raises(StorageFault):
        log.reserve_sequence(OTHER)


def test_a_vote_is_given_once(log, tmp_path):
    log.record_vote(5, 1, VoteStage.PREVOTE, b"x" * 32)
    log.record_vote(5, 1, VoteStage.PRECOMMIT, None)
    log = reopened(log, tmp_path)
    size = (tmp_path / "intents" / "log").stat().st_size
    log.record_vote(5, 1, VoteStage.PREVOTE, b"x" * 32)
    log.record_vote(5, 1, VoteStage.PRECOMMIT, None)
    assert (tmp_path / "intents" / "log").stat().st_size == size
    with pytest.raises(AlreadySigned) as refused:
        log.record_vote(5, 1, VoteStage.PREVOTE, b"y" * 32)
    assert refused.value.earlier == b"x" * 32 and isinstance(refused.value, LocalFault)
    with pytest.raises(AlreadySigned):
        log.record_vote(5, 1, VoteStage.PRECOMMIT, b"x" * 32)
    assert log.vote_at(5, 1, VoteStage.PREVOTE) == (b"x" * 32,)
    assert log.vote_at(5, 1, VoteStage.PRECOMMIT) == (None,)
    assert log.vote_at(5, 2, VoteStage.PREVOTE) is None
    log.record_vote(5, 2, VoteStage.PREVOTE, b"y" * 32)
    log.close()


def test_a_head_is_given_once(log, tmp_path):
    log.record_head("layer0.trunk", RUN, 3, 1, b"x" * 32)
    log.record_head("layer0.trunk", RUN, 3, 2, b"y" * 32)  # another epoch
    log.record_head("layer1.trunk", RUN, 3, 1, b"z" * 32)
    log = reopened(log, tmp_path)
    log.record_head("layer0.trunk", RUN, 3, 1, b"x" * 32)
    with pytest.raises(AlreadySigned):
        log.record_head("layer0.trunk", RUN, 3, 1, b"y" * 32)
    assert log.head_at("layer0.trunk", RUN, 3, 2) == b"y" * 32
    assert log.head_at("layer0.trunk", b"s" * 32, 3, 1) is None
    log.close()


def test_who_cosigned_another_ranks_head_may_give_its_own(log, tmp_path):
    log.record_head("layer0.trunk", RUN, 3, 2**32 - 1, b"x" * 32, 0)
    log.record_head("layer0.trunk", RUN, 3, 2**32 - 1, b"y" * 32, 1)
    log = reopened(log, tmp_path)
    for rank, digest in ((0, b"x" * 32), (1, b"y" * 32)):
        assert log.head_at("layer0.trunk", RUN, 3, 2**32 - 1, rank) == digest
        with pytest.raises(AlreadySigned):
            log.record_head("layer0.trunk", RUN, 3, 2**32 - 1, b"z" * 32, rank)
    log.close()


@pytest.mark.parametrize("cut", [1, 60, 127])
def test_a_torn_tail_is_cut_off(log, tmp_path, cut):
    log.reserve_sequence(ACCOUNT)
    log.reserve_sequence(ACCOUNT)
    log.close()
    path = tmp_path / "intents" / "log"
    os.truncate(path, path.stat().st_size - cut)
    log = IntentLog(tmp_path / "intents")
    assert not log.damaged and log.sequence_of(ACCOUNT) == 1
    assert path.stat().st_size % SLOT_BYTES == 0
    assert log.reserve_sequence(ACCOUNT) == 2
    log = reopened(log, tmp_path)
    assert log.sequence_of(ACCOUNT) == 2
    log.close()


def test_damage_inside_is_told_from_a_torn_tail(log, tmp_path):
    for _ in range(4):
        log.reserve_sequence(ACCOUNT)
    log.close()
    path = tmp_path / "intents" / "log"
    raw = bytearray(path.read_bytes())
    raw[-SLOT_BYTES - 20] ^= 1
    path.write_bytes(raw)
    log = IntentLog(tmp_path / "intents")
    assert log.damaged and log.sequence_of(ACCOUNT) == 4
    log.close()


def test_slots_do_not_count_in_another_place(log, tmp_path):
    log.reserve_sequence(ACCOUNT)
    log.reserve_sequence(ACCOUNT)
    log.close()
    path = tmp_path / "intents" / "log"
    raw = path.read_bytes()
    path.write_bytes(raw[:-SLOT_BYTES] + raw[-2 * SLOT_BYTES : -SLOT_BYTES])
    log = IntentLog(tmp_path / "intents")
    assert log.sequence_of(ACCOUNT) == 1
    log.close()


def test_a_lost_log_is_fresh(log, tmp_path):
    log.reserve_sequence(ACCOUNT)
    (tmp_path / "intents" / "log").unlink()
    log = reopened(log, tmp_path)
    assert log.fresh
    log.raise_sequence_to(ACCOUNT, 9)  # what the peers said
    assert log.reserve_sequence(ACCOUNT) == 10
    log = reopened(log, tmp_path)
    assert log.fresh, "it ended before it knew what it had signed"
    log.settle()
    assert not log.fresh
    log = reopened(log, tmp_path)
    assert not log.fresh and log.sequence_of(ACCOUNT) == 10
    log.close()


def test_compaction_keeps_maxima_and_refuses_the_forgotten(log, tmp_path, monkeypatch):
    monkeypatch.setattr(intents, "COMPACT_SLOTS", 16)
    monkeypatch.setattr(intents, "HEIGHTS_KEPT", 4)
    monkeypatch.setattr(intents, "ROUNDS_KEPT", 4)
    for number in range(30):
        log.reserve_sequence(ACCOUNT)
        log.record_vote(number, 0, VoteStage.PREVOTE, bytes([number]) * 32)
        log.record_head("embed", RUN, number, 0, bytes([number]) * 32)
    log = reopened(log, tmp_path)
    assert (tmp_path / "intents" / "log").stat().st_size < 30 * SLOT_BYTES
    assert sorted(path.name for path in (tmp_path / "intents").iterdir()) == ["log"]
    assert log.sequence_of(ACCOUNT) == 30
    for number in (0, 15, 27, 29):
        with pytest.raises(AlreadySigned):
            log.record_vote(number, 0, VoteStage.PREVOTE, b"x" * 32)
        with pytest.raises(AlreadySigned):
            log.record_head("embed", RUN, number, 0, b"x" * 32)
    log.record_vote(29, 0, VoteStage.PREVOTE, bytes([29]) * 32)
    log.record_vote(29, 1, VoteStage.PREVOTE, b"x" * 32)
    log.close()


def test_a_proposal_is_made_once_and_stands_apart_from_votes(log, tmp_path):
    log.record_proposal(5, 0, b"p" * 32)
    log.record_proposal(5, 0, b"p" * 32)
    log.record_vote(5, 0, VoteStage.PREVOTE, b"c" * 32)
    log.record_vote(5, 2, VoteStage.PRECOMMIT, None)
    log.record_proposal(5, 2, b"q" * 32)
    log.record_vote(6, 0, VoteStage.PREVOTE, None)
    log = reopened(log, tmp_path)
    votes, proposed = log.promises_at(5)
    assert votes == {
        (0, VoteStage.PREVOTE): b"c" * 32,
        (2, VoteStage.PRECOMMIT): None,
    }
    assert proposed == {0, 2} and log.promises_at(7) == ({}, frozenset())
    with pytest.raises(AlreadySigned):
        log.record_proposal(5, 2, b"r" * 32)
    assert log.vote_at(5, 0, VoteStage.PREVOTE) == (b"c" * 32,)
    log.close()


def test_below_its_floor_nothing_new_is_promised(log, tmp_path):
    log.record_vote(5, 0, VoteStage.PREVOTE, b"c" * 32)
    log.raise_vote_floor(8)
    log.raise_vote_floor(7)
    log = reopened(log, tmp_path)
    assert log.vote_floor == 8
    log.record_vote(5, 0, VoteStage.PREVOTE, b"c" * 32)  # promised already
    for promise in (
        lambda: log.record_vote(7, 0, VoteStage.PREVOTE, None),
        lambda: log.record_proposal(5, 1, bytes(32)),
    ):
        with pytest.raises(AlreadySigned):
            promise()
    log.record_vote(8, 0, VoteStage.PREVOTE, None)
    log.close()
