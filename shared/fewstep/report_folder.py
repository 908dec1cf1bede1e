"""Report folders appear whole or not at all: they are filled under a temporary name beside their own, and renamed at the end."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.command import UsageError


@contextmanager
def report_folder(out: Path) -> Iterator[Path]:
    """The folder to fill; it replaces an earlier report in `out` where the block ends well, and is gone where it raises.

    Raises:
        UsageError: out exists and is no earlier report (a folder with metrics.json, or an empty one).
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "metrics.json").is_file())):
        raise UsageError(f"{out} exists and is not an earlier demo report: give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work
        if out.exists():
            shutil.rmtree(out)
        work.chmod(0o755)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
