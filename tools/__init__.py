"""What surrounds the stages: `python -m tools.NAME --help`."""
