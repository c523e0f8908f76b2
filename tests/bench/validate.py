"""How long `capsule-build validate` takes and how much memory: the largest example, a file that is too large, and
files made to be slow."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[2]
program = Path(os.environ.get("CB_BUILD_DIR", root / "build")) / "capsule-build"
L = "base_image: debian\nlayers:\n"


def bomb():
    out, names = "", "abcdefghij"
    for i, n in enumerate(names):
        below = "*" + names[i - 1] if i else "x"
        out += f"{n}: &{n} [{', '.join([below] * 9)}]\n"
    return out


MIB = (1 << 20) - 64
HOSTILE = {
    "alias bomb": bomb(),
    "anchors": "a: [" + "&a b," * (MIB // 5) + "]\n",
    "brackets": "[" * MIB,
    "dashes": "- " * (MIB // 2),
    "one long line": "a" * MIB,
    "empty lines": "\n" * MIB,
    "comments": "#\n" * (MIB // 2),
    "unknown keys": "".join(f"k{i}: v\n" for i in range(45000)),
    "unknown keys in layers": L + "  - {name: a, init_commands: [x], " + ", ".join(f"k{i}: v" for i in range(40000)) + "}\n",
    "long unknown keys": "".join(f"base_imag{'e' * 28}{i}: v\n" for i in range(20000)),
    "same key": "k: v\n" * 45000,
    "merge keys": "a: &a {" + ", ".join(f"k{i}: v" for i in range(5000)) + "}\nb:\n" + "".join(
        f"  c{i}: {{<<: *a}}\n" for i in range(18)),
    "merge lists": "a: &a {x: y}\nb: {<<: [" + "*a, " * 40000 + "]}\n",
    "commands": L + "".join(f"  - {{name: l{i}, init_commands: [{','.join(['x'] * 380)}]}}\n" for i in range(255)),
    "drives": L + "".join(f"  - {{name: l{i}, init_commands: [x], drives: [{{drive_id: d}}]}}\n" for i in range(256)),
    "variables": L + "  - {name: a, init_commands: [x], env: {A: '" + "${PATH}" * 140000 + "'}}\n",
    "rules": "base_image: debian\nconfig: {network_policy: {egress: [" + "{host: 'a b', ports: [0]}," * 1000 + "]}}\n",
    "folded text": "a: >\n" + "  x\n" * (MIB // 4),
    "double quotes": 'a: "' + "\\x41" * (MIB // 4) + '"\n',
    "json brackets": '{"a":' * (MIB // 5),
    "json strings": '{"a":[' + '"\\u00e9",' * 99000 + '""]}',
    "tabs in many lines": "a:\n" + " b\n" * (MIB // 4) + "\tc: d\n",
    "two MiB": "a: b\n" * (2 << 18),
    "ten MB": "x" * 10_000_000,
}


def measure(peak, path, runs):
    """Median and best wall time and the median CPU time in ms, the largest peak in MiB, the exit code of validate."""
    rows = []
    for _ in range(runs):
        p = subprocess.run([peak, program, "validate", path], capture_output=True, text=True, check=True)
        rows.append([int(x) for x in p.stdout.split()])
    return (statistics.median(r[0] for r in rows) / 1000, min(r[0] for r in rows) / 1000,
            statistics.median(r[1] for r in rows) / 1000, max(r[2] for r in rows) / 1024, rows[0][3])


def main():
    with tempfile.TemporaryDirectory() as d:
        peak = Path(d) / "peak"
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", peak, root / "tests/bench/peak.c"], check=True)
        start, _, start_cpu, start_size, _ = measure(peak, Path(d) / "none.yaml", 100)
        largest = max(root.glob("examples/*/onboard.yaml"), key=lambda p: p.stat().st_size)
        ms, best, cpu, mib, rc = measure(peak, largest, 100)
        if rc:
            sys.exit(f"{largest} is not valid")
        print(f"validate {largest.parent.name} | {ms:.1f} ms ({cpu:.1f} CPU, best {best:.1f}) | < 5 ms")
        print(f"validate {largest.parent.name}: peak | {mib * 1.048576:.1f} MB | < 5 MB")
        print(f"of that the program's start | {start:.1f} ms ({start_cpu:.1f} CPU), {start_size * 1.048576:.1f} MB | ")
        slowest, fattest = (0, 0, ""), (0, "")
        for name, text in HOSTILE.items():
            path = Path(d) / "hostile.yaml"
            path.write_text(text)
            _, ms, cpu, mib, rc = measure(peak, path, 5)
            if rc not in (0, 2):
                sys.exit(f"{name}: exit {rc}")
            if "-v" in sys.argv:
                print(f"  {name}: {ms:.1f} ms ({cpu:.1f} CPU), {mib:.1f} MiB, exit {rc}", file=sys.stderr)
            slowest, fattest = max(slowest, (ms, cpu, name)), max(fattest, (mib, name))
        print(f"worst of {len(HOSTILE)} hostile files ({slowest[2]}) | {slowest[0]:.0f} ms ({slowest[1]:.0f} CPU), best of 5 | < 100 ms")
        print(f"worst of {len(HOSTILE)} hostile files: peak ({fattest[1]}) | {fattest[0] * 1.048576:.1f} MB | < 32 MB")


if __name__ == "__main__":
    main()
