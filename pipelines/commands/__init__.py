"""One file per command of `pipelines` that is not in cli.py."""
