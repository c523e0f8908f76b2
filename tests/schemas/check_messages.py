"""Proves that every message of schemas/ is reached by a test: every text of more than one word in schemas/*.c must
stand in what the unit tests and the corpora made the program say.

check_messages.py ROOT TEST... runs each TEST with CB_TRANSCRIPT set (tests/check.h writes there what was said), adds
the .expect files of the corpora, and prints each text that nothing said, with its place."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOKEN = re.compile(r"""(?P<skip>/\*.*?\*/|//[^\n]*|'(?:\\.|[^'\\])+'|\#[^\n]*)|"(?P<text>(?:\\.|[^"\\\n])*)"|(?P<other>[^\s])""", re.S)
CONVERSION = re.compile(r"%(?:%|[-+ #0]*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh|h|ll|l|z|j|t)?[a-zA-Z])")

# Said only when the machine is out of something, or by a mistake of ours: no input reaches these.
NOT_BY_INPUT = {
    "cannot be written again": "jansson could not allocate",
    "out of memory": "libyaml could not allocate",
    "the parser gave up": "libyaml gives no reason only when it could not allocate",
}


def texts(path):
    """(line, text) of each string literal; those that stand side by side are one."""
    source = path.read_text()
    line, parts = 0, []
    for m in TOKEN.finditer(source):
        if m["skip"]:
            continue
        if m["text"] is not None:
            if not parts and re.search(r"str(?:str|n?cmp)\([^\"]*$", source[max(0, m.start() - 60):m.start()]):
                continue  # compared with, not said
            line = line if parts else source.count("\n", 0, m.start()) + 1
            parts.append(m["text"])
        elif parts:
            yield line, "".join(parts)
            parts = []


def unescape(text):
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)


def said_by(tests, root):
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "said"
        path.touch()
        for t in tests:
            p = subprocess.run([t], env=os.environ | {"CB_TRANSCRIPT": str(path)}, capture_output=True, text=True)
            if p.returncode not in (0, 77):
                sys.exit(f"{t} failed:\n{p.stdout}{p.stderr}")
        out = path.read_bytes().decode("utf-8", "replace")
    for expect in sorted((root / "tests" / "data").rglob("*.expect")):
        out += expect.read_text()
    return out


def main(root, tests):
    said = said_by(tests, root)
    missing, n = [], 0
    for path in sorted((root / "schemas").glob("*.c")):
        for line, literal in texts(path):
            text = unescape(literal)
            plain = CONVERSION.sub("", text)
            if not re.search(r"[a-z]+ [a-z]", plain) or text in NOT_BY_INPUT:
                continue
            n += 1
            pieces = [re.escape(p) for p in CONVERSION.split(text)]
            if not re.search(".*?".join(pieces), said):
                missing.append(f"schemas/{path.name}:{line}: said by no test: {literal}")
    print("\n".join(missing) or f"{n} texts of messages, each said by a test")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
