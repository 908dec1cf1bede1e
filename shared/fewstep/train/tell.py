"""One line about the data or the run, for people: to stderr, from the first process alone."""

import sys

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def tell(line: str) -> None:
    """Lightning's own `rank_zero_info` is silent under `fewstep fit`, which silences Lightning."""
    sys.stderr.write(f"{line}\n")
