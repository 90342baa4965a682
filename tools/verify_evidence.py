#!/usr/bin/env python3
"""Verifies coalition evidence files without any of the project's own code.

Written from docs/protocol/log.md alone. Needs Python 3.9 and the package `cryptography` (Ed25519 only).

    verify_evidence.py --organism HEX --member NAME=KEYHEX [--member …] [--pointer ev1:…] FILE [FILE …]

Members are those of the config, in the order of its roster, with their checkpoint keys. Prints one line per file, `ok …` or `rejected …`, and
exits with 0 only if every file is good.
"""

import argparse
import base64
import hashlib
import sys
import unicodedata

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KIND = set(b"abcdefghijklmnopqrstuvwxyz0123456789._-")
FIELD = 2**255 - 19
# y coordinates of the eight points of small order; every encoding of one of them is congruent to one of these.
SMALL_ORDER_Y = {
    0,
    1,
    FIELD - 1,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
}


class Rejected(Exception):
    """Why a file proves nothing."""


def require(condition, reason):
    if not condition:
        raise Rejected(reason)


def unbase64(text):
    try:
        raw = text.encode("ascii")
        data = base64.b64decode(raw, validate=True)
    except ValueError:
        raise Rejected("not base64") from None
    require(base64.b64encode(data) == raw, "not canonical base64")
    return data


def decimal(text):
    require(text.isascii() and text.isdigit() and (text == "0" or text[0] != "0"), "not a decimal number")
    number = int(text)
    require(number < 2**64, "number too large")
    return number


def unhex32(text):
    require(len(text) == 64 and set(text) <= set("0123456789abcdef"), "not 64 lower-case hex digits")
    return bytes.fromhex(text)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


class Bytes:
    """Bytes read from the front."""

    def __init__(self, data, what):
        self.data, self.what, self.at = data, what, 0

    def take(self, count):
        require(self.at + count <= len(self.data), f"{self.what} is cut short")
        self.at += count
        return self.data[self.at - count : self.at]


def entry_parts(entry):
    """Section 1: checks the whole layout, answers index, kind and body."""
    rest = Bytes(entry, "entry")
    take = rest.take
    require(take(1) == b"\x01", "entry version")
    index = int.from_bytes(take(8), "big")
    take(8 + 8 + 16)
    kind = take(take(1)[0])
    require(1 <= len(kind) <= 64 and set(kind) <= KIND, "entry kind")
    body = int.from_bytes(take(4), "big")
    require(body <= 49152, "entry body too long")
    body = take(body)
    count = take(1)[0]
    require(count <= 16, "too many evidence pointers")
    take(72 * count)
    require(rest.at == len(entry), "bytes after the entry")
    return index, kind, body


def check_inclusion(node, index, size, path, root):
    """Section 2."""
    require(index < size, "index beyond the tree")
    a, b = index, size - 1
    for sibling in path:
        require(b != 0, "path too long")
        if a % 2 == 1 or a == b:
            node = sha256(b"\x01", sibling, node)
            while a % 2 == 0 and a != 0:
                a, b = a // 2, b // 2
        else:
            node = sha256(b"\x01", node, sibling)
        a, b = a // 2, b // 2
    require(b == 0, "path too short")
    require(node == root, "the entry is not in the tree")


def small_order(point):
    y = int.from_bytes(point, "little") & (2**255 - 1)
    return y % FIELD in SMALL_ORDER_Y


def check_cosignature(text, blob, name, key):
    """Section 3: one signature line of a known key."""
    require(len(blob) == 76, "a cosignature does not have 76 bytes")
    key_id = sha256(name.encode(), b"\x0a\x04", key)[:4]
    require(blob[:4] == key_id, "unknown cosigner")
    timestamp = int.from_bytes(blob[4:12], "big")
    require(timestamp < 2**63, "timestamp too large")
    check_signature(key, blob[12:], f"cosignature/v1\ntime {timestamp}\n{text}".encode())


def quorum_of(roster):
    return len(roster) - (len(roster) - 1) // 3


