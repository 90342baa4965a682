#!/usr/bin/env python3
"""Writes the fuzz targets' seed corpora to fuzz/seeds, from the golden vectors of the tests. Standard library only.

Formats that need no hash or signature and have no vector are written out by hand here; for checksummed ones the targets
damage a sound value of their own (see `coalition_fuzz::damaged`).
"""

import base64
import json
import pathlib
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"
CRATES = ROOT / "crates"


def put(target, *inputs):
    directory = SEEDS / target
    directory.mkdir(parents=True, exist_ok=True)
    first = len(list(directory.iterdir()))
    for number, data in enumerate(inputs, first):
        (directory / f"{number:02}").write_bytes(data if isinstance(data, bytes) else data.encode())


def hex_lines(path):
    return [bytes.fromhex(line) for line in path.read_text().split() if line and len(line) % 2 == 0]


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def blob(data):
    return varint(len(data)) + data


def unified(sections):
    """A unified kernel image: PE headers, a table of sections, their contents."""
    head = b"MZ" + bytes(58) + struct.pack("<I", 0x40) + b"PE\0\0" + struct.pack("<HH12xHH", 0x8664, len(sections), 0, 0x22)
    at, table, contents = len(head) + 40 * len(sections), b"", b""
    for name, data in sections:
        table += struct.pack("<8sIIII16x", name, len(data), 0, len(data), at + len(contents))
        contents += data
    return head + table + contents


def log():
    evidence = (CRATES / "coalition-log/tests/golden/evidence.txt").read_text()
    entry = next(line for line in evidence.split("\n") if line.startswith("entry "))
    entry = base64.b64decode(entry.removeprefix("entry "))
    note = evidence.split("\n\n", 1)[1].encode()
    one = b"\n".join(note.split(b"\n")[:5]) + b"\n"
    put("log_entry", entry, entry[:60])
    put("log_checkpoint", note, one)
    after = (CRATES / "coalition-log/tests/golden/evidence-handovers.txt").read_text()
    put("log_evidence", evidence, after)
    proofs = "coalition-handovers/v1\n" + after[after.index("handovers ") : after.index("entry ")]
    body = bytes.fromhex((CRATES / "coalition-log/tests/golden/handover.hex").read_text().strip())
    put("log_handover", b"\x01" + proofs.encode(), b"\x01" + body, *(bytes([w, 0, 0, 60, 9]) for w in (0, 2)))
    line = b"checkpoint " + base64.b64encode(one) + b"\n"
    put("log_equivocation", b"coalition-equivocation/v1\n" + line + line)
    put("log_tiles", b"\x00" + struct.pack(">H", len(entry)) + entry, b"\x01" + bytes(64))
    put("log_state", bytes([0, 0, 9, 1]), bytes([3, 0, 40, 0]), bytes([1, 0, 60, 0, 0, 0, 90, 255]))
    put("log_store", *(bytes([which, 0, kind, 0, 9, 1]) for which in range(6) for kind in (0, 3)))
    bundle = struct.pack(">H", len(entry)) + entry
    put("log_reader", note + b"\x00\x01\x20" + bytes(32) + bundle, one + b"\x00\x01\x00" + bundle)
    return entry, note


def organism(entry, note):
    id32, write_id = bytes([0xAB] * 32), bytes([3] * 16)
    # A UniqueId is a string of 64 digits or raw bytes, whatever its serde form is: both are tried.
    for oid in (id32, blob(id32), blob(id32.hex().encode())):
        put(
            "organism_wire",
            b"\x00" + oid + write_id + b"\x05\x00" + blob(b"command"),
            b"\x01\x00" + oid + blob(note),
            b"\x02" + oid + b"\x01" + write_id + b"\x00" + blob(b"command") + varint(1000),
            b"\x04" + oid + b"\x01\x05" + varint(1000),
            b"\x05" + oid + b"\x05\x05" + varint(1000),
            b"\x07" + oid + b"\x05",
            b"\x0c" + oid + varint(300) + b"\x02",
            b"\x0d\x01" + varint(1_700_000_000_000),
        )
    put(
        "organism_wire",
        b"\x03\x01\x01" + blob(b"code") + blob(b"message") + b"\x01" + blob(note) + b"\x00",
        b"\x03\x01\x02\x00\x01" + blob(entry) + b"\x00",
        b"\x06" + blob(note) + b"\x00\x01" + blob(entry) + b"\x01" + bytes(32),
    )
    put("organism_receipt", b"\x00", b"\x00\x00\x00\x05\x01", b"\x01\x01\x02\x00\x00")


