"""What was measured: named series of values, their medians, the table and the JSON file."""

import json
import statistics
import sys


class Report:
    """Collects series as they are measured; each is printed at once."""

    def __init__(self):
        self.rows = []

    def add(self, subject, what, unit, values):
        """`values` of one quantity, in `unit`; `subject` is the software measured."""
        values = [v for v in values if v is not None]
        if not values:
            return
        row = {
            "subject": subject,
            "what": what,
            "unit": unit,
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "runs": len(values),
            "values": [round(v, 3) for v in values],
        }
        self.rows.append(row)
        print(self._line(row), flush=True)

    def note(self, subject, what, why):
        """A step that could not be measured, and why."""
        self.rows.append({"subject": subject, "what": what, "skipped": why})
        print(f"{subject:8} {what:58} {'-':>10}  {why}", flush=True)

    @staticmethod
    def header():
        print(f"{'':8} {'':58} {'median':>10} {'min':>10} {'max':>10}  unit, runs", flush=True)

    @staticmethod
    def _line(row):
        figures = " ".join(f"{row[key]:>10g}" for key in ("median", "min", "max"))
        return f"{row['subject']:8} {row['what']:58} {figures}  {row['unit']}, {row['runs']}"

    def write(self, path, host):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"host": host, "rows": self.rows}, file, indent=1)
            file.write("\n")
        print(f"written to {path}", file=sys.stderr)
