"""metrics.csv: one row per epoch, for a spreadsheet."""

import csv
import io
from pathlib import Path
from typing import Any

from fourfold.files import write_text
from fourfold.tracking.tracker import Tracker


class CsvTable(Tracker):
    """A table whose columns are all the metrics seen so far; a metric that an epoch does not have is left empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, row: dict[str, float]) -> None:
        """Replace the whole file by one that ends with this row.

        Rewriting a few kilobytes per epoch lets the header grow, and drops the rows that a resumed run trains again.
        """
        rows: list[dict[str, Any]] = [old for old in self._read() if float(old["epoch"]) < row["epoch"]]
        rows.append(row)
        columns = dict.fromkeys(key for each in rows for key in each)
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, table.getvalue())

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
