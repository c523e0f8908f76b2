"""Adds up what ctest ran: `summary.py JUNIT...` prints "N passed, N failed" as its last line.

A cmocka program and an e2e module hold many tests; they are counted one by one from what they print.
Every other ctest counts as one. A program that ctest calls failed, or could not run, counts as one failure at
least, so that a crash is never lost. With CI=true in the environment a skipped test is a failure.

What failed is run once more, alone (./dev test); the second run's results lie in "again.xml" beside the first's.
A test that passes then is named as flaky and does not fail the run; one that fails twice does.
"""

import os
import re
import sys
import xml.etree.ElementTree as ET

CMOCKA_RUN = re.compile(r"^\[==========\] .*?(\d+) test\(s\) run\.", re.M)
CMOCKA_FAILED = re.compile(r"^\[  FAILED  \] .*?(\d+) test\(s\)", re.M)
CMOCKA_SKIPPED = re.compile(r"^\[  SKIPPED \] .*?(\d+) test\(s\)", re.M)
E2E = re.compile(r"^e2e: (\d+) passed, (\d+) failed, (\d+) skipped$", re.M)


def total(pattern, text):
    return sum(int(n) for n in pattern.findall(text))


def outcome(case):
    """(failed, skipped). Skipped is what says so itself; what ctest could not start at all has failed."""
    why = case.find("skipped")
    failed = case.get("status") == "fail" or case.find("failure") is not None
    if case.get("status") == "notrun" and not (why is not None and why.get("message", "").startswith("SKIP_")):
        failed = True
    return failed, not failed and (case.get("status") in ("notrun", "disabled") or why is not None)


def count(case):
    """(passed, failed, skipped) of one ctest."""
    out = case.findtext("system-out") or ""
    failed, skipped = outcome(case)
    e2e = E2E.findall(out)
    if e2e:
        p, f, s = (sum(int(row[i]) for row in e2e) for i in range(3))
    elif CMOCKA_RUN.search(out):
        run = total(CMOCKA_RUN, out)
        f = total(CMOCKA_FAILED, out)
        s = total(CMOCKA_SKIPPED, out)
        p = run - f - s
    elif skipped:
        p, f, s = 0, 0, 1
    else:
        p, f, s = (0, 1, 0) if failed else (1, 0, 0)
    if failed and f == 0:
        f = 1
    return p, f, s


def suite_of(path):
    """The file as XML, whatever bytes a test printed."""
    with open(path, encoding="utf-8", errors="replace") as f:
        return ET.fromstring(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "?", f.read()))


def second_run(path):
    """What was run once more: name -> its case. Empty when nothing was."""
    again = os.path.join(os.path.dirname(os.path.abspath(path)), "again.xml")
    if not os.path.exists(again):
        return {}
    try:
        return {c.get("name"): c for c in suite_of(again).iter("testcase")}
    except (OSError, ET.ParseError) as e:
        print(f"{again}: {e}")  # then the first run counts
        return {}


def main(paths):
    passed = failed = skipped = 0
    names, flaky, slow = [], [], []
    for path in paths:
        try:
            suite = suite_of(path)
        except (OSError, ET.ParseError) as e:
            print(f"{path}: {e}")
            failed += 1
            names.append(f"{path}: no result")
            continue
        where = os.path.basename(os.path.dirname(os.path.abspath(path)))
        again = second_run(path)
        for case in suite.iter("testcase"):
            name = case.get("name")
            p, f, s = count(case)
            if f and name in again:
                was = case.get("status")
                p, f, s = count(again[name])
                if not f and was != "notrun":  # one that only waited for another is not flaky itself
                    flaky.append(f"flaky: {name} ({where}) failed once under load and passed alone")
            passed, failed, skipped = passed + p, failed + f, skipped + s
            if f:
                names.append(f"failed: {name} ({where})" + (", twice" if name in again else ""))
            elif s:
                names.append(f"skipped: {name} ({where})")
            slow.append((float(case.get("time") or 0), name, where))
    print("slowest: " + ", ".join(f"{n} ({w}) {t:.0f} s" for t, n, w in sorted(slow)[:-6:-1]))
    for n in names + flaky:
        print(n)
    if passed + failed == 0:
        print("nothing was run")
        failed = 1
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    in_ci = os.environ.get("CI", "") not in ("", "0", "false")
    return 1 if failed or (skipped and in_ci) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
