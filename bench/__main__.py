"""The benchmark suite: `python -m bench [--set short|full] [--only PART] [--json FILE]`; make bench, make bench-full.

Each part of the suite is a module with `parts(full)`, which yields tables, and runs in a process of its own: one that
fails does not end the others, and each table's command makes it again. The short set takes 15 minutes on two cores.
With `--json` the tables are added to the file, so that a run can be continued part by part.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.measure import header, show, writable_report
from mlxkv.cli.bench.report_file import read_report, write_report

PARTS = (
    "speed",
    "overhead",
    "quantized",
    "recompute",
    "full_window",
    "streaming",
    "first_token",
    "saving",
    "hybrids",
    "hybrid_speed",
    "batches",
    "perplexity",
    "drafting",
    "drafting_equality",
)


def run_part(name: str, full: bool, json: Path | None) -> None:
    """Measure one part of the suite in this process; each of its tables is printed and written when it is finished."""
    begun = time.perf_counter()
    for part in importlib.import_module(f"bench.{name}").parts(full):
        now = time.perf_counter()
        part, begun = replace(part, seconds=round(now - begun, 1)), now
        show(part)
        if json is not None:
            write_report(json, [part])


def run_all(size: str, json: Path) -> int:
    """Measure all parts, each in a process of its own; the number of those that failed."""
    failed = []
    for name in PARTS:
        command = [sys.executable, "-m", "bench", "--set", size, "--only", name, "--json", str(json)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
            print(f"{name} failed; `python -m bench --set {size} --only {name}` runs it alone.\n", flush=True)
    return len(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("short", "full"), default="short", dest="size")
    parser.add_argument("--only", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--json", type=writable_report, metavar="FILE", help="add the tables to this file")
    args = parser.parse_args()
    try:
        measure(args)
    except KeyboardInterrupt:
        kept = f"; the tables that are finished are in {args.json}" if args.json and args.json.exists() else ""
        print(f"bench: stopped{kept}", file=sys.stderr)
        sys.exit(130)


def measure(args: argparse.Namespace) -> None:
    """Measure one part, or all and end the process: 1 if a part failed."""
    if args.only:
        run_part(args.only, args.size == "full", args.json)
        return
    header(f"bench, the {args.size} set")
    sys.stdout.flush()  # before the processes of the parts print
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        json = args.json or Path(folder) / "bench.json"
        before = read_report(json) if json.exists() else []
        failed = run_all(args.size, json)
        found = [part for part in (read_report(json) if json.exists() else []) if part not in before]
    missed = [f"{part.title}: {row.what}" for part in found for row in part.missed]
    print(f"{len(found)} tables in {(time.perf_counter() - begun) / 60:.1f} minutes; {len(missed)} goals missed")
    print(*(f"* {what}" for what in missed), sep="\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
