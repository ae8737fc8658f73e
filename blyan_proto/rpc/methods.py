"""Every declared method, by name: the whole control interface.

A noun's module is imported when first asked for: the CLI needs one of them per call.
"""

from __future__ import annotations

import importlib

from blyan_proto.rpc.spec import Method

# The nouns, in the order of help and docs, each with what it is about.
NOUNS = {
    "node": "this node: is it well, how is it set, what does it transfer, stop",
    "net": "how this node is connected, and what goes over it",
    "peer": "who is connected, and connect to one more",
    "chain": "the chain: tips, blocks, checkpoints",
    "sync": "join by a checkpoint: how far, by whom, and the one to hand over",
    "consensus": "how the validators stand with the next checkpoint",
    "expert": "which experts there are, who holds them, at which versions",
    "model": "create a model, list them, show one",
    "data": "add a dataset, list them, show one",
    "train": "start or join a run, stop learning here, look on",
    "tile": "what this node holds, byte for byte",
    "pin": "keep a model, dataset, block or blob here, whatever retention says",
    "ledger": "balances, payments, statements, audits",
    "supply": "how much money there is and may be",
    "reward": "what epochs pay, to whom and why, and who got most",
    "validator": "who signs checkpoints and how well; become one, retire, change the bond",
    "slash": "penalties and what proves them; submit evidence",
    "key": "this node's key: show it, change it",
    "infer": "generate text through the network, measure how good the model is",
}


def methods_of(noun: str) -> dict[str, Method]:
    """Return the methods of one noun, by full name, in declared order."""
    module = importlib.import_module(f"blyan_proto.rpc.{noun}")
    declared = [value for value in vars(module).values() if isinstance(value, Method)]
    return {method.name: method for method in declared}


def all_methods() -> dict[str, Method]:
    """Return every declared method, by full name."""
    return {name: method for noun in NOUNS for name, method in methods_of(noun).items()}


def find(name: str) -> Method | None:
    """Return the method of that name, or None."""
    noun = name.partition(".")[0]
    return methods_of(noun).get(name) if noun in NOUNS else None
