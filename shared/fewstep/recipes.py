"""The shipped recipes: where they are, listing them, copying one out. Light: no torch."""

import argparse
import difflib
import json
import sys
from pathlib import Path

from fewstep.command import Command, UsageError


def folder() -> Path:
    """The folder of recipes: inside the installed package, or beside the sources of a checkout."""
    here = Path(__file__).parent
    return next(p for p in (here / "_recipes", here.parents[1] / "recipes") if p.is_dir())


def find(name: str) -> Path:
    """The file of a recipe named like `restoration/resshift_small`.

    Raises:
        UsageError: no recipe of that name.
    """
    names = available()
    if name.removesuffix(".yaml") not in names:
        near = difflib.get_close_matches(name.rpartition("/")[2], [n.rpartition("/")[2] for n in names], 3)
        meant = [n for n in names if n.rpartition("/")[2] in near]
        hint = f"did you mean {', '.join(meant)}? " if meant else ""
        raise UsageError(f"no recipe {name!r}; {hint}`fewstep recipes` lists the {len(names)} there are")
    return folder() / f"{name.removesuffix('.yaml')}.yaml"


def available() -> dict[str, str]:
    """Name -> first comment line of every shipped recipe."""
    files = sorted(folder().rglob("*.yaml"))
    return {
        f.relative_to(folder()).with_suffix("").as_posix(): f.read_text().partition("\n")[0].lstrip("# ") for f in files
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print this recipe (or copy it, with --out)")
    parser.add_argument("--out", metavar="FILE", help="copy the recipe to FILE")
    parser.add_argument("--json", action="store_true", help="the list as JSON")


def _run(args: argparse.Namespace) -> int:
    if args.name is None:
        names = available()
        width = max(map(len, names))
        print(
            json.dumps(names, indent=2) if args.json else "\n".join(f"{n:{width}}  {text}" for n, text in names.items())
        )
    elif args.out is None:
        sys.stdout.write(find(args.name).read_text())
    else:
        source, target = find(args.name), Path(args.out)
        if target.exists():
            raise UsageError(f"{target} exists already")
        target.write_text(source.read_text())
    return 0


RECIPES = Command("list the shipped recipes, print one, or copy one out", _arguments, _run)