def identity():
    vectors = json.loads((CRATES / "coalition/tests/vectors/identity.json").read_text())["vectors"]
    bodies = {"retirement": [], "committee_content": []}
    for vector in vectors:
        if vector["rule"] in bodies:
            bodies[vector["rule"]].append(bytes.fromhex(vector["out"]["bytes"]))
    markers = bodies["retirement"]
    approved = [struct.pack(">I", len(m)) + m + b"\x02\x00" + bytes(64) + b"\x01" + bytes(64) for m in markers[:2]]
    put("log_retirement", *markers, *approved)
    put("committee", *bodies["committee_content"])
    sections = (ROOT / "apps/coalition/tests/golden/devnet.txt").read_text().split("==> ")
    for section in sections:
        name, _, body = section.partition("\n")
        if name == "coalition.hex":
            config = bytes.fromhex(body.strip())
            length = struct.pack(">I", len(config))
            place = b"\x01\x00\x0b127.0.0.1:1"
            put("log_chain", b"\x00" + length + config + place, b"\x02" + length + config + bytes(6))
            put("log_chain", *(bytes([which, 0, 0, at, 9]) for which in (1, 3) for at in (0, 60, 250)))
            put("config_binary", config, config[9:-32], body.strip())
        elif name == "coalition.toml":
            put("config_toml", body)


def services():
    for line in (CRATES / "coalition-compute/tests/vectors/compute.txt").read_text().splitlines():
        words = line.split(" ")
        if words[0] in ("params", "command"):
            put("compute_command", bytes.fromhex(words[-1]))
        elif words[0] == "entry":
            kinds = ["card", "card_removed", "request", "request_ended", "clearing", "grant", "grant_serving"]
            kinds += ["grant_ending", "grant_ended", "log", "extension_asked", "extension_answered", "inventory"]
            kinds += ["usage_report"]
            which = kinds.index(words[2].removeprefix("compute."))
            put("compute_entry", bytes([which]) + bytes.fromhex(words[-1]))
    for line in (CRATES / "coalition-compute/tests/vectors/telemetry.txt").read_text().splitlines():
        if line.startswith("snapshot "):
            signed = bytes.fromhex(line.split(" ")[1])
            # Whole, and without key and signature.
            put("telemetry", signed, signed[:1] + signed[97:])
    put(
        "almanac",
        bytes([1, 0, 0, 3, 232]),
        b"\x01\x00\x02" + varint(1_700_000_000_000) + b"\x00",
        b"\x01\x02" + varint(1_700_000_000_000) + b"\x01" + bytes(64),
        b"\x01\x05\x02\x00\x01" + varint(1_700_000_000_000),
    )


def shuffle():
    vectors = CRATES / "coalition-shuffle/tests/vectors"
    cell = hex_lines(vectors / "cell.txt")[0]
    put("shuffle_cell", cell[:200], cell[33:])
    put("shuffle_envelope", *hex_lines(vectors / "envelope.hex"))
    put("shuffle_receipt", *hex_lines(vectors / "receipt.hex"))
    keys = (vectors / "keys.txt").read_text().split()
    put("shuffle_keys", bytes.fromhex(keys[0]), *(key.encode() for key in keys))
    tdh2 = hex_lines(vectors / "tdh2.txt")
    put("shuffle_keys", *(item for item in tdh2 if len(item) < 300))
    put(
        "shuffle_wire",
        b"\x00" + blob(cell[:64]),
        b"\x01" + bytes(64),
        b"\x02" + bytes(64) + blob(cell[:64]),
        b"\x03" + bytes(32),
        b"\x04" + bytes(64),
        b"\x03\x01" + blob(cell[:64]),
        b"\x04\x01",
    )


