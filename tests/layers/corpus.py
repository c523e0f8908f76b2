#!/usr/bin/env python3
"""The conformance corpus: layers that use every rule and trap of image layers, in cases of one to four.

usage: corpus.py DIR [--large]
       corpus.py DIR --seeds        each small case as one file, its layers in a row, for tests/fuzz/fuzz_tar_apply.c

Writes the blobs to DIR/blobs/HEX and DIR/cases, which corpus.h reads. A case is lines of the form

    case NAME legal|refused
    layer HEX-OF-THE-BLOB SIZE HEX-OF-ITS-TAR

The same bytes at every run. --large adds the cases that take seconds. The table itself, with what is expected of each
case and why, is in corpus_*.py; corpus_check.py holds the flattener to it."""
import hashlib
import os
import sys

import corpus_case
import corpus_formats  # noqa: F401  (fills the table, as the next ones do)
import corpus_rules  # noqa: F401
import corpus_streams  # noqa: F401

SEED_MAX = 16384


def cases(large=False):
    return [c for c in corpus_case.CASES if large or not c.large]


def write(where, large=False, left_out=()):
    """Returns the cases, each with .blobs: the paths of its layers."""
    os.makedirs(where + "/blobs", exist_ok=True)
    table, made = [], [c for c in cases(large) if c.name not in left_out]
    for c in made:
        c.blobs = []
        table.append(f"case {c.name} {'refused' if isinstance(c.verdict, corpus_case.Bad) else 'legal'}\n")
        for blob, tar in c.layers():
            digest = hashlib.sha256(blob).hexdigest()
            diff_id = tar if isinstance(tar, str) else hashlib.sha256(tar).hexdigest()
            c.blobs.append(f"{where}/blobs/{digest}")
            with open(c.blobs[-1], "wb") as f:
                f.write(blob)
            table.append(f"layer {digest} {len(blob)} {diff_id}\n")
    with open(where + "/cases", "w") as f:
        f.writelines(table)
    return made


def write_seeds(where):
    os.makedirs(where, exist_ok=True)
    for c in cases():
        seed = b"".join(tar for _, tar in c.layers())
        if len(seed) <= SEED_MAX:
            with open(f"{where}/{c.name}", "wb") as f:
                f.write(seed)


if __name__ == "__main__":
    words = [a for a in sys.argv[1:] if not a.startswith("--")]
    if len(words) != 1:
        sys.exit(__doc__)
    if "--seeds" in sys.argv:
        write_seeds(words[0])
        sys.exit()
    print(len(write(words[0], "--large" in sys.argv)), "cases")
