#!/usr/bin/env python3
"""Holds the flattener to the conformance corpus (corpus.py): each legal case must be the image that its verdict
asks for, entry by entry, and clean to e2fsck; each other one must be refused in the words of the table.

usage: corpus_check.py CORPUS_TOOL [--large] [--without=CASE]... [--report] [CASE...]

What a verdict "as umoci" asks for is made by `umoci raw unpack` on the spot, which needs root and a file system that
keeps all of it; else those cases are only flattened and checked by e2fsck. --large: also the cases that take seconds.
--report: prints, for every case with another verdict, what umoci makes of it."""
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time

import corpus
from corpus_case import Bad, Golden, Lines, Umoci

SKIP = 77
PLAIN_MAX = 64 << 20  # as in image_list.h
BLOCK = 4096
TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFCHR: "char",
         stat.S_IFBLK: "block", stat.S_IFIFO: "fifo"}


# ---- listings: {path: {field: value}}, the same from all three sources ----

def unescape(text):
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode())


def as_kernel(name, value):
    """libext2fs gives the entries of an ACL that are of nobody in particular the id 0, Linux -1."""
    if not name.startswith("system.posix_acl_"):
        return value
    entries = [value[i:i + 8] for i in range(4, len(value), 8)]
    return value[:4] + b"".join(e if e[0] in (2, 8) else e[:4] + b"\xff" * 4 for e in entries)


def our_list(path):
    entries = {}
    with open(path) as f:
        for line in f:
            name, *fields = line.rstrip("\n").split("\t")
            e = {"xattrs": {}}
            for field in fields:
                key, value = field.split("=", 1)
                if key.startswith("xattr:"):
                    key = unescape(key[6:]).decode("utf-8", "surrogateescape")
                    e["xattrs"][key] = as_kernel(key, bytes.fromhex(value))
                elif key in ("type", "sha256", "holes"):
                    e[key] = value
                elif key == "mode":
                    e[key] = int(value, 8)
                elif key == "mtime":
                    e[key] = tuple(int(v) for v in value.split("."))
                elif key == "dev":
                    e[key] = tuple(int(v) for v in value.split(":"))
                elif key == "target":
                    e[key] = unescape(value)
                else:
                    e[key] = int(value)
            entries[unescape(name)] = e
    return entries


def host_list(root):
    entries, pending = {}, [b"."]
    while pending:
        rel = pending.pop()
        path = os.path.join(os.fsencode(root), rel)
        st = os.lstat(path)
        kind = TYPES[stat.S_IFMT(st.st_mode)]
        e = {"type": kind, "mode": stat.S_IMODE(st.st_mode), "uid": st.st_uid, "gid": st.st_gid,
             "mtime": divmod(st.st_mtime_ns, 10 ** 9), "nlink": st.st_nlink, "ino": st.st_ino}
        if kind == "file":
            with open(path, "rb") as f:
                e["size"], e["sha256"] = st.st_size, hashlib.sha256(f.read()).hexdigest()
        elif kind == "link":
            e["target"] = os.readlink(path)
        elif kind in ("char", "block"):
            e["dev"] = (os.major(st.st_rdev), os.minor(st.st_rdev))
        e["xattrs"] = {k: os.getxattr(path, k, follow_symlinks=False)
                       for k in os.listxattr(path, follow_symlinks=False)}
        entries[rel.removeprefix(b"./")] = e
        if kind == "dir":
            pending += [os.path.join(rel, n) for n in os.listdir(path)]
    return entries


