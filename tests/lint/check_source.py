"""Checks what no compiler does: includes go one way, calls that are always a mistake, machine paths.

check_source.py ROOT prints what is wrong as file:line and ends with 1."""

import re
import sys
from pathlib import Path

root = Path(sys.argv[1])
problems = []

# The dependency table stands in one place, the build description. Libraries that are a part of a folder
# (layers_store) count as the folder here; the linker tells them apart.
table = {"tests": None}
for m in re.finditer(r'set\(CB_MAY_USE_(\w+) ([^)]*)\)', (root / "cmake" / "CbTargets.cmake").read_text()):
    folder = m[1].split("_")[0]
    table.setdefault(folder, {folder}).update(u.split("_")[0] for u in m[2].replace('"', "").split())
# What capsule-build, the supervisor, may know of the folders whose rest only cli/job/ (capsule-build-job) links.
SUPERVISOR = {"layers": {"layers/store.h", "layers/store_gc.h"}, "builder": {"builder/sweep.h"}}

BANNED = re.compile(r"(?<![\w.>])(system|popen|strcpy|strcat|sprintf|vsprintf|gets|strtok|tmpnam|mktemp|tempnam"
                    r"|atoi|atol|atoll|alloca)\s*\(")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", re.S)


def strip(text):
    """The code alone: comments and strings are blanked, lines stay."""
    return COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


files = sorted(p for d in table for p in (root / d).rglob("*.[ch]"))
for path in files:
    name = path.relative_to(root)
    folder = name.parts[0]
    text = path.read_text()
    for n, line in enumerate(text.splitlines(), 1):
        where = f"{name}:{n}"
        inc = INCLUDE.match(line)
        if inc and "/" in inc[1]:
            target = inc[1].split("/")[0]
            if name.parts[:2] == ("builder", "agent"):
                if not re.match(r"builder/(frames\.h|agent/)", inc[1]):
                    problems.append(f"{where}: the agent includes {inc[1]}; it may use builder/frames.h alone")
            elif table[folder] is not None and target in table and target not in table[folder]:
                problems.append(f"{where}: {folder} may not use {target} (cmake/CbTargets.cmake)")
            elif folder == "cli" and len(name.parts) == 2 and inc[1] not in SUPERVISOR.get(target, {inc[1]}):
                problems.append(f"{where}: {inc[1]} is not linked to capsule-build: what needs it goes to cli/job/")
        if UNFINISHED.search(line):
            problems.append(f"{where}: {UNFINISHED.search(line)[0]}: finish it, or write down why it is so")
        if line != line.rstrip():
            problems.append(f"{where}: white space at the end of the line")
    for n, line in enumerate(strip(text).splitlines(), 1):
        bad = BANNED.search(line)
        if bad:
            problems.append(f"{name}:{n}: {bad[1]}() is not used here")
    if path.suffix == ".h" and "#pragma once" not in text:
        problems.append(f"{name}:1: no #pragma once")
    if len(text.splitlines()) > 900:
        problems.append(f"{name}:1: {len(text.splitlines())} lines; a file stays below about 800")

print("\n".join(problems) or f"{len(files)} files are fine")
sys.exit(1 if problems else 0)
