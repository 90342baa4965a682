#!/usr/bin/env python3
"""Measures a development coalition as its users see it, over real processes on this machine.

    cargo build --release && python3 tools/bench.py [--requests 30] [--at-once 50]

Prints Markdown rows for docs/BENCHMARKS.md. Needs nothing beside Python 3 and the built `coalition`.
"""
import argparse, concurrent.futures, json, os, pathlib, shutil, signal, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("COALITION_BIN", ROOT / "target/release/coalition"))


def lines(process):
    for line in process.stdout:
        line = line.strip()
        if line.startswith("{"):
            yield json.loads(line)


def up(home):
    started = time.monotonic()
    # It sells more than the machine may have: fifty small grants at once are asked for below.
    process = subprocess.Popen([BINARY, "--home", home, "up", "--json", "--cpu", "16", "--ram", "8GiB"], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    for step in lines(process):
        if "roles" in step:
            return process, time.monotonic() - started, step["roles"]
    sys.exit("coalition up ended before it was ready")


def request(home, image):
    began = time.monotonic()
    done = subprocess.run([BINARY, "--home", home, "request", "--json", "--image", image, "--cpu", "0.1", "--ram",
                           "64MiB", "--for", "2m", "--max-rate", "0.5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)
    if done.returncode != 0:
        sys.exit(f"a request failed: {done.stdout}{done.stderr}")
    steps = {}
    for line in done.stdout.splitlines():
        step = json.loads(line)
        if "step" in step:
            steps[step["step"]] = step
    steps["whole_ms"] = (time.monotonic() - began) * 1000
    return steps


def end(home, grant):
    done = subprocess.run([BINARY, "--home", home, "end", grant], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"a grant did not end: {done.stdout}")


def at_once(home, image, count):
    """Many requests started in one instant, each a process of its own; then every grant ended. How long each and all took."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        began = time.monotonic()
        taken = list(pool.map(lambda _: request(home, image), range(count)))
        ready = time.monotonic() - began
        list(pool.map(lambda one: end(home, one["receipt"]["grant"]), taken))
    return taken, ready, time.monotonic() - began - ready


def pids(roles):
    return {name: role["pid"] for name, role in roles.items() if role.get("pid")}


def rss_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(roles, seconds):
    before = {name: cpu_s(pid) for name, pid in pids(roles).items()}
    time.sleep(seconds)
    return {name: ((cpu_s(pid) - before[name]) / seconds * 100, rss_mib(pid)) for name, pid in pids(roles).items()}


def row(name, values, unit="ms"):
    values = sorted(values)
    p99 = values[min(len(values) - 1, round(0.99 * (len(values) - 1)))]
    print(f"| {name} | {statistics.median(values):.0f} {unit} | {p99:.0f} {unit} | {len(values)} |")


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--requests", type=int, default=30)
    options.add_argument("--at-once", type=int, default=50, help="requests made at once; 0 for none")
    options.add_argument("--idle", type=int, default=20)
    options = options.parse_args()
    work = tempfile.mkdtemp(prefix="coalition-bench-")
    home, image = f"{work}/home", f"{work}/hello.tar"
    process = None
    try:
        subprocess.run([BINARY, "image", "example", image], check=True, stdout=subprocess.DEVNULL)
        process, cold, roles = up(home)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        began = time.monotonic()
        process, warm, roles = up(home)
        first = request(home, image)
        to_receipt = time.monotonic() - began
        end(home, first["receipt"]["grant"])
        print(f"first start (keys and config made) to ready: {cold:.2f} s; warm start to ready: {warm:.2f} s; "
              f"warm start to first receipt: {to_receipt:.2f} s\n")
        taken = []
        for _ in range(options.requests):
            taken.append(request(home, image))
            end(home, taken[-1]["receipt"]["grant"])
        print("| step | p50 | p99 | runs |\n|---|---|---|---|")
        row("request written to certified grant seen", [t["ordered"]["took_ms"] + t["cleared"]["took_ms"] for t in taken])
        row("grant to receipt (SSH ready)", [t["receipt"]["at_ms"] - t["cleared"]["at_ms"] for t in taken])
        row("joining and sealing", [t["sealed"]["took_ms"] for t in taken])
        row("whole `coalition request`, process start to exit", [t["whole_ms"] for t in taken])
        if options.at_once:
            many, ready, ended = at_once(home, image, options.at_once)
            row(f"{options.at_once} requests at once: grant to receipt", [t["receipt"]["at_ms"] - t["cleared"]["at_ms"] for t in many])
            row(f"{options.at_once} requests at once: whole `coalition request`", [t["whole_ms"] for t in many])
            print(f"\n{options.at_once} requests at once: all ready after {ready:.1f} s, all ended {ended:.1f} s later")
        print("\n| idle process | CPU of a core | RSS |\n|---|---|---|")
        for name, (cpu, rss) in sorted(idle(roles, options.idle).items()):
            print(f"| {name} | {cpu:.1f} % | {rss:.0f} MiB |")
    finally:
        if process and process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        if sys.exc_info()[0] is None:
            shutil.rmtree(work, ignore_errors=True)
        else:
            print(f"kept {work}", file=sys.stderr)


if __name__ == "__main__":
    main()
