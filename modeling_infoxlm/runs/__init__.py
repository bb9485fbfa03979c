"""A run: flags and recipes, its folder and record, files whole or not at all, exit codes, signals."""
