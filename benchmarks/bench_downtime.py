"""Requests that a rebuild costs, on one air-gapped host, in turn: ``make bench-downtime``.

A client on the host asks every 10 ms while one source file changes and is brought live by

``guide``    ``docker compose down``, ``docker compose build``, ``docker compose up -d``
``up``       ``docker compose up -d --build`` with a warm cache
``recreate`` ours, the service holding a fixed port of the host
``rolling``  ours, the service behind a proxy of the same network that looks its name up for each connection

and once more by a file with which the service starts and then reports unhealthy; with the guide and with ``up`` the
operator sees that at once, puts the old file back and does the same again. Medians of the rounds are printed and
written to ``results/bench-downtime.json``:

``recreate_ratio_guide``, ``recreate_ratio_up``   the longest gap of ours against theirs, median of the rounds' ratios
``guide_failed_requests``, ``up_build_failed_requests``, ``recreate_failed_requests``, ``rolling_failed_requests``
``bad_image_failed_requests``                     ours; with ``guide_`` and ``up_build_`` before it: theirs
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts
from tests.unit.figures import record

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("ROUNDS", "5"))
ENGINE = os.environ.get("ENGINE", "trixie")
STORE = os.environ.get("STORE", "classic")
FOLDER = "/srv/downtime"
BASE = "127.0.0.1:9/downtime/base:1"
PORTS = {"guide": 18101, "up": 18102, "recreate": 18103, "rolling": 18104}
#: Serves until SIGTERM, then finishes what it has begun. ``{0}`` is the version; a bad one is refused by its own check.
SERVER = """
import asyncio, signal
VERSION = "{0}"
async def answer(reader, writer):
    await reader.readline()
    status = "500 Bad" if VERSION.startswith("bad") else "200 OK"
    writer.write(f"HTTP/1.0 {{status}}\\r\\n\\r\\n{{VERSION}}\\n".encode())
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", 8080, backlog=512)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    server.close()
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
CHECK = "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/health', timeout=2)"
#: A proxy that looks the name up for each connection and takes the first address.
PROXY = """
import asyncio
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
async def serve(reader, writer):
    try:
        found = await asyncio.get_running_loop().getaddrinfo("web", 8080, type=1)
        there, back = await asyncio.open_connection(*found[0][4][:2])
        forth = asyncio.create_task(pump(reader, back))
        await pump(there, writer)
        forth.cancel()
        back.close()
    except OSError:
        pass
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 8080, backlog=512)
    await server.serve_forever()
asyncio.run(main())
"""
DOCKERFILE = f'FROM {BASE}\nWORKDIR /app\nCOPY . .\nCMD ["python3", "/app/serve.py"]\n'
#: The base image: this host's Python.
MAKE_BASE = f"""
set -e
cd /
libs=$(ldd /usr/bin/python3 /usr/lib/python3*/lib-dynload/*.so |
    awk '/=> \\// {{print $3}} /^\\t\\// {{print $1}}' | sort -u)
mkdir -p {FOLDER}/root/usr/bin {FOLDER}/root/tmp
cp -L /usr/bin/python3 {FOLDER}/root/usr/bin/python3
cp --parents -a /usr/lib/python3*/ {FOLDER}/root
for lib in $libs; do cp --parents -L $lib {FOLDER}/root; done
cp {FOLDER}/busybox {FOLDER}/root/usr/bin/sh
tar -C {FOLDER}/root -c . | docker import - {BASE} >/dev/null
"""


def compose(kind: str) -> str:
    """:returns: the compose file of one of the sides."""
    check = json.dumps({"test": ["CMD", "python3", "-c", CHECK], "interval": "1s", "retries": 2, "timeout": "3s"})
    web = f"{{build: ./web, init: true, healthcheck: {check}"
    port = f'["127.0.0.1:{PORTS[kind]}:8080"]'
    if kind != "rolling":
        return f"name: dt-{kind}\nservices:\n  web: {web}, ports: {port}}}\n"
    return f"name: dt-{kind}\nservices:\n  web: {web}}}\n  front: {{build: ./front, init: true, ports: {port}}}\n"


