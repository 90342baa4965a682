#!/usr/bin/env python3
"""Opens the vectors of tdh2.txt from docs/protocol/shuffle.md alone, with nothing but Python's standard library.

Checks the parameters' consistency, the ciphertext's proof, every share's proof, and opens the payload with every pair of
shares; then checks that changed inputs fail. Exit code 0: everything agrees. Slow and not constant-time: for checking only.
"""

import hashlib
import itertools
import pathlib
import struct
import sys

LABEL = b"a label"
PAYLOAD = b"open me"

# Field and group, RFC 9496.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
BASE = bytes.fromhex("e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76")


def negative(x):
    return x % P & 1


def magnitude(x):
    return P - x % P if negative(x) else x % P


def sqrt_ratio(u, v):
    r = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    check = v * r * r % P
    correct, flipped, flipped_i = check == u % P, check == -u % P, check == -u * SQRT_M1 % P
    if flipped or flipped_i:
        r = r * SQRT_M1 % P
    return correct or flipped, magnitude(r)


def decode(data):
    s = int.from_bytes(data, "little")
    if len(data) != 32 or s >= P or negative(s):
        raise ValueError("no canonical element")
    u1, u2 = (1 - s * s) % P, (1 + s * s) % P
    v = (-D * u1 * u1 - u2 * u2) % P
    square, inv = sqrt_ratio(1, v * u2 * u2)
    x = magnitude(2 * s * inv * u2)
    y = u1 * inv * inv * u2 * v % P
    if not square or negative(x * y) or y == 0:
        raise ValueError("no canonical element")
    return x, y, 1, x * y % P


_, INVSQRT_A_MINUS_D = sqrt_ratio(1, -1 - D)
SQRT_AD_MINUS_ONE = P - sqrt_ratio(-D - 1, 1)[1]


def encode(point):
    x, y, z, t = point
    u1, u2 = (z + y) * (z - y) % P, x * y % P
    _, inv = sqrt_ratio(1, u1 * u2 * u2)
    d1, d2 = inv * u1 % P, inv * u2 % P
    z_inv = d1 * d2 * t % P
    inverse = d2
    if negative(t * z_inv):
        x, y, inverse = y * SQRT_M1 % P, x * SQRT_M1 % P, d1 * INVSQRT_A_MINUS_D % P
    if negative(x * z_inv):
        y = -y % P
    return magnitude(inverse * (z - y)).to_bytes(32, "little")


def add(a, b):
    x1, y1, z1, t1 = a
    x2, y2, z2, t2 = b
    c, d = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    e, f = 2 * t1 * D * t2 % P, 2 * z1 * z2 % P
    e1, f1, g1, h1 = d - c, f - e, f + e, d + c
    return e1 * f1 % P, g1 * h1 % P, f1 * g1 % P, e1 * h1 % P


NEUTRAL = (0, 1, 1, 0)


def mul(k, point):
    result = NEUTRAL
    for bit in bin(k % L)[2:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result


def total(points):
    result = NEUTRAL
    for point in points:
        result = add(result, point)
    return result


def elligator(data):
    t = int.from_bytes(data, "little") % 2**255 % P
    r = SQRT_M1 * t * t % P
    u, v = (r + 1) * (1 - D * D) % P, (-1 - r * D) * (r + D) % P
    square, s = sqrt_ratio(u, v)
    s, c = (s, -1) if square else (-magnitude(s * t) % P, r)
    n = (c * (r - 1) * (D - 1) ** 2 - v) % P
    w0, w1 = 2 * s * v % P, n * SQRT_AD_MINUS_ONE % P
    w2, w3 = (1 - s * s) % P, (1 + s * s) % P
    return w0 * w3 % P, w2 * w1 % P, w1 * w3 % P, w0 * w2 % P


# blake3 of at most one chunk, for the fingerprint.

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]


def rotate(x, n):
    return (x >> n | x << 32 - n) & 0xFFFFFFFF


def compress(cv, block, length, flags):
    m = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    v = cv + IV[:4] + [0, 0, length, flags]

    def mix(a, b, c, d, x, y):
        v[a] = (v[a] + v[b] + x) & 0xFFFFFFFF
        v[d] = rotate(v[d] ^ v[a], 16)
        v[c] = (v[c] + v[d]) & 0xFFFFFFFF
        v[b] = rotate(v[b] ^ v[c], 12)
        v[a] = (v[a] + v[b] + y) & 0xFFFFFFFF
        v[d] = rotate(v[d] ^ v[a], 8)
        v[c] = (v[c] + v[d]) & 0xFFFFFFFF
        v[b] = rotate(v[b] ^ v[c], 7)

    lanes = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    lanes += [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(7):
        for i, lane in enumerate(lanes):
            mix(*lane, m[2 * i], m[2 * i + 1])
        m = [m[i] for i in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3(data):
    assert len(data) <= 1024, "one chunk only"
    blocks = [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
    cv = IV
    for i, block in enumerate(blocks):
        flags = (1 if i == 0 else 0) | (2 | 8 if i == len(blocks) - 1 else 0)
        cv = compress(cv, block, len(block), flags)
    return struct.pack("<8I", *cv)


# ChaCha20-Poly1305, RFC 8439.

def chacha_block(key, counter, nonce):
    state = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key)) + [counter]
    state += struct.unpack("<3I", nonce)
    w = state[:]

    def quarter(a, b, c, d):
        for x, y, z, n in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
            w[x] = (w[x] + w[y]) & 0xFFFFFFFF
            w[z] = rotate(w[z] ^ w[x], 32 - n)

    for _ in range(10):
        for i in range(4):
            quarter(i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(w, state)))