def attest():
    policies = json.loads((CRATES / "coalition-attest/tests/vectors/policy.json").read_text())["policies"]
    put("attest_policy", *(policy["toml"] for policy in policies))
    put("attest_quote", b"\x00", b"\x00\x00\x00\x30\x01", b"\x00\x03\x02\x00\x00", b"\x01\x01" + bytes(8))
    put("attest_collateral", b"\x00", b"\x00\x00\x00\x30\x41", b"\x01{}", b"\x01b0c06f000000-platform")


def tickets():
    settlement = b"\x03" + struct.pack(">I", 72) + bytes([2] * 32) + struct.pack(">Q", 7) + bytes([3] * 32)
    attestation = b"\x01" + struct.pack(">I", 46) + b"\x01\x02" + struct.pack(">Q", 1_800_000_000) + bytes(36)
    put("tickets", b"\x00\x01\x00", b"\x00\x01\x02" + settlement + attestation)
    put("tickets", *(bytes([which, 0, 0, 0, 0x30, 1]) for which in range(1, 6)))
    put("tickets", b"\x04\x02\x00\x00\x04head", b"\x06eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.e30.AA")


def order():
    commands = [b"a", b"bc", b"", bytes(60)]
    header = struct.pack(">Q32sQQI", 7, bytes([9] * 32), 3, 1_700_000_000_000, len(commands))
    spec = b"Spec ID Event03\0" + bytes([0, 0, 0, 0, 0, 2, 0, 2]) + struct.pack("<IHH", 1, 0x0C, 48) + b"\0"
    log = struct.pack("<II20xI", 0, 3, len(spec)) + spec
    event = struct.pack("<IIIH", 2, 4, 1, 0x0C) + bytes(48) + struct.pack("<I", 4) + bytes(4)
    put("attest_predict", b"\0" + log, b"\0" + log + event, b"\0" + log + event + b"\xff" * 8)
    put("attest_predict", *(bytes([1, 0, at >> 8, at & 255, 9]) for at in (4104, 4128, 4144, 4148, 4170)))
    put("order_anchor", *(bytes([which, 0, 0, at, 9]) for which in (0, 1) for at in (0, 70, 250)))
    put("order_block", header + b"".join(struct.pack(">I", len(c)) + c for c in commands), header[:56] + bytes(4))
    put("order_frames", b"".join(struct.pack(">I", len(c)) + c for c in commands))
    create = struct.pack(">BQHBB", 1, 1, 0, 1, 1) + b"p\x01"
    write = struct.pack(">BQQI", 2, 1, 0, 3) + b"abc"
    resize, remove = struct.pack(">BQQ", 3, 1, 5), struct.pack(">BQ", 4, 1)

    def batch(flags, segment, sequence, base, records=b""):
        return bytes([flags, segment, sequence, base, len(records)]) + records

    mark = batch(0, 1, 1, 1)
    put(
        "order_journal",
        mark,
        mark + batch(0, 1, 2, 1, create + write),
        mark + batch(0, 1, 2, 1, create + write + resize) + batch(0, 1, 3, 1, remove),
        mark + batch(0, 1, 2, 1, create) + batch(1, 2, 3, 1, write) + batch(1, 2, 4, 1, remove),
        mark + batch(2, 0, 0, 0, b"COJ1torn"),
    )


