"""What `turbovaed --help` costs: CPU seconds beside a bare interpreter and beside `import torch`, in the same run.

python benchmarks/startup.py
"""

import resource
import subprocess
import sys

COMMANDS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "turbovaed --help": [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['turbovaed', '--help']; from turbovaed_cli.cli import main; main()",
    ],
    "import torch": [sys.executable, "-c", "import torch"],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    # Taking turns, and the least of seven: what else the machine does only ever adds.
    least = {name: float("inf") for name in COMMANDS}
    for _ in range(7):
        for name, command in COMMANDS.items():
            least[name] = min(least[name], cpu_seconds(command))
    for name, seconds in least.items():
        print(f"{name:18} {seconds:.3f} s of CPU, {seconds / least['import torch']:.2f} of `import torch`")


if __name__ == "__main__":
    main()
