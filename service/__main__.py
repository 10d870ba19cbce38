"""`python -m service` is the `rankpress` command."""

from service.cli import main

main()
