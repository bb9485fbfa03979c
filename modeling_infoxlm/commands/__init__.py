"""Bodies of the programs, a file each: `run(argv)` does what `infoxlm COMMAND` says."""
