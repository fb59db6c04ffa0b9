"""Write the generated parts of comfyui/, or exit with 1 if they are not current.

    python tools/comfyui_pack.py [--write]

They are the modeling file, made from turbovaed_cli/models, and the version in pyproject.toml.
"""

import argparse
import re
import sys
from pathlib import Path

from turbovaed_cli.models.self_contained import MODELING_FILE, modeling_source
from turbovaed_cli.version import __version__

PACK = Path(__file__).resolve().parents[1] / "comfyui"


def generated() -> dict[Path, str]:
    """Return the text of each generated file."""
    project = PACK / "pyproject.toml"
    versioned = re.sub(r'(?m)^version = ".*"$', f'version = "{__version__}"', project.read_text(encoding="utf-8"))
    return {PACK / MODELING_FILE: modeling_source(with_diffusers=False), project: versioned}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files")
    write = parser.parse_args().write
    stale = False
    for path, text in generated().items():
        if write:
            path.write_text(text, encoding="utf-8", newline="\n")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale = True
            print(f"{path} is not current: python tools/comfyui_pack.py --write")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
