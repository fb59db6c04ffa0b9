"""The page of what gpu_first.py measured: a table per part, and nothing that a browser has to fetch.

python tools/gpu_page.py gpu.jsonl        # writes gpu.json and gpu.html next to it, also of a run that was cut short
"""

import html
import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_STYLE = (
    "body{font:14px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #ccc;padding:2px 8px;text-align:right}td:first-child{text-align:left}"
)
_HIDDEN = ("part", "at_s", "where")


def page_of(rows: list[Row]) -> str:
    """Return the page: for each part the rows of each set of columns in a table, then what was skipped or failed."""
    title = next((row["environment"].get("cuda") for row in rows if "environment" in row), None) or "no GPU"
    lines = [f"<!doctype html><meta charset=utf-8><title>turbovaed on {_text(title)}</title><style>{_STYLE}</style>"]
    lines.append(f"<h1>turbovaed on {_text(title)}</h1>")
    for part in dict.fromkeys(row["part"] for row in rows):
        lines.append(f"<h2>{_text(part)}</h2>")
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            if row["part"] == part:
                groups.setdefault(tuple(key for key in row if key not in _HIDDEN), []).append(row)
        for columns, group in groups.items():
            head = "".join(f"<th>{_text(column)}</th>" for column in columns)
            body = "".join(
                f"<tr>{''.join(f'<td>{_text(row[column])}</td>' for column in columns)}</tr>" for row in group
            )  # fmt: skip
            lines.append(f"<table><tr>{head}</tr>{body}</table>")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, dict | list):
        value = json.dumps(value)
    return html.escape(str(value))


def write(lines: Path) -> None:
    """Write gpu.json and gpu.html next to a file of JSON lines."""
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    lines.with_suffix(".json").write_text(json.dumps({"schema_version": 1, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines.with_suffix(".html").write_text(page_of(rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
