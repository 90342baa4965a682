#!/usr/bin/env python3
"""Recomputes the identity vectors from docs/protocol/identity.md, independently of the Rust code.

Needs Python 3.9+ and the PyPI package `blake3`:

    python3 -m venv .venv && .venv/bin/pip install blake3
    .venv/bin/python tools/check_identity.py

Without arguments it checks crates/coalition/tests/vectors/identity.json; with `--config FILE` it verifies the hexadecimal
published config in FILE (section 9 of the document) and prints its ids. Exit code 0: everything agrees.
"""

import argparse
import json
import pathlib
import sys

try:
    from blake3 import blake3
except ImportError:
    sys.exit("this script needs the PyPI package blake3: pip install blake3")

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "crates/coalition/tests/vectors/identity.json"
MODULES = ["atlas", "almanac", "chronicle", "compute", "randomness"]
VERSION = b"\x01"


# Section 1: notation

def digest(data):
    return blake3(data).digest()


def le64(n):
    return n.to_bytes(8, "little")


def be(n, size):
    return n.to_bytes(size, "big")


def hash_many(parts):
    return digest(b"".join(le64(len(part)) + part for part in parts))


def tagged(tag, *parts, version=VERSION):
    return hash_many([version, tag.encode("ascii"), *parts])


def opt(value):
    return b"\x00" + bytes(32) if value is None else b"\x01" + value


def listed(items):
    return [le64(len(items)), *items]


def derive(base, segment):
    return digest(base + segment.encode())


SEED = digest(b"coalition.root.v1")
UNIVERSE = digest(b"mosaik.universe")


def unhex(text):
    return None if text is None else bytes.fromhex(text)


# Section 2: members

def stable_id(instance_name, network):
    return tagged("coalition/stable-id", instance_name.encode(), network)


def organism_ref(ref):
    return tagged("coalition/organism-ref", ref["role"].encode(), unhex(ref["stable_id"]), opt(unhex(ref["content_hash"])))


def lattice_ref(ref):
    return tagged("coalition/lattice-ref", ref["instance_name"].encode(), unhex(ref["stable_id"]), opt(unhex(ref["content_hash"])))


def content(preimage):
    return tagged("coalition/content", preimage)


def rule_bytes(rule):
    (kind, value), = rule.items()
    if kind == "issuer":
        return b"\x01" + unhex(value)
    if kind == "tdx":
        return b"\x02" + unhex(value["root"]) + unhex(value["mrtd"])
    if kind == "reputation":
        return b"\x03" + unhex(value["organism"]) + be(value["floor_ppm"], 4)
    if kind == "settlement":
        return b"\x04" + unhex(value["organism"])
    if kind == "policy":
        return b"\x05" + unhex(value)
    raise ValueError(f"unknown access rule {kind}")


def acl(rules):
    return tagged("coalition/acl", *listed([rule_bytes(rule) for rule in rules]))


def content_hash(preimage, rules):
    return tagged("coalition/content-hash", content(preimage), acl(rules))


def organism_id(o):
    return tagged(
        "coalition/organism",
        o["name"].encode(),
        *listed([lattice_ref(x) for x in o["lattices"]]),
        *listed([organism_ref(x) for x in o["organisms"]]),
        content(unhex(o["content"])),
        acl(o["acl"]),
    )


# Section 3: coalitions

def ticket_issuer(issuer):
    return tagged("coalition/ticket-issuer", issuer["name"].encode(), acl(issuer["acl"]))


def coalition_root(c):
    issuer = c["ticket_issuer"]
    return tagged(
        "coalition/root",
        unhex(c["coalition_seed"]),
        c["instance_name"].encode(),
        *listed([unhex(x) for x in c["lattices"]]),
        *listed([organism_ref(x) for x in c["organisms"]]),
        opt(None if issuer is None else ticket_issuer(issuer)),
        version=bytes([c["schema_version"]]),
    )


def coalition_id(c):
    slots = [opt(None if c[kind] is None else organism_ref(c[kind])) for kind in MODULES]
    return tagged("coalition/coalition", coalition_root(c), *slots, version=bytes([c["schema_version"]]))


def module_id(kind, root, name, hashed):
    module_root = derive(derive(root, "module"), kind)
    return tagged("coalition/module", module_root, name.encode(), hashed)


# Sections 4 to 7

def roster(members):
    parts = [le64(len(members))]
    for m in members:
        parts += [m["name"].encode(), *(unhex(m[key]) for key in ("checkpoint_key", "consensus_key", "peer_id"))]
    return tagged("coalition/roster", *parts)


def short(text):
    return bytes([len(text.encode())]) + text.encode()


def committee_content(c):
    out = b"CCOM\x01" if "predecessor" not in c else b"CCOM\x02" + unhex(c["predecessor"])
    out += short(c["service"]) + bytes([len(c["roster"])])
    for m in c["roster"]:
        out += short(m["name"]) + unhex(m["checkpoint_key"]) + unhex(m["consensus_key"]) + unhex(m["peer_id"])
    params = unhex(c["params"])
    return out + be(len(params), 4) + params


