"""What mutation testing found: how many changes were noticed, and which were not.

Run in the directory in which `mutmut run` ended: `python mutation_report.py 85`. The exit code is 1
if a smaller part than that, in percent, was noticed.
"""

import subprocess
import sys
from collections import Counter


def mutmut(*words: str) -> str:
    """What a command of mutmut prints."""
    command = [sys.executable, "-m", "mutmut", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def verdicts(text: str) -> dict[str, str]:
    """Mutant -> what became of it, from the lines of `mutmut results --all true`."""
    lines = (line.strip().partition(": ") for line in text.splitlines() if ": " in line)
    return {name: verdict for name, _, verdict in lines}


def changed_lines(diff: str) -> list[str]:
    """The lines that a diff takes away and adds."""
    return [
        line
        for line in diff.splitlines()
        if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    ]


def main(least: float) -> int:
    """Print the report; returns the exit code."""
    found = verdicts(mutmut("results", "--all", "true"))
    # Where names were given to `mutmut run`, the other mutants were left alone.
    found = {name: verdict for name, verdict in found.items() if verdict != "not checked"}
    missed = [name for name, verdict in found.items() if verdict in ("survived", "no tests")]
    for name in missed:
        print(name, *changed_lines(mutmut("show", name)), sep="\n    ")
    counts = ", ".join(f"{n} {verdict}" for verdict, n in Counter(found.values()).most_common())
    noticed = 100 * (1 - len(missed) / len(found)) if found else 0.0
    print(f"{noticed:.1f} % of {len(found)} changes were noticed ({counts}); at least {least:g} %")
    return noticed < least


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
