"""Temporary entry."""
import sys


def main() -> None:
    from fewstep.train.fit import main as fit
    fit(sys.argv[1:])
