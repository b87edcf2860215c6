"""``python -m tests.hosts up|down|list|inventory|image``: the test hosts from the command line."""

from __future__ import annotations

import argparse
import sys
import time

from .fleet import HostError, Hosts, clean, down, run_names
from .images import ENGINES, STORES, HostImageError, ensure_image


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = _parser().parse_args(argv)
    try:
        _COMMANDS[options.command](options)
    except (HostError, HostImageError, ValueError) as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring hosts up and write their inventory")
    up.add_argument("--name", default="hosts")
    up.add_argument("--count", type=int, default=2)
    up.add_argument("--engine", choices=ENGINES, default="trixie")
    up.add_argument("--store", choices=STORES, default="classic")
    up.add_argument("--connected", action="store_true", help="also on the ordinary bridge network")
    up.add_argument("--fresh", action="store_true", help="make them anew even if they are as asked for")
    ended = commands.add_parser("down", help="remove hosts and all that belongs to them")
    ended.add_argument("--name", default="hosts")
    ended.add_argument("--all", action="store_true", help="of every name")
    commands.add_parser("list", help="the hosts that are up")
    commands.add_parser("clean", help="remove every host of every name, and the host images")
    inventory = commands.add_parser("inventory", help="the path of an inventory")
    inventory.add_argument("--name", default="hosts")
    image = commands.add_parser("image", help="make the host image of an engine")
    image.add_argument("--engine", choices=ENGINES, default="trixie")
    return parser


def _up(options: argparse.Namespace) -> None:
    start = time.monotonic()
    run = Hosts.up(
        options.name,
        count=options.count,
        engine=options.engine,
        store=options.store,
        connected=options.connected,
        fresh=options.fresh,
    )
    for host in run:
        print(f"{host.name}  {host.address}  {host.engine}  {host.store}")
    print(f"ready in {time.monotonic() - start:.1f} s, inventory: {run.inventory}")


def _down(options: argparse.Namespace) -> None:
    for name in run_names() if options.all else [options.name]:
        down(name)


def _clean(_options: argparse.Namespace) -> None:
    clean()


def _list(_options: argparse.Namespace) -> None:
    for name in run_names():
        for host in Hosts.get(name):
            print(f"{name}  {host.name}  {host.address}  {host.engine}  {host.store}  {host.container.status}")


def _inventory(options: argparse.Namespace) -> None:
    print(Hosts.get(options.name).inventory)


def _image(options: argparse.Namespace) -> None:
    print(ensure_image(options.engine, lambda text: print(text, file=sys.stderr)))


_COMMANDS = {"up": _up, "down": _down, "clean": _clean, "list": _list, "inventory": _inventory, "image": _image}

if __name__ == "__main__":
    sys.exit(main())
