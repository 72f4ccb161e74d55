"""`python -m memlaw` is the command `memlaw`."""

from memlaw.cli import main

main()
