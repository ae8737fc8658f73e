"""A stand for one agreement: four validators of weight 1, messages in a short hand.

Validators are A, B, C, D and take turns in this order; checkpoints are named by capital
letters, `-` is nil. `Stand.play` reads lines "input -> effects":

    start                           P 1 X [0] [late]     proposal of round 1, proof in 0
    v 1 X BC                        prevotes of B and C; `c`: precommits
    good X    bad X                 verdicts; `time prevote 1`: a timeout
"""

from __future__ import annotations

from collections.abc import Iterable

from blyan_proto.checkpoint import (
    Checkpoint,
    Proposal,
    ProposalStatement,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.validators import Validator, ValidatorSet
from blyand.rules.chain.agreement import Agreement
from blyand.rules.chain.effects import (
    Behind,
    Cast,
    Decide,
    Effect,
    Evidence,
    Promises,
    Propose,
    Repropose,
    Schedule,
    Step,
    Validate,
)

HEIGHT = 7
NAMES = "ABCD"
NOTHING = bytes(32)
STAGES = {"v": VoteStage.PREVOTE, "c": VoteStage.PRECOMMIT}


def key(name: str) -> bytes:
    return name.encode() * 33


def value(letter: str) -> bytes | None:
    return None if letter == "-" else letter.encode() * 32


def letter(id: bytes | None) -> str:
    return "-" if id is None else chr(id[0])


SET = ValidatorSet(tuple(Validator(key(name), 1, NOTHING) for name in NAMES))


def proposer_of(round: int) -> bytes:
    return key(NAMES[round % 4])


def checkpoint(name: str) -> Checkpoint:
    """Return contents that stand for the checkpoint of this letter."""
    return Checkpoint(
        version=FORMAT_VERSION,
        network=NOTHING,
        height=HEIGHT,
        parent=NOTHING,
        round=0,
        proposer=key("A"),
        time_ms=ord(name),
        beacon=NOTHING,
        preimage=NOTHING,
        blocks=(),
        receipts=(),
        state_root=NOTHING,
        validators_root=NOTHING,
        next_validators_root=NOTHING,
    )


def proposal(
    round: int,
    name: str,
    proof: int | None = None,
    proposer: bytes | None = None,
    height: int = HEIGHT,
) -> Proposal:
    id = value(name)
    assert id is not None
    statement = ProposalStatement(FORMAT_VERSION, height, round, proof, id)
    by = proposer_of(round) if proposer is None else proposer
    return Proposal(statement, checkpoint(name), by, bytes(64))


def vote(
    stage: VoteStage, round: int, name: str, voter: str, height: int = HEIGHT
) -> Vote:
    statement = VoteStatement(FORMAT_VERSION, stage, height, round, value(name))
    return Vote(statement, key(voter), bytes(64))


class Stand:
    """One agreement with the part of a driver that hands our own votes back."""

    def __init__(
        self,
        me: str | None = "D",
        promises: Promises = Promises(),
        height: int = HEIGHT,
    ) -> None:
        self.me = me
        mine = None if me is None else key(me)
        self.machine = Agreement(height, SET, proposer_of, mine, promises)

    def play(self, script: str) -> None:
        """Play a script; AssertionError names the line that did something else."""
        for line in filter(None, map(str.strip, script.splitlines())):
            given, _, expected = line.partition("->")
            effects = [show(effect) for effect in self.do(given.split())]
            wanted = [
                effect.strip() for effect in expected.split(",") if effect.strip()
            ]
            assert effects == wanted, f"{given}: {effects}"

    def do(self, words: list[str]) -> list[Effect]:
        """Carry out one line of the short hand; return all effects."""
        machine = self.machine
        match words:
            case ["start"]:
                return self.close(machine.start())
            case ["P", round, name, *rest]:
                proofs = [int(word) for word in rest if word.isdigit()]
                made = proposal(int(round), name, *proofs)
                timely = "late" not in rest
                return self.close(machine.receive_proposal(made, is_timely=timely))
            case [("v" | "c") as stage, round, name, voters]:
                effects: list[Effect] = []
                for voter in voters:
                    made_vote = vote(STAGES[stage], int(round), name, voter)
                    effects += self.close(machine.receive_vote(made_vote))
                return effects
            case [("good" | "bad") as verdict, name]:
                id = value(name)
                assert id is not None
                return self.close(machine.judge(id, verdict == "good"))
            case ["time", step, round]:
                return self.close(machine.timeout(Step[step.upper()], int(round)))
        raise ValueError(words)

    def close(self, effects: Iterable[Effect]) -> list[Effect]:
        """Hand our own votes back; return the effects with what follows from that."""
        done: list[Effect] = []
        todo = list(effects)
        while todo:
            effect = todo.pop(0)
            done.append(effect)
            if isinstance(effect, Cast):
                assert self.me is not None
                name = letter(effect.checkpoint)
                mine = vote(effect.stage, effect.round, name, self.me)
                todo += self.machine.receive_vote(mine)
        return done


def show(effect: Effect) -> str:
    """Return an effect in the short hand."""
    match effect:
        case Cast(stage, round, id):
            return f"{stage.name.lower()} {round} {letter(id)}"
        case Schedule(step, round):
            return f"wait {step.name.lower()} {round}"
        case Decide(_, id, round):
            return f"decide {round} {letter(id)}"
        case Propose(round):
            return f"propose {round}"
        case Repropose(round, _, id, proof):
            return f"repropose {round} {letter(id)} {proof}"
        case Validate(made):
            return f"validate {letter(made.statement.checkpoint)}"
        case Evidence():
            return f"evidence {chr(effect.signer[0])}"
        case Behind(height):
            return f"behind {height}"
