"""Checks that every C file is as clang-format leaves it.

check_format.py ROOT prints what is not and ends with 1; with 77 (skipped) where clang-format is missing or
of another major version than the one that .clang-format was written for, for versions differ in details."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "14"
root = Path(sys.argv[1])
tool = shutil.which(f"clang-format-{VERSION}") or shutil.which("clang-format")
if not tool:
    print("skipped: there is no clang-format")
    sys.exit(77)
version = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout
if not re.search(rf"version {VERSION}\.", version):
    print(f"skipped: needs clang-format {VERSION}, found {version.strip()}")
    sys.exit(77)

tracked = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard",
                          "--", "*.c", "*.h"], capture_output=True)
if tracked.returncode == 0:
    files = [root / name.decode() for name in tracked.stdout.split(b"\0") if name]
else:  # an unpacked archive: everything but what a build made
    files = [p for p in root.rglob("*.[ch]") if not p.relative_to(root).parts[0].startswith(("build", "."))]
files = sorted(str(p) for p in files if p.exists())
if not files:
    sys.exit("no C files were found")
done = subprocess.run([tool, "--dry-run", "-Werror", *files], capture_output=True, text=True)
bad = sorted(set(re.findall(r"^(.+?):\d+:\d+: error", done.stderr, re.M)))
for path in bad:
    print(f"{Path(path).relative_to(root)}: not formatted; ./dev format does it")
if done.returncode and not bad:
    print(done.stderr)
print(f"{len(files) - len(bad)} of {len(files)} files are formatted")
sys.exit(done.returncode != 0)
