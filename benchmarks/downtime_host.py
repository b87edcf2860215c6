"""Runs on the test host of bench_downtime.py: asks a port every 10 ms while steps are carried out.

One JSON request on standard input, ``{"port", "steps": [...]}``; one JSON answer on standard output: ``failed`` and
``asked`` (requests), ``gap`` (seconds between the starts of two requests that succeeded, the longest) and ``seconds``
(the steps). A step is ``{"run": argv, "cwd", "input", "may_fail"}``, ``{"write": path, "text"}`` or
``{"until_unhealthy": container}``.

Requests do not wait for one another, at most :data:`IN_FLIGHT` are open, and each is given up after :data:`PATIENCE`.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

EVERY = 0.01
PATIENCE = 3.0
IN_FLIGHT = 350


class Client:
    def __init__(self, port):
        self.port = port
        self.log = []
        self.stop = False

    async def one(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in (await reader.read()).split(b"\r\n", 1)[0]
        finally:
            writer.close()

    async def ask(self):
        began, good = time.monotonic(), False
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            good = await asyncio.wait_for(self.one(), PATIENCE)
        self.log.append((began, good))

    async def run(self):
        open_now = set()
        due = time.monotonic()
        while not self.stop:
            if len(open_now) < IN_FLIGHT:
                task = asyncio.create_task(self.ask())
                open_now.add(task)
                task.add_done_callback(open_now.discard)
            due = max(due + EVERY, time.monotonic() - EVERY)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*open_now)


def step(what):
    if "write" in what:
        Path(what["write"]).write_text(what["text"])
    elif "until_unhealthy" in what:
        argv = ["docker", "inspect", "-f", "{{.State.Health.Status}}", what["until_unhealthy"]]
        end = time.monotonic() + 60
        while subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() != "unhealthy":
            if time.monotonic() > end:
                raise SystemExit("it is not unhealthy")
            time.sleep(0.1)
    else:
        done = subprocess.run(
            what["run"], cwd=what.get("cwd"), input=what.get("input"), capture_output=True, text=True, check=False
        )
        if done.returncode and not what.get("may_fail"):
            raise SystemExit(f"{what['run']} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        if '"error"' in done.stdout:
            raise SystemExit(done.stdout[-2000:])


async def main():
    request = json.load(sys.stdin)
    client = Client(request["port"])
    asking = asyncio.create_task(client.run())
    await asyncio.sleep(0.5)
    began = time.monotonic()
    for what in request["steps"]:
        await asyncio.to_thread(step, what)
    seconds = time.monotonic() - began
    await wait_until_served(client)
    client.stop = True
    await asking
    good = sorted(when for when, fine in client.log if fine)
    answer = {
        "asked": len(client.log),
        "failed": sum(not fine for _, fine in client.log),
        "gap": round(max(after - before for before, after in zip(good, good[1:])), 3),
        "seconds": round(seconds, 3),
    }
    print(json.dumps(answer))


async def wait_until_served(client):
    """Half a second in which every request succeeded."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        recent = [fine for when, fine in client.log if when > time.monotonic() - 0.5]
        if recent and all(recent):
            return


if __name__ == "__main__":
    asyncio.run(main())