def check_signature(key, signature, message):
    """Section 3: strictly."""
    require(not small_order(key) and not small_order(signature[:32]), "point of small order")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Rejected("a signature does not verify") from None


def check_note(note, organism, roster):
    """Section 3, with the stricter rule of section 4, step 3. Answers size, root and the members that signed."""
    require(len(note.encode()) <= 65536, "note too long")
    text, separator, rest = note.partition("\n\n")
    require(separator, "note without signatures")
    lines = text.split("\n")
    require(len(lines) == 3, "a checkpoint has three lines")
    origin = "coalition.log/" + organism.hex()
    require(lines[0] == origin, "checkpoint of another log")
    size = decimal(lines[1])
    root = unbase64(lines[2])
    require(len(root) == 32, "root is not 32 bytes")
    require(rest.endswith("\n"), "last signature line does not end")
    signers = []
    keys = {f"{origin}/{name}": (position, key) for position, (name, key) in enumerate(roster)}
    signature_lines = rest[:-1].split("\n")
    require(len(signature_lines) <= 128, "too many signature lines")
    for line in signature_lines:
        require(line.startswith("\u2014 "), "signature line without em dash")
        name, separator, encoded = line[2:].partition(" ")
        require(separator and name and "+" not in name, "malformed signature line")
        require(not any(unicodedata.category(c) == "Zs" or c.isspace() for c in name), "white space in key name")
        require(name in keys, "unknown cosigner")
        position, key = keys[name]
        check_cosignature(text + "\n", unbase64(encoded), name, key)
        require(not signers or signers[-1] < position, "cosigners not in roster order")
        signers.append(position)
    require(len(signers) >= quorum_of(roster), f"{len(signers)} cosigners, {quorum_of(roster)} needed")
    return size, root, signers


