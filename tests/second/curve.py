"""ECDSA verification over secp256k1 (SEC 1, SEC 2); slow and independent."""

from __future__ import annotations

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)


def point(key: bytes) -> tuple[int, int]:
    """Return the point of a compressed key of 33 bytes."""
    x = int.from_bytes(key[1:], "big")
    y = pow(x**3 + 7, (P + 1) // 4, P)
    assert key[0] in (2, 3) and x < P and y * y % P == (x**3 + 7) % P
    return x, y if y % 2 == key[0] % 2 else P - y


def _sum(left, right):
    if left is None or right is None:
        return left or right
    (x, y), (u, v) = left, right
    if x == u:
        if (y + v) % P == 0:
            return None
        slope = 3 * x * x * pow(2 * y, -1, P)
    else:
        slope = (v - y) * pow(u - x, -1, P)
    z = (slope * slope - x - u) % P
    return z, (slope * (x - z) - y) % P


def _times(number, base):
    total = None
    while number:
        if number & 1:
            total = _sum(total, base)
        base, number = _sum(base, base), number >> 1
    return total


def is_signed(key: bytes, digest: bytes, signature: bytes) -> bool:
    """True for a low-s signature (r ‖ s) of a 32-byte digest."""
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    if not (0 < r < N and 0 < s <= N // 2):
        return False
    z, inverse = int.from_bytes(digest, "big"), pow(s, -1, N)
    found = _sum(_times(z * inverse % N, G), _times(r * inverse % N, point(key)))
    return found is not None and found[0] % N == r
