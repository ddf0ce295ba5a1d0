"""Print how many variables of real architectures `kt.suggest_rename` gets right.

Usage:
    python -m tests.real.architectures [CASE or GROUP ...] [--cache DIR] [--verbose] [--fresh]
"""

from __future__ import annotations

import argparse
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.real.architectures import CASES
from tests.real.architectures.case import Case
from tests.real.architectures.scoring import (
    AMBIGUOUS,
    MISSING,
    RIGHT,
    WRONG,
    Score,
    score,
)
from tests.real.architectures.store import DONE, prepare

VERDICTS = (RIGHT, WRONG, AMBIGUOUS, MISSING)
HEADER = f"{'case':34}" + "".join(f"{v:>10}" for v in (*VERDICTS, "of", "rules", "seconds"))


def main() -> None:
    arguments = parse()
    cases = chosen(arguments.cases)
    print(HEADER + "  complete", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.cache or Path(temporary)
        scores = list(run(cases, directory, arguments.fresh, arguments.verbose))
    for group in dict.fromkeys(case.group for case in cases):
        print(total(group, [s for s in scores if s.case.group == group]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="names or groups (default: all)")
    parser.add_argument("--cache", type=Path, help="keep files and right values here")
    parser.add_argument("--fresh", action="store_true", help="write them anew")
    parser.add_argument("--verbose", action="store_true", help="print suggestions and what is off")
    return parser.parse_args()


def chosen(names: list[str]) -> list[Case]:
    unknown = set(names) - {case.name for case in CASES} - {case.group for case in CASES}
    if unknown:
        raise SystemExit(f"No such case or group: {', '.join(sorted(unknown))}")
    return [c for c in CASES if not names or c.name in names or c.group in names]


def run(cases: list[Case], directory: Path, fresh: bool, verbose: bool) -> Iterator[Score]:
    for case in cases:
        try:
            if fresh:
                (directory / case.name / DONE).unlink(missing_ok=True)
            result = score(case, prepare(case, directory / case.name))
        except Exception as error:
            result = Score(case, error=f"not prepared: {type(error).__name__}: {error}")
            if verbose:
                traceback.print_exc()
        print(row(result), flush=True)
        if verbose:
            print(details(result), flush=True)
        yield result


def row(result: Score) -> str:
    numbers = [result.count(v) for v in VERDICTS] + [result.of, result.rules]
    text = f"{result.case.name:34}" + "".join(f"{n:10}" for n in numbers)
    text += f"{result.seconds:10.2f}  {'yes' if result.complete else 'no'}"
    if result.difference is not None:
        text += f"  outputs ±{result.difference:.0e}"
    if result.unlike:
        text += f"  {len(result.unlike)} tensors written differently"
    if result.lost:
        text += f"  {len(result.lost)} changes not written"
    return text + (f"  {result.error.splitlines()[0][:150]}" if result.error else "")


def total(group: str, scores: list[Score]) -> str:
    numbers = [sum(s.count(v) for s in scores) for v in VERDICTS]
    numbers += [sum(s.of for s in scores), sum(s.rules for s in scores)]
    text = f"{group:34}" + "".join(f"{n:10}" for n in numbers)
    complete = sum(s.complete for s in scores)
    return text + f"{sum(s.seconds for s in scores):10.2f}  {complete} of {len(scores)}"


def details(result: Score) -> str:
    lines = [str(result.suggestion), result.error, *result.unlike, *result.lost]
    for finding in result.findings:
        if finding.verdict in (WRONG, AMBIGUOUS, MISSING):
            lines.append(
                f"{finding.verdict:9} {finding.path} {finding.shape}: "
                f"{finding.key or 'nothing'} ({finding.label or 'no rule'}), "
                f"right: {finding.origin or 'computed'}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
