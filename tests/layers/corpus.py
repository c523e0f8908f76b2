#!/usr/bin/env python3
"""The conformance corpus: layers that use every rule and trap of image layers, in cases of one to four.

usage: corpus.py DIR [--large]

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


def cases(large=False):
    return [c for c in corpus_case.CASES if large or not c.large]


def write(where, large=False):
    """Returns the cases, each with .blobs: the paths of its layers."""
    os.makedirs(where + "/blobs", exist_ok=True)
    table, made = [], cases(large)
    for c in made:
        c.blobs = []
        table.append(f"case {c.name} {'refused' if isinstance(c.verdict, corpus_case.Bad) else 'legal'}\n")
        for blob, tar in c.layers():
            digest = hashlib.sha256(blob).hexdigest()
            diff_id = digest if tar is blob else hashlib.sha256(tar).hexdigest()
            c.blobs.append(f"{where}/blobs/{digest}")
            with open(c.blobs[-1], "wb") as f:
                f.write(blob)
            table.append(f"layer {digest} {len(blob)} {diff_id}\n")
    with open(where + "/cases", "w") as f:
        f.writelines(table)
    return made


if __name__ == "__main__":
    words = [a for a in sys.argv[1:] if a != "--large"]
    if len(words) != 1:
        sys.exit(__doc__)
    print(len(write(words[0], "--large" in sys.argv)), "cases")
