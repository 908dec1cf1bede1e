"""The subcommands of `fewstep video`, one module each, light: torch is imported when they run."""
