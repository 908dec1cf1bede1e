"""Files appear whole or not at all: they are written under a temporary name beside their own, and renamed at the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(file: str | os.PathLike[str]) -> Iterator[Path]:
    """The temporary name to write under; `file` is replaced where the block ends well, and untouched where it raises."""
    file = Path(file)
    part = file.with_name(f".{uuid4().hex}.tmp")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