def install(host: Host) -> None:
    """Brings up the four projects, built once so that the cache is warm."""
    host.put(ROOT / "module_utils", f"{FOLDER}/module_utils")
    host.put(ROOT / "tests/engine/transaction_driver.py", f"{FOLDER}/tests/engine/transaction_driver.py")
    host.put(ROOT / "benchmarks/downtime_host.py", f"{FOLDER}/downtime_host.py")
    host.put(busybox(), f"{FOLDER}/busybox")
    host.ssh(MAKE_BASE)
    for kind in PORTS:
        folder = f"{FOLDER}/{kind}"
        host.ssh(f"mkdir -p {folder}/web {folder}/front")
        files = {
            "compose.yaml": compose(kind),
            "web/Dockerfile": DOCKERFILE,
            "web/serve.py": SERVER.format("v0"),
            "front/Dockerfile": DOCKERFILE,
            "front/serve.py": PROXY,
        }
        for name, text in files.items():
            host.ssh(f"cat > {folder}/{name}", input=text)
        host.ssh(f"cd {folder} && docker compose up -d --build --wait", timeout=300)


def edit(kind: str, version: str) -> dict[str, Any]:
    return {"write": f"{FOLDER}/{kind}/web/serve.py", "text": SERVER.format(version)}


def live(kind: str) -> list[dict[str, Any]]:
    """:returns: the steps by which a side brings an edit live."""
    folder = f"{FOLDER}/{kind}"
    if kind == "guide":
        return [{"run": ["docker", "compose", *words.split()], "cwd": folder} for words in ("down", "build", "up -d")]
    if kind == "up":
        return [{"run": ["docker", "compose", "up", "-d", "--build"], "cwd": folder}]
    request = {
        "project_src": folder,
        "state_dir": f"{FOLDER}/state",
        "gate_timeout": 30,
        "rolling_services": ["web"] if kind == "rolling" else [],
    }
    text = json.dumps({"op": "execute", "request": request})
    return [{"run": ["python3", f"{FOLDER}/tests/engine/transaction_driver.py"], "input": text, "cwd": folder}]


def bad(kind: str, text: str, version: str) -> list[dict[str, Any]]:
    """:returns: the steps of a bad edit, and of the way back where it is not taken by itself."""
    steps = [edit(kind, f"bad {text}"), *live(kind)]
    if kind in ("guide", "up"):
        return [*steps, {"until_unhealthy": f"dt-{kind}-web-1"}, edit(kind, version), *live(kind)]
    return [*steps, edit(kind, version)]


def measure(host: Host, kind: str, steps: list[dict[str, Any]]) -> dict[str, float]:
    request = json.dumps({"port": PORTS[kind], "steps": steps})
    found: dict[str, float] = json.loads(
        host.ssh(["python3", f"{FOLDER}/downtime_host.py"], input=request, timeout=300).stdout
    )
    return found


Row = dict[str, dict[str, float]]


def rounds(host: Host, name: str, steps: Callable[[str, str], list[dict[str, Any]]]) -> list[Row]:
    """Each side in turn, in each round; the first fills caches and does not count."""
    found = []
    for number in range(ROUNDS + 1):
        row = {kind: measure(host, kind, steps(kind, f"{name} {number}")) for kind in PORTS}
        print(json.dumps({name: row}), flush=True)
        found.append(row)
    return found[1:]


def main() -> None:
    """Run the rounds and print the figures."""
    with Hosts.up("bench-downtime", count=1, engine=ENGINE, store=STORE) as hosts:
        host = hosts[0]
        install(host)
        version = host.ssh("docker version --format '{{.Server.Version}}'").stdout.strip()
        good = rounds(host, "good", lambda kind, text: [edit(kind, text), *live(kind)])
        worse = rounds(host, "worse", lambda kind, text: bad(kind, text, f"good {ROUNDS}"))

    def median(rows: list[Row], kind: str, key: str) -> float:
        return statistics.median(row[kind][key] for row in rows)

    def ratio(kind: str) -> float:
        return round(statistics.median(row["recreate"]["gap"] / row[kind]["gap"] for row in good), 3)

    figures = {
        "recreate_ratio_guide": ratio("guide"),
        "recreate_ratio_up": ratio("up"),
        "guide_failed_requests": median(good, "guide", "failed"),
        "up_build_failed_requests": median(good, "up", "failed"),
        "recreate_failed_requests": median(good, "recreate", "failed"),
        "rolling_failed_requests": median(good, "rolling", "failed"),
        "bad_image_failed_requests": median(worse, "recreate", "failed"),
        "guide_bad_image_failed_requests": median(worse, "guide", "failed"),
        "up_build_bad_image_failed_requests": median(worse, "up", "failed"),
    }
    print(json.dumps(figures))
    record("bench-downtime", **figures, rounds=ROUNDS, machine=os.uname().machine, engine=version, store=STORE)


if __name__ == "__main__":
    main()
