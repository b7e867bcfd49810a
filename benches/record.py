"""Where figures go: CSV on standard output and, with --record, a file by machine and date."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import sys
from pathlib import Path

RECORDS = Path(__file__).resolve().parent / "records"


def processor() -> str:
    """Name the processor, short enough for a file name."""
    text = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        text = found.group(1) if found else text
    name = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", "", text)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def machine() -> str:
    """Name the processor and how many of its cores may be used."""
    return f"{processor()}-{len(os.sched_getaffinity(0))}-cores"


def write(bench: str, rows: list[dict[str, object]], *, record: bool) -> None:
    """Print the rows as CSV, and append them to this machine's record of today."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    table = [{"date": date, "machine": machine(), "bench": bench, **row} for row in rows]
    columns = list(dict.fromkeys(name for row in table for name in row))
    targets = [sys.stdout]
    path = RECORDS / f"{machine()}-{date}-{bench}.csv"
    if record:
        RECORDS.mkdir(exist_ok=True)
        targets.append(path.open("w", newline=""))
    for target in targets:
        sheet = csv.DictWriter(target, fieldnames=columns)
        sheet.writeheader()
        sheet.writerows(table)
        target.flush()
    if record:
        targets[-1].close()
        print(f"recorded in {path}", file=sys.stderr)