def golden_list(verdict):
    """The fields that a golden entry says; .nlink and .ino follow from its word for names of one inode."""
    entries, words = {}, [e["same"] for e in verdict.entries.values()]
    for name, e in verdict.entries.items():
        name = name if isinstance(name, bytes) else name.encode()
        e = dict(e)
        same = e.pop("same")
        if e["type"] != "dir":
            e["nlink"] = words.count(same) if same else 1
            e["ino"] = same or name
        if "data" in e:
            data = e.pop("data")
            e["size"], e["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        if "pieces" in e:
            e.update(digest_with_holes(e["size"], e.pop("pieces")))
        entries[name] = e
    if verdict.root:
        entries[b"."] = {k: v for k, v in verdict.root.items() if k != "same"}
    return entries


def digest_with_holes(size, pieces):
    """As in image_list.h. Only the blocks of the pieces are in the image."""
    blocks = {}
    for at, data in pieces.items():
        for number in range(at // BLOCK, (at + len(data) - 1) // BLOCK + 1):
            block = blocks.setdefault(number, bytearray(BLOCK))
            lo, hi = max(at, number * BLOCK), min(at + len(data), (number + 1) * BLOCK)
            block[lo - number * BLOCK:hi - number * BLOCK] = data[lo - at:hi - at]
    h = hashlib.sha256()
    if size <= PLAIN_MAX:
        whole = bytearray(size)
        for at, data in pieces.items():
            whole[at:at + len(data)] = data
        return {"sha256": hashlib.sha256(whole).hexdigest(), "blocks": len(blocks)}
    for number in sorted(blocks):
        if any(blocks[number]):
            h.update(number.to_bytes(8, "little") + blocks[number])
    return {"holes": h.hexdigest(), "blocks": len(blocks)}


# ---- comparing ----

def groups(entries):
    by_inode = {}
    for name, e in entries.items():
        if e["type"] != "dir":
            by_inode.setdefault(e["ino"], set()).add(name)
    return {frozenset(names) for names in by_inode.values() if len(names) > 1}


def compare(ours, wanted, but=(), fields=None):
    """Differences as lines. @but: (path, field) pairs, or paths alone, that are looked at elsewhere."""
    bad = []
    for name in sorted(ours.keys() | wanted.keys()):
        x, y = ours.get(name), wanted.get(name)
        if name in but:
            continue
        if x is None or y is None:
            bad.append(f"{name!r} {'is missing' if x is None else 'should not be there'}")
            continue
        for key in sorted(fields or (x.keys() & y.keys()) | {"type"}):
            if key in x and key in y and x[key] != y[key] and (name, key) not in but and key != "ino":
                if key != "nlink" or x["type"] != "dir":
                    bad.append(f"{name!r}: {key} is {x[key]!r}, should be {y[key]!r}")
    for group in groups(ours) ^ groups(wanted):
        bad.append(f"names of one inode differ: {sorted(group)}")
    return bad


def without_own(entries):
    """Every image has lost+found."""
    return {k: v for k, v in entries.items() if k != b"lost+found"}


def against_golden(ours, verdict):
    wanted = golden_list(verdict)
    if not verdict.root:
        ours = {k: v for k, v in ours.items() if k != b"."}
    return compare(ours, wanted)


def against_umoci(ours, theirs, verdict):
    but = set()
    for name, e in theirs.items():
        # a folder that no entry describes, and one that a whiteout changed, has the time of unpacking
        if e["type"] == "dir" and abs(e["mtime"][0] - time.time()) < 86400 and name in ours:
            but.add((name, "mtime"))
        e["xattrs"] = {k: v for k, v in e["xattrs"].items() if v}  # Go takes an empty record for none
    for e in ours.values():
        e["xattrs"] = {k: v for k, v in e["xattrs"].items() if v}
    bad = []
    for name, fields in verdict.but.items():
        name = name if isinstance(name, bytes) else name.encode()
        if fields is None:
            but.add(name)
            if name in ours or name not in theirs:
                bad.append(f"{name!r}: only umoci should have it")
            continue
        for key, value in fields.items():
            but.add((name, key))
            if ours.get(name, {}).get(key) != value:
                bad.append(f"{name!r}: {key} is {ours.get(name, {}).get(key)!r}, should be {value!r}")
            if name in theirs and theirs[name].get(key) == value:
                bad.append(f"{name!r}: umoci has the same {key}, the table says that it differs")
    return bad + compare(ours, theirs, but)


# ---- umoci ----

def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_layout(where, cases, blobs_dir):
    """One OCI image layout with a tag for each case; its blobs are the corpus' own."""
    os.makedirs(where + "/blobs")
    os.symlink(blobs_dir, where + "/blobs/sha256")
    oci = "application/vnd.oci.image."

    def blob(value, media_type):
        data = json.dumps(value).encode()
        d = digest(data)
        with open(f"{where}/blobs/sha256/{d[7:]}", "wb") as f:
            f.write(data)
        return {"mediaType": oci + media_type, "digest": d, "size": len(data)}

    manifests = []
    for c in cases:
        if c.large:
            continue
        made = c.layers()
        layers = [{"mediaType": oci + "layer.v1.tar" + {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}.get(b[:2], ""),
                   "digest": digest(b), "size": len(b)} for b, _ in made]
        config = blob({"architecture": "amd64", "os": "linux", "config": {},
                       "rootfs": {"type": "layers", "diff_ids": [digest(t) for _, t in made]}}, "config.v1+json")
        m = blob({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": layers},
                 "manifest.v1+json")
        manifests.append(dict(m, annotations={"org.opencontainers.image.ref.name": c.name}))
    with open(where + "/index.json", "w") as f:
        json.dump({"schemaVersion": 2, "manifests": manifests}, f)
    with open(where + "/oci-layout", "w") as f:
        json.dump({"imageLayoutVersion": "1.0.0"}, f)


def umoci_list(layout, name, where):
    """Its listing, or the last line of its error."""
    done = subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:{name}", where],
                          capture_output=True, text=True, errors="replace")
    try:
        if done.returncode != 0:
            return None, done.stderr.strip().splitlines()[-1]
        return host_list(where), None
    finally:
        subprocess.run(["rm", "-rf", where], check=True)


def what_is_missing(folder):
    """Why umoci could not unpack everything in @folder, or None: being root in a container, or a file system that
    lacks something, must not look like a difference."""
    path = os.path.join(folder, "probe")
    times = (2 ** 32 * 10 ** 9 + 5, -2 ** 31 * 10 ** 9, 1_600_000_000_123_456_789)
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.unlink(path)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.chown(path, 4294967294, 4294967294)
        os.setxattr(path, "user.probe", b"x" * 3900)
        os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.setxattr(path, "system.posix_acl_access", bytes.fromhex(
            "02000000" "01000600ffffffff" "02000600e8030000" "04000400ffffffff" "10000600ffffffff" "20000400ffffffff"))
        for t in times:
            os.utime(path, ns=(t, t))
            if os.stat(path).st_mtime_ns != t:
                return f"its file system does not keep the time {t}"
    except OSError as e:
        return str(e)
    return None


# ---- a case ----

class Checker:
    def __init__(self, work, with_umoci):
        self.out, self.layout, self.roots = work + "/out", work + "/oci", work + "/roots"
        self.with_umoci = with_umoci
        os.mkdir(self.roots)

    def theirs(self, c):
        return umoci_list(self.layout, c.name, f"{self.roots}/{c.name}")

    def refused(self, c):
        with open(f"{self.out}/{c.name}.error") as f:
            code, words = f.read().rstrip("\n").split("\n", 1)
        v = c.verdict
        if not isinstance(v, Bad):
            return [f"refused: {code}: {words}"]
        start = f"layer {v.layer} of {len(c.blobs)} ("
        if code == v.code and words.startswith(start) and v.words in words:
            return []
        return [f"refused with {code}: {words}", f"should be {v.code}: {start}... {v.words}"]

    def made(self, c):
        image = f"{self.out}/{c.name}.ext4"
        fsck = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
        os.unlink(image)
        bad = []
        if fsck.returncode != 0 or "ix?" in fsck.stdout or "WARNING" in fsck.stdout:
            bad.append(f"e2fsck ends with {fsck.returncode}:\n{fsck.stdout}{fsck.stderr}")
        if isinstance(c.verdict, Bad):
            return bad + [f"accepted; should be {c.verdict.code}: {c.verdict.words}"]
        if isinstance(c.verdict, Lines):
            with open(f"{self.out}/{c.name}.list") as f:
                return bad + c.verdict.check(f)
        ours = without_own(our_list(f"{self.out}/{c.name}.list"))
        if isinstance(c.verdict, Golden):
            return bad + against_golden(ours, c.verdict)
        if not self.with_umoci:
            return bad
        theirs, error = self.theirs(c)
        return bad + ([f"umoci: {error}"] if error else against_umoci(ours, theirs, c.verdict))

    def check(self, c, verdict):
        bad = self.refused(c) if verdict == "refused" else self.made(c)
        return [f"{c.name}: {line}" for line in bad]


def report(checker, cases):
    for c in cases:
        if isinstance(c.verdict, Umoci):
            continue
        theirs, error = checker.theirs(c)
        print(f"{c.name} ({type(c.verdict).__name__}; {c.verdict.why})\n  umoci: {error or sorted(theirs)}")


def run(tool, cases, checker, work):
    """The tool makes images one after the other, each is looked at as soon as it is there."""
    bad, left = [], {c.name: c for c in cases}
    proc = subprocess.Popen([tool, "flatten", work, checker.out, *left], stdout=subprocess.PIPE, text=True)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        checks = []
        for line in proc.stdout:
            name, verdict = line.split()
            checks.append(pool.submit(checker.check, left.pop(name), verdict))
        for done in checks:
            bad += done.result()
    if proc.wait() != 0:
        bad.append(f"the tool ended with {proc.returncode}")
    return bad + [f"{name}: was not flattened" for name in left]


def main():
    words = [a for a in sys.argv[1:] if not a.startswith("--")]
    if not words:
        sys.exit(__doc__)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for need in ("umoci", "e2fsck"):
        if not shutil.which(need):
            print(f"skipped: no {need}")
            return SKIP
    # not /tmp, which may be a tmpfs: those have no user attributes before Linux 6.6
    with tempfile.TemporaryDirectory(prefix="cb-corpus-", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
        left_out = [a.removeprefix("--without=") for a in sys.argv if a.startswith("--without=")]
        cases = [c for c in corpus.write(work, "--large" in sys.argv, left_out)
                 if c.name in words[1:] or not words[1:]]
        missing = what_is_missing(work) if os.geteuid() == 0 else "not root"
        checker = Checker(work, missing is None)
        if checker.with_umoci:
            write_layout(checker.layout, cases, work + "/blobs")
        if "--report" in sys.argv:
            report(checker, cases)
            return 0
        bad = run(words[0], cases, checker, work)
    print("\n".join(bad))
    print(f"{len(cases)} cases, {len(bad)} differences" + (f"; not compared with umoci: {missing}" if missing else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
