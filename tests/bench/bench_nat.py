"""Which path two nodes find to one another, for every pair of NATs.

Run: python -m tests.bench.bench_nat
"""

from __future__ import annotations

from tests.functional.nat.world import NATS, run_world, table, why_not


def main() -> None:
    reason = why_not()
    if reason:
        print(f"skipped: network namespaces: {reason}")
        return
    found = run_world(NATS, NATS)
    print("columns: the NAT of the node that seeks\n")
    print(table(found))
    print("\nwhat a node behind each finds out about itself:")
    print(", ".join(f"{nat}: {state}" for nat, state in found["states"].items()))
    print(f"one relay of the last pair killed: {found['moved']}")


if __name__ == "__main__":
    main()
