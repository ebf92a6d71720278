"""The same run under many objectives; `trainer compare`. Imports nothing, so that --help stays quick."""
