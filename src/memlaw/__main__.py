"""`python -m memlaw` is the command `memlaw`."""

from memlaw.cli.app import main

main()
