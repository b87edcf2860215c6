"""One row of the matrix, run and judged; and the table."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, field
from typing import Any

from tests.unit.figures import RESULTS, record

from .matrix import Fault, Seen
from .site import Site


@dataclass
class Row:
    """What was found of one fault; it is survived when nothing is ``wrong``."""

    name: str
    seen: str = ""
    serves: str = ""
    outage: float = 0.0
    volume: str = "?"
    rerun: str = ""
    audit: str = ""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Report:
    """The rows of one combination."""

    engine: str
    store: str
    rows: list[Row] = field(default_factory=list)

    @property
    def survived(self) -> int:
        return len([row for row in self.rows if not row.wrong])

    def show(self) -> None:
        """Print the table."""
        head = ("fault", "seen", "serves", "outage", "volume", "rerun", "audit", "survived")
        lines = [head]
        for row in self.rows:
            survived = "no: " + row.wrong[0] if row.wrong else "yes"
            outage = f"{row.outage:.1f} s"
            cells = (row.name, row.seen, row.serves, outage, row.volume, row.rerun, row.audit, survived)
            lines.append(tuple(_cut(cell) for cell in cells))  # type: ignore[arg-type]
        widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
        print(f"\n{self.engine} {self.store}: {self.survived} of {len(self.rows)} faults survived")
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def record(self) -> None:
        """Into results/faults.json, beside the other combinations; ``survived`` and ``total`` are of all there."""
        name = f"{self.engine}-{self.store}"
        path = RESULTS / "faults.json"
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        found = {key: value for key, value in known.items() if " of " in str(value)}
        found[name] = f"{self.survived} of {len(self.rows)}"
        counts = [text.split(" of ") for text in found.values()]
        record(
            "faults",
            **found,
            survived=sum(int(count[0]) for count in counts),
            total=sum(int(count[1]) for count in counts),
            engine=", ".join(sorted({key.split("-")[0] for key in found})),
            store=", ".join(sorted({key.split("-")[1] for key in found})),
            machine=platform.machine(),
        )


def _cut(text: str, width: int = 46) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def judge(site: Site, fault: Fault) -> Row:
    """Run one fault and hold what is left against what must be."""
    row, began = Row(fault.name), time.monotonic()
    try:
        _judge(site, fault, row, _settle(site, fault.ground))
    except Exception as error:  # noqa: BLE001 (a row that cannot be run is not survived, and the next one is)
        row.wrong.append(f"{type(error).__name__}: {error}")
    if row.wrong:
        site.broken = True
    row.seconds = time.monotonic() - began
    print(f"{row.name} ({row.seconds:.0f} s): {'; '.join(row.wrong) or 'survived'}", flush=True)
    return row


def _settle(site: Site, ground: str) -> dict[str, Any]:
    """The host as the row wants it, with the project serving and nothing to do. :returns: what is there."""
    site.to_ground(ground)
    if site.broken:
        site.restart_engine()
        site.start()
        site.broken = False
    look = site.call("look")
    assert look["served"] == site.version, f"the row before left {look}"
    assert not look["strange"], look["strange"]
    return look


def _judge(site: Site, fault: Fault, row: Row, start: dict[str, Any]) -> None:
    old, offset = site.version, start["audit"]
    site.call("watch")
    seen = fault.act(site)
    row.seen = seen.text
    told = "restart the engine, then run again" in json.dumps(seen.result)
    if told:  # the engine's own defect: no client of it can free the port
        site.restart_engine()
        row.seen = f"the engine held the port, and was restarted as told; {seen.text}"
    dark = fault.dark or told
    left = site.call("look", patience=0 if dark else 20)
    row.serves = left["served"] or "nothing"
    may_serve = [f"v{number:03d}" for number in range(int(old[1:]), site.number + 1)]
    if left["served"] not in may_serve and not (dark and not left["served"]):
        row.wrong.append(f"after the fault {row.serves} is served, and not {old} or {site.version}")
    if seen.ended:
        _nothing_left(row, "after the faulty run", left)
    expected = _check_mode(site, row, "as the fault left it")
    if fault.mend is not None:
        fault.mend(site)
        expected = _check_mode(site, row, "before the rerun")
    _rerun(site, row, expected)
    final = site.call("look")
    row.serves += f" -> {final['served'] or 'nothing'}"
    if final["served"] != site.version:
        row.wrong.append(f"after the rerun {final['served']!r} is served, and not {site.version}")
    _nothing_left(row, "after the rerun", final)
    _containers(row, start, final)
    row.volume = "intact" if final["volume"] == start["volume"] and final["volume"][1] else "not intact"
    if row.volume != "intact":
        row.wrong.append(f"the volume was {start['volume']} and is {final['volume']}")
    again = site.call("check")
    if again["answer"].get("changed") or again["answer"].get("failed"):
        row.wrong.append(f"it does not converge: {again['answer']['msg']}")
    _outage(site, fault, row)
    _audit(site, fault, row, offset)


def _nothing_left(row: Row, when: str, look: dict[str, Any]) -> None:
    if look["strange"]:
        row.wrong.append(f"{when} there is {'; '.join(look['strange'])}")


def _check_mode(site: Site, row: Row, when: str) -> dict[str, Any]:
    """Check mode touches nothing. :returns: its answer."""
    check = site.call("check")
    if check["touched"]:
        row.wrong.append(f"check mode {when} touched {check['touched'][:6]}")
    answer: dict[str, Any] = check["answer"]
    return answer


def _rerun(site: Site, row: Row, expected: dict[str, Any]) -> None:
    rerun = site.call("run")
    state = (rerun.get("release") or {}).get("state") or ("unchanged" if not rerun.get("failed") else "error")
    row.rerun = state
    if rerun.get("failed"):
        row.wrong.append(f"the rerun failed: {rerun['msg']}")
    elif bool(rerun["changed"]) != bool(expected["changed"]):
        row.wrong.append(
            f"check mode said changed={expected['changed']} ({expected['msg']}), the rerun {rerun['changed']}"
        )


def _containers(row: Row, start: dict[str, Any], final: dict[str, Any]) -> None:
    services = final["services"]
    if sorted(services) != sorted(start["services"]) or {s["state"] for s in services.values()} != {"running"}:
        row.wrong.append(f"the containers are {services}")
    elif services["side"]["id"] != start["services"]["side"]["id"]:
        row.wrong.append("a service that did not change was made anew")


def _outage(site: Site, fault: Fault, row: Row) -> None:
    row.outage = site.call("watched")["outage"]
    if row.outage > fault.outage:
        row.wrong.append(f"nothing was served for {row.outage} s")


def _audit(site: Site, fault: Fault, row: Row, offset: int) -> None:
    lines = site.call("audit", offset=offset)["lines"]
    missing = [text for text in fault.audit if not any(part in line for part in text.split("|") for line in lines)]
    events = [json.loads(line)["event"] for line in lines]
    row.audit = ", ".join(dict.fromkeys(events))
    if missing:
        row.wrong.append(f"the audit log does not hold {missing}: {lines}")
    if not events:
        row.wrong.append("the audit log says nothing")


__all__ = ["Report", "Row", "Seen", "judge"]
