"""A rebuild on an air-gapped host against the connected ideal, in pairs on one machine: ``make bench-rebuild``.

The ideal: ``docker compose build && docker compose up -d --wait`` on a host whose BuildKit cache is warm, of the same
engine and store. Ours: ``ansible-playbook rebuild.yml`` on an air-gapped host. Each round edits one source line on both
and measures one after the other; the medians' ratios are printed and written to ``results/bench-rebuild.json``:

``module_ratio``    what the module takes in all, against the ideal
``playbook_ratio``  the whole playbook, against the ideal
``build_ratio``     making the image, against ``docker compose build``
``ansible_seconds`` what Ansible itself takes: the playbook less the module
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.hosts import Host, Hosts, sample
from tests.script import load
from tests.unit.figures import record

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("ROUNDS", "7"))
ENGINE = os.environ.get("ENGINE", "trixie")
STORE = os.environ.get("STORE", "classic")
PROXY = "deployment/docker/docker-compose.proxy.yml"
#: Times the ideal on the host itself, so that SSH does not count.
#: The module's own times in the playbook's output.
TIMINGS = r"timings:((?:\n +\w+: [0-9.]+)+)"
IDEAL = """
import json, subprocess, sys, time
files = sys.argv[1:]
def run(*args):
    start = time.monotonic()
    subprocess.run(["docker", "compose", *files, *args], check=True, capture_output=True)
    return time.monotonic() - start
print(json.dumps({"build": run("build"), "up": run("up", "-d", "--wait")}))
"""


def _edit(host: Host, version: str) -> None:
    host.ssh(f"sed -i -E 's/^VERSION = .*/VERSION = \"{version}\"/' {sample.TARGET}/backend/main.py")


def _warm(host: Host) -> list[str]:
    """Builds the sample for real on the connected host, so that its cache is warm. :returns: compose's options."""
    builder = load("connected-build")
    bases = builder.choose_bases(builder.Docker(), "auto")
    with tempfile.TemporaryDirectory(prefix="bench-rebuild-") as folder:
        archive = Path(folder) / "bases.tar"
        subprocess.run(["docker", "save", "-o", str(archive), *bases.values()], check=True)
        host.load(archive)
    host.put(sample.SOURCE, sample.TARGET, delete=True)
    host.ssh("mkdir -p /root/secrets")
    with builder.secrets() as options:
        for option in options:
            found = re.fullmatch(r"--secret=id=([^,]+),src=(.+)", option)
            assert found is not None, option
            text = Path(found[2]).read_text(encoding="utf-8", errors="replace")
            host.ssh(f"cat > /root/secrets/{found[1]}", input=text)
    settings = [
        "BUILD_CA=/root/secrets/ca", "BUILD_PIP_CONF=/root/secrets/pip.conf", "BUILD_NPMRC=/root/secrets/npmrc",
        *(f"{key.upper()}_IMAGE={value}" for key, value in bases.items()),
    ]  # fmt: skip
    host.ssh("cat > /root/bench.env", input="\n".join([*settings, ""]))
    files = [
        "--env-file",
        "/root/bench.env",
        "-f",
        f"{sample.TARGET}/{sample.COMPOSE}",
        "-f",
        f"{sample.TARGET}/{PROXY}",
    ]
    host.ssh(["docker", "compose", *files, "up", "-d", "--build", "--wait"], timeout=900)
    return files


def _ideal(host: Host, files: list[str]) -> dict[str, float]:
    return dict(json.loads(host.ssh(["python3", "-c", IDEAL, *files], timeout=300).stdout))


def _ours(hosts: Hosts) -> dict[str, float]:
    start = time.monotonic()
    done = sample.playbook(hosts, "-v")
    wall = time.monotonic() - start
    if done.returncode != 0:
        raise SystemExit(f"the playbook failed:\n{done.stdout}")
    timings = [dict(re.findall(r"(\w+): ([0-9.]+)", text)) for text in re.findall(TIMINGS, done.stdout)]
    total, make = (max(float(each[key]) for each in timings if key in each) for key in ("total", "make"))
    return {"playbook": wall, "module": total, "making": make}


def main() -> None:
    """Run the rounds and print the ratios."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / "connected-build")], check=True, cwd=ROOT)
    with (
        Hosts.up("bench-ideal", count=1, engine=ENGINE, store=STORE, connected=True) as connected,
        Hosts.up("bench-ours", count=1, engine=ENGINE, store=STORE) as isolated,
    ):
        files = _warm(connected[0])
        sample.install(isolated)
        version = connected[0].ssh("docker version --format '{{.Server.Version}}'").stdout.strip()
        ideal, ours = [], []
        for number in range(ROUNDS + 1):
            for host in (connected[0], isolated[0]):
                _edit(host, f"1.0.{number + 1}")
            first, second = _ideal(connected[0], files), _ours(isolated)
            if number:  # the first round fills caches on both sides
                ideal.append(first)
                ours.append(second)
                print(json.dumps({"ideal": first, "ours": second}), flush=True)

    def median(rows: list[dict[str, float]], *keys: str) -> float:
        return statistics.median(sum(row[key] for key in keys) for row in rows)

    whole = median(ideal, "build", "up")
    figures = {
        "module_ratio": round(median(ours, "module") / whole, 3),
        "playbook_ratio": round(median(ours, "playbook") / whole, 3),
        "build_ratio": round(median(ours, "making") / median(ideal, "build"), 3),
        "ansible_seconds": round(statistics.median(row["playbook"] - row["module"] for row in ours), 3),
    }
    print(json.dumps(figures))
    record("bench-rebuild", **figures, rounds=ROUNDS, machine=os.uname().machine, engine=version, store=STORE)


if __name__ == "__main__":
    main()