def edges():
    put("universe_frames", bytes.fromhex("0104000000026563686f0000"), b"\x00\x07", bytes.fromhex("0101610162"), b"\x02")
    peer = "197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61"
    calls = {}
    for line in (CRATES / "coalition-content/tests/vectors/calls.txt").read_text().splitlines():
        name, method, body = line.split()
        calls[name] = (method, bytes.fromhex(body))
    methods = ["content.stat", "content.slice", "content.put", "content.list", "content.remove"]
    asked = [bytes([methods.index(method)]) + body for method, body in calls.values() if method in methods]
    pointer = (CRATES / "coalition-content/tests/vectors/pointer.txt").read_bytes().strip()
    answers = [b"\x05" + calls["answer-missing"][1], b"\x06" + calls["answer-list"][1], b"\x07" + pointer]
    put("content_wire", *asked, *answers, b"\x09" + bytes(64) + bytes([7]) * 65_536)
    put("universe_address", f"{peer}@127.0.0.1:4001,[::1]:9,http://127.0.0.1:3340/", f"{peer}@http://a.example/")
    spec = {
        "version": 1, "grant_id": "00112233", "image": "image.tar", "image_blake3": "00" * 32, "image_size_bytes": 1000,
        "cpu_millicores": 500, "ram_mib": 64, "disk_mib": 64, "pids_max": 64, "valid_to_unix_ms": 1_800_000_100_000,
        "ssh_listen": "127.0.0.1:0", "ssh_host_key": "", "command": ["/bin/sh"], "env": {"A": "b"},
        "ssh_authorized_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGSv0Xx0C0Vk5QvJf1bHh3l8Tg2mS4nq9rYkqzqJ1v9B me",
    }
    put("host_spec", json.dumps(spec), json.dumps({**spec, "version": 2}))
    blob = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + "0a" * 32, "size": 9}
    entry = {**blob, "mediaType": "application/vnd.oci.image.manifest.v1+json", "platform": {"architecture": "amd64", "os": "linux"}}
    run = {"User": "web:staff", "Env": ["A=b"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["true"], "WorkingDir": "/srv"}
    image = {"architecture": "amd64", "os": "linux", "config": run, "rootfs": {"diff_ids": [blob["digest"]]}}
    put("host_oci", b"\0" + b'{"imageLayoutVersion":"1.0.0"}', b"\1" + json.dumps({"manifests": [entry]}).encode())
    put("host_oci", b"\2" + json.dumps({"config": blob, "layers": [blob]}).encode(), b"\3" + json.dumps(image).encode())
    put("host_oci", b"\4a/.wh.b", b"\4a/.wh..wh..opq")
    kernel = bytes(0x202) + b"HdrS" + bytes(10)
    sections = [(b".osrel", b"PRETTY_NAME=x\n"), (b".cmdline", b"quiet\n"), (b".initrd", b"0707"), (b".linux", kernel)]
    put("host_uki", unified(sections), unified([(b".profile", b"ID=a"), *sections, (b".profile", b"ID=b"), sections[1]]))
    put("host_uki", bytes(510) + b"\x55\xaa" + b"EFI PART", b"QFI\xfb", b"console=ttyS0\t quiet\n\0")
    used = {"usage": {"cpu_core_ms": 1, "ram_mib": 2, "disk_mib": 3}}
    put("host_report", '{"ready":{"losses":["a"]}}', '{"exited":{"code":3}}', json.dumps(used), '{"failed":{"code":"io","message":"x"}}',
        '{"moved":{"unix_ms":9}}', '{"until":{"unix_ms":9}}')
    usage = {
        "version": 1, "grant_id": "00112233", "started_unix_ms": 1, "updated_unix_ms": 2, "cpu_core_ms": 3,
        "ram_mib_ms": 4, "net_bytes": 5, "ram_peak_mib": 6, "samples": 7, "is_final": True,
    }
    failure = {"error": {"code": "no_space", "message": "full", "hint": None}}
    put("host_answer", *(bytes([which]) + json.dumps(usage).encode() for which in range(5)))
    stat = "@stat\n1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 10 20 300 1 20 0 1 0 77 8 9\n@statm\n900 512 3 4 5 6 7\n"
    net = "@net\n  eth0: 5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n@end\n"
    group = "@group\n0::/\n@cpu\nusage_usec 1234567\n@ram\n3145729\n@page\n4096\n"
    put("guest_counters", (group + stat + net).encode(), ("@group\n@cpu\n@ram\n@page\n" + stat + net).encode())
    shown = "Id=coalition-grant-00aa11bb.service\nDescription=coalition grant 00aa11bb in /g\nActiveState=active\n"
    put("host_units", shown.encode(), (shown + "\n" + shown.replace("active", "failed")).encode())
    instance = (
        "<item><instanceId>i-0123456789abcdef0</instanceId><instanceState><name>running</name></instanceState>"
        "<ipAddress>192.0.2.7</ipAddress><tagSet><item><key>a</key><value>b &amp; c</value></item></tagSet></item>"
    )
    put(
        "aws_answer",
        f"<R><reservationSet><item><instancesSet>{instance}</instancesSet></item></reservationSet><nextToken>n</nextToken></R>",
        f"<?xml version='1.0'?><R><instancesSet>{instance}</instancesSet></R>",
        "<Response><Errors><Error><Code>VcpuLimitExceeded</Code><Message>m</Message></Error></Errors></Response>",
        "<R><volumeSet><item><volumeId>vol-01234567</volumeId><status>available</status><size>8</size></item></volumeSet></R>",
        '{"Quota":{"Value":32.0}}',
        "[default]\naws_access_key_id = A\naws_secret_access_key = b\n",
    )
    machine = {
        "name": "c-1", "status": "RUNNING", "zone": "x/zones/us-east1-b", "machineType": "x/machineTypes/n2d-standard-2",
        "labels": {"coalition-bridge": "b", "coalition-offer": "o", "coalition-instance": "1"},
        "metadata": {"items": [
            {"key": f"coalition-{key}", "value": value} for key, value in (("bridge", "b"), ("offer", "o"), ("instance", "1"))
        ]},
        "networkInterfaces": [{"networkIP": "10.0.0.1", "accessConfigs": [{"natIP": "192.0.2.7"}]}],
    }
    disk = {
        "name": "c-1", "status": "READY", "zone": "x/zones/us-east1-b", "labels": machine["labels"],
        "description": "coalition-bridge=b coalition-offer=o coalition-instance=1",
    }
    refusal = {"error": {"code": 403, "message": "m", "errors": [{"reason": "quotaExceeded"}], "details": [{"reason": "R"}]}}
    failed = {"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "m"}]}
    key = {"type": "service_account", "client_email": "a@b", "private_key_id": "0", "private_key": "x", "token_uri": "https://t"}
    answers = (
        {"kind": "compute#instanceAggregatedList", "nextPageToken": "n", "items": {"zones/us-east1-b": {"instances": [machine]}}},
        {"kind": "compute#diskAggregatedList", "items": {"zones/us-east1-b": {"disks": [disk]}}},
        {"kind": "compute#instanceAggregatedList", "items": {"zones/us-east1-b": {"warning": {"code": "UNREACHABLE"}}}},
        machine,
        {"name": "operation-1", "status": "DONE", "error": failed, "httpErrorStatusCode": 503},
        {"name": "x", "status": "READY", "diskSizeGb": "10", "architecture": "X86_64", "deprecated": {"state": "OBSOLETE"}},
        {"name": "n2d-standard-2", "guestCpus": 2, "memoryMb": 8192},
        {"name": "us-east1", "quotas": [{"metric": "CPUS", "limit": 24.0, "usage": 2.0}]},
        {"access_token": "t", "expires_in": 3599, "token_type": "Bearer"},
        refusal,
        key,
    )
    put("gcp_answer", *map(json.dumps, answers))
    machine = {
        "name": "c-0", "tags": {"coalition:bridge": "b"}, "zones": ["1"],
        "properties": {
            "vmId": "00000000-0000-4000-8000-000000000001", "provisioningState": "Failed", "hardwareProfile": {"vmSize": "x"},
            "networkProfile": {"networkInterfaces": [{"id": "/x", "properties": {"primary": True}}]},
            "instanceView": {"statuses": [{"code": "ProvisioningState/failed/AllocationFailed"}, {"code": "PowerState/running"}]},
        },
    }
    capabilities = [{"name": "vCPUs", "value": "2"}, {"name": "MemoryGB", "value": "3.5"}]
    size = {"resourceType": "virtualMachines", "name": "x", "locations": ["westeurope"], "capabilities": capabilities}
    addresses = [{"properties": {"primary": True, "privateIPAddress": "10.0.0.4", "publicIPAddress": {"id": "/x"}}}]
    image = {"provisioningState": "Succeeded", "publishingProfile": {"targetRegions": [{"name": "West Europe"}]}}
    put(
        "azure_answer",
        json.dumps(machine),
        json.dumps({"value": [{"name": "c-0", "tags": {}, "managedBy": "/x"}], "nextLink": "https://x/"}),
        json.dumps({"value": [size]}),
        json.dumps({"value": [{"name": {"value": "cores"}, "currentValue": 1, "limit": 20}]}),
        json.dumps({"properties": {"ipConfigurations": addresses}}),
        json.dumps({"properties": image}),
        json.dumps({"status": "Failed", "error": {"code": "x", "details": [{"code": "QuotaExceeded", "message": "m"}]}}),
        "Debian:debian-12:12-gen2:0.20251006.2257",
    )
    record = lambda kind, at, payload: struct.pack(">BQI", kind, at, len(payload)) + payload  # noqa: E731
    output = record(1, 7, b"out\n") + record(2, 8, b"err\n") + record(3, 0, struct.pack(">Q", 9))
    put(
        "host_output",
        b"\x05" + output + record(4, 9, b"\x00" + struct.pack(">i", 3)),
        b"\xff" + output + record(5, 0, b""),
        b"\x01" + record(6, 0, b""),
        b"\x09coalition-logs --follow --since 1700000000000",
    )
    v4 = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 17, 0, bytes([192, 0, 0, 2]), bytes([9, 9, 9, 9]))
    syn = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, bytes([192, 0, 0, 2]), bytes([9, 9, 9, 9]))
    question = struct.pack(">HHHHHH", 5, 0x100, 1, 0, 0, 0) + b"\x01b\x07example\0" + struct.pack(">HH", 1, 1)
    answer = struct.pack(">HHHHHH", 7, 0x8180, 1, 1, 0, 0) + question[12:] + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + b"\x09" * 4
    put(
        "host_egress",
        *(b"\0" + rule for rule in (b"public:443", b"*.debian.org:80-81/any", b"[2001:db8::/32]:443/udp", b"10.0.7.0/24:5432")),
        b"\x01" + v4 + struct.pack(">HHHH", 4000, 53, 16, 0) + b"question",
        b"\x01" + syn + struct.pack(">HHIIBBHHH", 4000, 80, 1, 0, 0x50, 2, 65535, 0, 0),
        b"\x02" + bytes([len(question)]) + question + answer,
    )
    put("host_answer", b"\x02" + json.dumps({"version": 1, "grants": []}).encode(), b"\x00" + json.dumps(failure).encode())


def main():
    shutil.rmtree(SEEDS, ignore_errors=True)
    organism(*log())
    for part in (identity, services, shuffle, attest, tickets, order, edges):
        part()
    files = [path for path in SEEDS.rglob("*") if path.is_file()]
    print(f"{len(files)} seeds, {sum(path.stat().st_size for path in files)} bytes in {SEEDS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
