"""The `turbovaed` executable, and `python -m turbovaed_cli`, as launchers start it."""

from turbovaed_cli.cli import main
from turbovaed_cli.machine.imports import import_less


def run() -> None:
    """Run the command of this process."""
    import_less()
    main()


if __name__ == "__main__":
    run()
