"""The process of one target, which `child.in_child` starts; it imports no more than a command does."""

from turbovaed_cli.machine.imports import import_less

if __name__ == "__main__":
    import_less()
    from turbovaed_cli.benchmarking.child import answer_job

    answer_job()