def retirement(m):
    out = b"CRTM\x01" + bytes([1 + ["rotation", "retired", "operator_exit", "emergency"].index(m["reason"])])
    (kind, at), = m["effective_at"].items()
    out += bytes([1 + ["at_sequence", "at_timestamp", "at_tick"].index(kind)]) + be(at, 8)
    if m["replacement"] is None:
        return out + b"\x00"
    (kind, r), = m["replacement"].items()
    if kind == "coalition":
        return out + b"\x04" + unhex(r)
    name = r["instance_name"] if kind == "lattice" else r["role"]
    out += bytes([1 + ["organism", "lattice", "module"].index(kind)])
    out += short(name) + unhex(r["stable_id"]) + opt(unhex(r["content_hash"]))
    return out + bytes([MODULES.index(r["role"])]) if kind == "module" else out


def numbered(names, value):
    return bytes([1 + names.index(value)])


def stance(s):
    rule, seats = s["decision_rule"]
    names = ["single_operator", "majority", "supermajority", "unanimity", "sortition"]
    rule_part = numbered(names, rule) + (b"" if seats is None else be(seats, 2))
    kind, value = s["franchise"]
    franchise = numbered(["open", "ticketed", "attested", "reputed", "external"], kind)
    if kind == "reputed":
        franchise += unhex(value[0]) + be(value[1], 4)
    elif kind != "open":
        franchise += unhex(value)
    return tagged(
        "coalition/stance",
        numbered(["voluntary", "tacit", "delegated", "compulsory"], s["consent"]),
        rule_part,
        bytes([s["legitimacy"]]),
        franchise,
        numbered(["direct", "multi_operator", "nested"], s["composition"]),
        numbered(["none", "shared", "absolute"], s["sovereignty"]),
    )


def delegation(d):
    kind, tick = d["revocability"]
    revocability = numbered(["at_will", "at_tick", "by_delegate", "irrevocable"], kind)
    return tagged(
        "coalition/delegation",
        unhex(d["delegator"]),
        unhex(d["delegate"]),
        numbered(["ticket_issuance", "publication", "compute"], d["scope"]),
        revocability + (b"" if tick is None else be(tick, 8)),
    )


def consent_evidence(e):
    kind, value = e["evidence"]
    tag = "coalition/consent-evidence"
    if kind == "commit":
        return tagged(tag, b"\x03", unhex(value["organism"]), be(value["index"], 8), unhex(value["digest"]))
    return tagged(tag, numbered(["self_quote", "ticket"], kind), unhex(value))


# Sections 8 and 9: the published config

class Fields:
    def __init__(self, data):
        self.data = data

    def take(self, n):
        if n > len(self.data):
            raise ValueError("a field is cut short")
        head, self.data = self.data[:n], self.data[n:]
        return head

    def uint(self, size):
        return int.from_bytes(self.take(size), "big")

    def text(self):
        return self.take(self.uint(1)).decode("utf-8")

    def id(self):
        return self.take(32).hex()

    def opt(self):
        present, value = self.flag(), self.id()
        if not present and value != "00" * 32:
            raise ValueError("an absent id is not zero")
        return value if present else None

    def flag(self):
        value = self.uint(1)
        if value > 1:
            raise ValueError(f"a flag has the value {value}")
        return value == 1

    def ref(self, name):
        return {name: self.text(), "stable_id": self.id(), "content_hash": self.opt()}

    def acl(self):
        return [self.rule() for _ in range(self.uint(1))]

    def rule(self):
        kind, value = self.uint(1), self.id()
        if kind == 1:
            return {"issuer": value}
        if kind == 2:
            return {"tdx": {"root": value, "mrtd": self.take(48).hex()}}
        if kind == 3:
            return {"reputation": {"organism": value, "floor_ppm": self.uint(4)}}
        if kind == 4:
            return {"settlement": {"organism": value}}
        if kind == 5:
            return {"policy": value}
        raise ValueError(f"unknown access rule {kind}")

    def body(self, spans):
        body = {"name": self.text(), "lattices": [], "organisms": []}
        if spans:
            body["lattices"] = [self.ref("instance_name") for _ in range(self.uint(2))]
            body["organisms"] = [self.ref("role") for _ in range(self.uint(2))]
        body["content"] = self.take(self.uint(4)).hex()
        body["acl"] = self.acl()
        return body


def unframe(hexadecimal):
    data = bytes.fromhex(hexadecimal.strip())
    if data[:5] != b"COAL\x01" or len(data) < 41:
        raise ValueError("no published config of version 1")
    if int.from_bytes(data[5:9], "big") + 41 != len(data):
        raise ValueError("cut or extended")
    if digest(data[:-32]) != data[-32:]:
        raise ValueError("altered: the checksum is wrong")
    return Fields(data[9:-32])


def same(what, published, computed):
    if published is not None and published != computed.hex():
        raise ValueError(f"{what}: published as {published}, derived {computed.hex()}")


