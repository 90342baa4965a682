#!/usr/bin/env python3
"""Times a grant from `runner start` to a command answered over SSH: in namespaces and in a virtual machine, beside `podman run` of
the same root file system. Needs root, OpenSSH, busybox-static and `blake3` from PyPI (`.ci/python-venv`).

    target/venv/bin/python tools/bench_machines.py target/release/coalition-runner target/kernel 5
"""

import io
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import blake3

SSH = "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR".split()


def image(path):
    with tarfile.open(path, "w") as tar:
        def add(name, data=b"", kind=tarfile.REGTYPE, link=""):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.mode, info.linkname = len(data), kind, 0o755, link
            tar.addfile(info, io.BytesIO(data))

        for name in ("bin", "etc", "root", "tmp", "proc", "dev", "sys"):
            add(name, kind=tarfile.DIRTYPE)
        add("bin/busybox", pathlib.Path("/bin/busybox").read_bytes())
        for name in ("sh", "true"):
            add(f"bin/{name}", kind=tarfile.SYMTYPE, link="busybox")
        add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")


def grant(runner, work, number, machine):
    directory = work / f"grant-{number}"
    directory.mkdir()
    data = (work / "image.tar").read_bytes()
    spec = {
        "version": 1, "grant_id": f"{number:016x}", "image": str(work / "image.tar"),
        "image_blake3": blake3.blake3(data).hexdigest(), "image_size_bytes": len(data), "cpu_millicores": 1000,
        "ram_mib": 128, "disk_mib": 64, "pids_max": 40, "valid_to_unix_ms": int(time.time() * 1000) + 600_000,
        "ssh_listen": "127.0.0.1:0", "ssh_host_key": (work / "host").read_text(),
        "ssh_authorized_key": (work / "user.pub").read_text().strip(), "machine": machine,
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    began = time.monotonic()
    answer = json.loads(subprocess.check_output([runner, "runner", "start", "--dir", directory]))
    started = time.monotonic() - began
    command = [*SSH, "-i", work / "user", "-p", str(answer["port"]), "root@127.0.0.1", "true"]
    subprocess.run(command, check=True)
    reached = time.monotonic() - began
    subprocess.check_output([runner, "runner", "clean", "--dir", directory])
    return started, reached, answer["isolation"]["losses"]


def podman(work):
    if not shutil.which("podman"):
        return None
    subprocess.run(["podman", "import", "-q", work / "image.tar", "bench"], check=True, capture_output=True)
    command = ["podman", "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
    for runtime in ([], ["--runtime", "runc"]):
        line = [command[0], *runtime, *command[1:], "bench", "/bin/true"]
        if subprocess.run(line, capture_output=True).returncode == 0:
            return line
    return None


def show(name, seconds):
    print(f"{name:28} median {statistics.median(seconds):6.2f} s, {min(seconds):.2f} to {max(seconds):.2f}")


def main():
    runner, kernel, count = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), int(sys.argv[3])
    machine = {"kernel": str(next((kernel / "boot").glob("vmlinuz-*"))), "modules": str(next((kernel / "lib/modules").iterdir()))}
    with tempfile.TemporaryDirectory(prefix="bench-") as temp:
        work = pathlib.Path(temp)
        work.chmod(0o755)
        image(work / "image.tar")
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name], check=True)
        for kind, spec, first in (("namespaces", None, 1), ("virtual machine", machine, 1000)):
            runs = [grant(runner, work, first + n, spec) for n in range(count)]
            show(f"{kind}: ready", [run[0] for run in runs])
            show(f"{kind}: logged in", [run[1] for run in runs])
            print(f"  weaker: {'; '.join(runs[0][2])}")
        line = podman(work)
        if line is None:
            print("podman does not run here")
            return
        seconds = []
        for _ in range(count):
            began = time.monotonic()
            subprocess.run(line, check=True, capture_output=True)
            seconds.append(time.monotonic() - began)
        show("podman run, no SSH", seconds)


if __name__ == "__main__":
    main()
