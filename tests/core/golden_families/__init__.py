"""What the cases of each golden family mean in terms of the public API; see ../golden_cases.py."""
