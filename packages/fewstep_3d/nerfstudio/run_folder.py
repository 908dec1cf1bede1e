"""What a run of this plugin leaves for the rest of fewstep: an artifact in the run's folder, beside nerfstudio's config.yml.

A config.yml is YAML that builds Python objects, and checkpoints of nerfstudio are pickles: neither is read here.
"""

from pathlib import Path

from fewstep.command import UsageError

ARTIFACT = "fewstep"


def run_artifact(config: str | Path) -> Path:
    """The artifact of the run whose config.yml this is.

    Raises:
        UsageError: no such file, or no artifact beside it.
    """
    config = Path(config)
    if not config.is_file():
        raise UsageError(f"--ns-config {config}: no such file; the config.yml of a run of ns-train is needed")
    folder = config.parent / ARTIFACT
    if not folder.is_dir():
        raise UsageError(
            f"--ns-config {config}: the run has no artifact {folder}: fewstep-triplane writes it at every checkpoint"
        )
    return folder
