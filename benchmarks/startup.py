"""What every command costs before it does anything: CPU seconds beside a bare interpreter and beside `import torch`, in the same run.

python benchmarks/startup.py
"""

import resource
import subprocess
import sys

SUBCOMMANDS = ("models", "cache-latents", "distill", "reconstruct", "eval", "export", "bench", "runs", "env")
_MAIN = "import sys; sys.argv = ['turbovaed', {}]; from turbovaed_cli.cli import main; main()"
COMMANDS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "turbovaed --help": [sys.executable, "-c", _MAIN.format("'--help'")],
    **{f"turbovaed {name} --help": [sys.executable, "-c", _MAIN.format(f"'{name}', '--help'")] for name in SUBCOMMANDS},
    "turbovaed models": [sys.executable, "-c", _MAIN.format("'models'")],
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
        print(f"{name:32} {seconds:.3f} s of CPU, {seconds / least['import torch']:.2f} of `import torch`")


if __name__ == "__main__":
    main()