def decompress(key):
    """Whether 32 bytes are a point of the curve, as RFC 8032, section 5.1.3, decodes them."""
    y = int.from_bytes(key, "little") & (2**255 - 1)
    sign = key[31] >> 7
    y %= FIELD
    d = -121665 * pow(121666, FIELD - 2, FIELD) % FIELD
    square = (y * y - 1) * pow(d * y * y + 1, FIELD - 2, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    if (x * x - square) % FIELD:
        x = x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    return (x * x - square) % FIELD == 0 and not (x == 0 and sign and y != 1)


def parse_handover(body):
    """Section 11: the body of a handover. Answers epoch, next roster, approvals and the bytes that were approved."""
    rest = Bytes(body, "handover")
    take = rest.take
    epoch = int.from_bytes(take(8), "big")
    count = take(1)[0]
    require(1 <= count <= 64, "a roster has 1 to 64 members")
    roster, keys = [], set()
    for _ in range(count):
        name = take(take(1)[0])
        require(1 <= len(name) <= 64 and set(name) <= KIND, "member name")
        three = [take(32), take(32), take(32)]
        require(len(set(three)) == 3 and not keys & set(three), "a key is used twice")
        keys |= set(three)
        roster.append((name.decode("ascii"), three[0]))
    require(len({name for name, _ in roster}) == count, "a name is used twice")
    # Rule 3 compares whole rosters; the other two keys of the roster in force are not known to a verifier of epoch 0.
    approved = body[: rest.at]
    approvals = []
    for _ in range(take(1)[0]):
        position = take(1)[0]
        require(not approvals or approvals[-1][0] < position, "approvals out of order")
        approvals.append((position, take(64)))
    require(rest.at == len(body), "bytes after the handover")
    return epoch, roster, approvals, approved


def signers_digest(roster):
    members = b"".join(bytes([len(name)]) + name.encode() + key for name, key in roster)
    return sha256(b"coalition/roster-signers/v1", bytes([len(roster)]), members)


class Rosters:
    """Section 11: the roster in force, and what earlier ones leave behind."""

    def __init__(self, organism, genesis):
        self.organism, self.roster = organism, genesis
        self.epoch, self.named, self.size, self.left = 0, 0, 0, set()
        self.last = None

    def apply(self, entry, path, note):
        index, kind, body = entry_parts(entry)
        require(kind == b"committee.handover", "no handover")
        epoch, following, approvals, approved = parse_handover(body)
        require(epoch == self.epoch + 1, "handover to another epoch")
        require(self.epoch < 256 and self.named + len(following) <= 4096, "too many handovers")
        require(approved[8:] != self.last, "the roster does not change")
        require(not self.left & {key for _, key in following}, "a key that left comes back")
        require(all(decompress(key) and not small_order(key) for _, key in following), "unusable key")
        message = b"coalition/handover-approval/v1" + self.organism + signers_digest(self.roster) + approved
        for position, signature in approvals:
            require(position < len(self.roster), "approval of an unknown member")
            check_signature(self.roster[position][1], signature, message)
        require(len(approvals) >= quorum_of(self.roster), "too few approvals")
        size, root, _ = check_note(note, self.organism, self.roster)
        require(size == index + 1, "the checkpoint does not end with the handover")
        require(size > self.size, "handovers go backwards")
        check_inclusion(sha256(b"\x00", entry), index, size, path, root)
        self.left |= {key for _, key in self.roster} - {key for _, key in following}
        self.epoch, self.named, self.size = epoch, self.named + len(following), size
        self.roster, self.last = following, approved[8:]


def verify(data, organism, roster, pointer=None):
    """Section 4. Answers the entry's index, the certified size and the names of the cosigners."""
    require(len(data) <= 4000000, "file too long")
    try:
        rest = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("not UTF-8") from None

    def line(prefix):
        nonlocal rest
        text, separator, rest = rest.partition("\n")
        require(separator and text.startswith(prefix), f"no line {prefix!r}")
        return text[len(prefix) :]

    require(line("coalition-evidence/v1") == "", "header")
    require(unhex32(line("organism ")) == organism, "another organism")
    index = decimal(line("index "))

    def hashes():
        count = decimal(line("path "))
        require(count <= 65, "path too long")
        path = [unbase64(line("")) for _ in range(count)]
        require(all(len(node) == 32 for node in path), "hash is not 32 bytes")
        return path

    rosters = Rosters(organism, roster)
    handovers = decimal(line("handovers "))
    require(handovers <= 256, "too many handovers")
    for _ in range(handovers):
        change, way = unbase64(line("handover ")), hashes()
        try:
            note = unbase64(line("checkpoint ")).decode("utf-8")
        except UnicodeDecodeError:
            raise Rejected("not UTF-8") from None
        rosters.apply(change, way, note)
    roster = rosters.roster
    entry = unbase64(line("entry "))
    require(entry_parts(entry)[0] == index, "index differs from the entry's")
    path = hashes()
    require(line("") == "", "no empty line before the checkpoint")
    size, root, signers = check_note(rest, organism, roster)
    require(handovers == 0 or size > rosters.size, "the checkpoint is from before the last handover")
    leaf = sha256(b"\x00", entry)
    check_inclusion(leaf, index, size, path, root)
    if pointer is not None:
        require(pointer == f"ev1:{organism.hex()}:{index}:{leaf.hex()}", "another entry than the pointer names")
    return index, size, [roster[position][0] for position in signers]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--organism", required=True, help="organism id, 64 hex digits")
    parser.add_argument("--member", required=True, action="append", help="NAME=KEYHEX, once per member, in roster order")
    parser.add_argument("--pointer", help="evidence pointer the file must prove")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    organism = unhex32(options.organism)
    roster = [(name, unhex32(key)) for name, _, key in (member.partition("=") for member in options.member)]
    good = True
    for path in options.files:
        try:
            with open(path, "rb") as file:
                index, size, signers = verify(file.read(), organism, roster, options.pointer)
            print(f"ok {path}: entry {index} of {size}, cosigned by {', '.join(signers)}")
        except Rejected as reason:
            good = False
            print(f"rejected {path}: {reason}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