def published(hexadecimal):
    f = unframe(hexadecimal)
    c = {"schema_version": f.uint(1), "coalition_seed": f.id(), "instance_name": f.text()}
    if c["schema_version"] != 1 or c["coalition_seed"] != SEED.hex():
        raise ValueError("other identity rules")
    if f.uint(1) not in (1, 2):
        raise ValueError("unknown retirement policy")
    c["lattices"] = [f.id() for _ in range(f.uint(2))]
    c["organisms"] = []
    for _ in range(f.uint(2)):
        ref = f.ref("role")
        if f.flag():
            body = f.body(True)
            same("organism " + ref["role"], ref["stable_id"], organism_id(body))
            same("content of " + ref["role"], ref["content_hash"], content_hash(unhex(body["content"]), body["acl"]))
        c["organisms"].append(ref)
    bodies = {}
    for kind in MODULES:
        c[kind] = None
        if f.flag():
            c[kind] = {"role": kind, "stable_id": f.id(), "content_hash": f.opt()}
            if f.flag():
                bodies[kind] = f.body(False)
    c["ticket_issuer"] = {"name": f.text(), "acl": f.acl()} if f.flag() else None
    if f.data:
        raise ValueError("bytes after the last field")
    root = coalition_root(c)
    for kind, body in bodies.items():
        hashed = content_hash(unhex(body["content"]), body["acl"])
        same(f"module {kind}", c[kind]["stable_id"], module_id(kind, root, body["name"], hashed))
        same(f"content of {kind}", c[kind]["content_hash"], hashed)
    ids = {"root": root, "fingerprint": coalition_id(c)}
    ids.update({kind: unhex(c[kind]["stable_id"]) for kind in MODULES if c[kind]})
    return ids


# The vectors: rule name -> function of the vector's input to its outputs

def organism_outputs(o):
    own = organism_id(o)
    return {
        "organism_id": own,
        "content_hash": content_hash(unhex(o["content"]), o["acl"]),
        "committee_id": derive(own, "committee"),
        "member_id": own[:20],
    }


def module_outputs(m):
    hashed = content_hash(unhex(m["content"]), m["acl"])
    own = module_id(m["kind"], unhex(m["root"]), m["name"], hashed)
    return {"module_id": own, "content_hash": hashed, "committee_id": derive(own, "committee")}


def coalition_outputs(c):
    root = coalition_root(c)
    return {"root": root, "stable_id": coalition_id(c), "tickets_root": derive(root, "tickets")}


def retirement_outputs(m):
    data = retirement(m)
    return {"bytes": data, "fingerprint": tagged("coalition/retirement", data)}


RULES = {
    "constants": lambda _: {"coalition_root_seed": SEED, "universe": UNIVERSE, "zero_id": bytes(32)},
    "hash_many": lambda v: {"id": hash_many([unhex(p) for p in v["parts"]])},
    "stable_id": lambda v: {"id": stable_id(v["instance_name"], unhex(v["network"]))},
    "provider_id": lambda v: {"id": digest(unhex(v["public_key"]))},
    "content": lambda v: {"id": content(unhex(v["preimage"]))},
    "acl": lambda v: {"id": acl(v["rules"])},
    "organism_ref": lambda v: {"id": organism_ref(v)},
    "lattice_ref": lambda v: {"id": lattice_ref(v)},
    "organism": organism_outputs,
    "module": module_outputs,
    "ticket_issuer": lambda v: {"id": ticket_issuer(v)},
    "coalition": coalition_outputs,
    "roster": lambda v: {"id": roster(v["members"])},
    "committee_content": lambda v: {"bytes": committee_content(v)},
    "retirement": retirement_outputs,
    "stance": lambda v: {"id": stance(v)},
    "delegation": lambda v: {"id": delegation(v)},
    "consent_evidence": lambda v: {"id": consent_evidence(v)},
    "published": lambda v: published(v["hex"]),
}


def check_vectors(path):
    vectors = json.loads(path.read_text("utf-8"))["vectors"]
    failures, seen = 0, set()
    for vector in vectors:
        seen.add(vector["rule"])
        try:
            computed = {key: value.hex() for key, value in RULES[vector["rule"]](vector["in"]).items()}
        except ValueError as error:
            computed = f"refused: {error}"
        if computed != vector["out"]:
            failures += 1
            print(f"MISMATCH {vector['rule']} / {vector['name']}\n  file:     {vector['out']}\n  computed: {computed}")
    missing = sorted(set(RULES) - seen)
    if missing:
        failures += 1
        print("rules without a vector: " + ", ".join(missing))
    print(f"{len(vectors)} vectors of {len(seen)} rules recomputed, {failures} problems")
    return 1 if failures or not vectors else 0


def main():
    parser = argparse.ArgumentParser(description="Recompute coalition identities from their specification.")
    parser.add_argument("--config", type=pathlib.Path, help="file with a published config in hexadecimal")
    parser.add_argument("vectors", nargs="?", type=pathlib.Path, default=VECTORS)
    args = parser.parse_args()
    if args.config is None:
        return check_vectors(args.vectors)
    try:
        for label, value in published(args.config.read_text("ascii")).items():
            print(f"{label:12} {value.hex()}")
    except ValueError as error:
        print(f"{args.config}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
