"""The verb `plan`. Light: torch is imported when it runs."""

import argparse

from fewstep.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", required=True, metavar="RECIPE", help="the recipe, as for fit")
    parser.add_argument("--devices", type=int, default=1, help="how many it will run on (default 1)")
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp", help="how they share (default ddp)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("override", nargs="*", metavar="KEY=VALUE", help="of the recipe: model.init_args.iterations=5")


def _run(args: argparse.Namespace) -> int:
    import json
    import os
    from dataclasses import asdict
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which plans use, tells of its start and end
    from fewstep.train.fit import check_recipe
    from fewstep.train.plan import plan

    check_recipe(Path(args.config))
    found = plan(Path(args.config), [f"--{v}" for v in args.override], args.devices, args.strategy)
    if args.json:
        print(json.dumps(asdict(found) | {"total_bytes": found.total_bytes}, indent=2))
        return 0
    table = Table()
    table.add_column("per device")
    table.add_column("MB", justify="right")
    for name, value in {**asdict(found), "total_bytes": found.total_bytes}.items():
        if name.endswith("_bytes"):
            table.add_row(name.removesuffix("_bytes"), f"{value / 2**20:.1f}")
    console = Console()
    console.print(f"{args.config}: batch {found.batch} on each of {args.devices} devices ({args.strategy})")
    console.print(f"{found.trained:,} parameters trained, {found.frozen:,} frozen")
    console.print(table)
    return 0


PLAN = Command("estimate the memory of a training before it runs", _arguments, _run)
