"""`python -m turbovaed_cli`, as launchers start it."""

from turbovaed_cli.cli import main

main()