def aead_open(key, aad, sealed):
    body, tag, nonce = sealed[:-16], sealed[-16:], bytes(12)
    one_time = chacha_block(key, 0, nonce)
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    pad = lambda data: data + bytes(-len(data) % 16)
    text = pad(aad) + pad(body) + struct.pack("<QQ", len(aad), len(body))
    acc = 0
    for i in range(0, len(text), 16):
        acc = (acc + int.from_bytes(text[i:i + 16] + b"\1", "little")) * r % (2**130 - 5)
    if (acc + int.from_bytes(one_time[16:32], "little")) % 2**128 != int.from_bytes(tag, "little"):
        raise ValueError("the payload does not decrypt")
    stream = b"".join(chacha_block(key, 1 + i, nonce) for i in range(len(body) // 64 + 1))
    return bytes(a ^ b for a, b in zip(body, stream))


# TDH2, docs/protocol/shuffle.md.

def prefixed(parts):
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def digest(use, *parts):
    return hashlib.sha512(prefixed([b"coalition/tdh2/v1", use, *parts])).digest()


def challenge(use, *parts):
    return int.from_bytes(digest(use, *parts), "little") % L


def scalar(data):
    value = int.from_bytes(data, "little")
    if value >= L:
        raise ValueError("no canonical scalar")
    return value


def lagrange(indices, at):
    factors = []
    for i in indices:
        above = below = 1
        for j in indices:
            if j != i:
                above, below = above * (at - j), below * (i - j)
        factors.append(above * pow(below, -1, L) % L)
    return factors


def interpolate(indices, points, at):
    return total(mul(k, point) for k, point in zip(lagrange(indices, at), points))


class Committee:
    def __init__(self, data):
        version, setup, self.t, self.n = data[:4]
        assert (version, setup) == (1, 1), "version and setup"
        points = [decode(data[i:i + 32]) for i in range(4, len(data), 32)]
        self.group, self.keys = points[0], points[1:]
        assert len(self.keys) == self.n
        base = range(1, self.t + 1)
        for x, key in [(0, self.group), *enumerate(self.keys, 1)]:
            assert encode(interpolate(base, self.keys[:self.t], x)) == encode(key), "consistent"
        wide = digest(b"generator", data[4:36])
        self.second = add(elligator(wide[:32]), elligator(wide[32:]))
        self.fingerprint = blake3(prefixed([b"\1", b"coalition/shuffle/params", data]))

    def check_ciphertext(self, data, label):
        u, u_bar = decode(data[:32]), decode(data[32:64])
        e, f = scalar(data[64:96]), scalar(data[96:128])
        w = add(mul(f, decode(BASE)), mul(-e, u))
        w_bar = add(mul(f, self.second), mul(-e, u_bar))
        parts = [self.fingerprint, label, data[:32], data[32:64], encode(w), encode(w_bar), data[128:]]
        return e == challenge(b"ciphertext-proof", *parts)

    def check_share(self, share, data, label):
        index, u, u_i = share[0], decode(data[:32]), decode(share[1:33])
        e, f = scalar(share[33:65]), scalar(share[65:])
        key = self.keys[index - 1]
        u_hat = add(mul(f, u), mul(-e, u_i))
        h_hat = add(mul(f, decode(BASE)), mul(-e, key))
        name = digest(b"ciphertext-id", self.fingerprint, label, data)[:32]
        parts = [name, bytes([index]), encode(key), data[:32], share[1:33], encode(u_hat), encode(h_hat)]
        return e == challenge(b"share-proof", self.fingerprint, *parts)

    def open(self, shares, data, label):
        shared = interpolate([s[0] for s in shares], [decode(s[1:33]) for s in shares], 0)
        key = digest(b"data-key", self.fingerprint, data[:32], encode(shared))[:32]
        return aead_open(key, label, data[128:])


def self_test():
    assert encode(decode(BASE)) == BASE and encode(mul(L + 1, decode(BASE))) == BASE
    assert blake3(b"").hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    two = "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919"
    assert encode(mul(2, decode(BASE))).hex() == two, "RFC 9496, A.1"


def main():
    self_test()
    lines = (pathlib.Path(__file__).parent / "tdh2.txt").read_text().split()
    params, data, *shares = map(bytes.fromhex, lines)
    committee = Committee(params)
    assert committee.check_ciphertext(data, LABEL), "ciphertext proof"
    assert not committee.check_ciphertext(data, b"another label"), "label is bound"
    assert not committee.check_ciphertext(data[:-1] + bytes([data[-1] ^ 1]), LABEL), "payload is bound"
    for share in shares:
        assert committee.check_share(share, data, LABEL), f"share of member {share[0]}"
        posing = bytes([share[0] % 3 + 1]) + share[1:]
        assert not committee.check_share(posing, data, LABEL), "member number is bound"
    for pair in itertools.permutations(shares, 2):
        assert committee.open(pair, data, LABEL) == PAYLOAD, "payload"
    print("tdh2.txt agrees")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, ValueError) as error:
        sys.exit(f"tdh2.txt does not agree: {error}")
