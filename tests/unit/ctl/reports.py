"""Made items of `train watch`: a run of six learners, of which one is slow."""

import math
from typing import Any

PEERS = [f"16Uiu2HAm{number:04d}PeerNumber{number:04d}" for number in range(6)]
ROUNDS = 60
SLOW, HEIR = 4, 1


def blank(round: int, **more: Any) -> dict[str, Any]:
    """Return an item of which nothing is known but `more`."""
    return {
        "round": round,
        "rounds": ROUNDS,
        "train_loss": None,
        "held_out_loss": None,
        "tokens": 0,
        "bytes_up": 0,
        "bytes_down": 0,
        "compression_ratio": None,
        "primaries": [],
        "contributions": 0,
        "blocks": 0,
        "peers": 5,
        "seconds": 0.0,
        "baselines": None,
        "run": "3f" * 32,
        "learners": 0,
        "parts": [],
        "takeovers": [],
        "tokens_per_s": None,
        "under_way": None,
        **more,
    }


def stream(count: int) -> list[dict[str, Any]]:
    """Return what `train watch --live` tells of a run with `count` closed rounds."""
    simple = {"unigram": 3.31, "bigram": 2.52, "trigram": 2.04, "lzma": 1.52}
    items = [blank(0, held_out_loss=5.545, baselines=simple)]
    items += [closed(round) for round in range(1, count + 1)]
    doing = {"doing": "training, loss 1.71", "step": 13, "steps": 20}
    doing |= {"within_bytes": 4096, "between_bytes": 512}
    return [*items, blank(count + 1, under_way=doing)]


def closed(round: int) -> dict[str, Any]:
    """Return a closed round."""
    loss, slow = 1.5 + 4 * math.exp(-round / 7), round % 4 == 0
    seconds = 14.0 if slow else 6.0 + round % 3
    parts = [
        {
            "peer_id": peer,
            "tokens": 20_480,
            "listed": 11,
            "missed": 3 if number == SLOW and slow else 0,
            "clipped": 1 if number == 2 and round % 7 == 0 else 0,
        }
        for number, peer in enumerate(PEERS)
    ]
    taken = [
        {"group": f"layer{layer}.trunk", "rank": 1, "peer_id": PEERS[HEIR]}
        for layer in range(2)
    ]
    return blank(
        round,
        train_loss=loss + 0.1,
        held_out_loss=loss if round % 2 else None,
        tokens=6 * 20_480,
        bytes_up=600_000 + 1000 * round,
        bytes_down=3_600_000,
        compression_ratio=64.2,
        primaries=[{"peer_id": p, "groups": 3 - n % 3} for n, p in enumerate(PEERS)],
        contributions=66,
        blocks=16,
        seconds=seconds,
        learners=6,
        parts=sorted(parts, key=lambda part: -part["missed"]),
        takeovers=taken if round in (9, 22) else [],
        tokens_per_s=6 * 20_480 / seconds,
    )


def whole(count: int) -> dict[str, Any]:
    """Return what `train report` answers about that run."""
    first, *history = stream(count)[:-1]
    learners = [
        {
            "peer_id": peer,
            "rounds": count,
            "tokens": 20_480 * count,
            "listed": 11 * count,
            "missed": 3 * (count // 4) if number == SLOW else 0,
            "clipped": 0,
            "primary_of": count,
            "takeovers": 4 if number == HEIR else 0,
        }
        for number, peer in enumerate(PEERS)
    ]
    return {
        "run": first["run"],
        "model": "demo <b>",
        "dataset": "corpus & more",
        "outcome": "open",
        "round": count,
        "rounds": ROUNDS,
        "tokens": sum(one["tokens"] for one in history),
        "seconds": sum(one["seconds"] for one in history),
        "bytes_up": sum(one["bytes_up"] for one in history),
        "bytes_down": sum(one["bytes_down"] for one in history),
        "compression_ratio": 64.2,
        "first_held_out_loss": first["held_out_loss"],
        "held_out_loss": history[-1]["held_out_loss"] if history else None,
        "baselines": first["baselines"],
        "peer_id": PEERS[0],
        "made_ms": 1_790_000_000_000,
        "learners": learners,
        "settings": [
            {"name": "inner_steps", "value": "20"},
            {"name": "codecs", "value": "tensor_class matrix from_round 0 codec lr4"},
        ],
        "every": 1,
        "history": history,
    }
