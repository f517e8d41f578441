"""`python -m prefstage`: the command, where its script is not on the path."""

from prefstage.cli.main import main

main()
