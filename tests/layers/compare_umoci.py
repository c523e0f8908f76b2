#!/usr/bin/env python3
"""Compares, entry by entry, an image made by flatten_tool with what `umoci unpack` makes of the same
layers. Without LAYER arguments the layers are those of odd_layers.py.

usage: compare_umoci.py FLATTEN_TOOL [LAYER...]     exit status 77: skipped"""
import gzip
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile

import odd_layers

SKIP = 77
# What umoci leaves out or has of its own: not compared. The rest is equal.
#   lost+found            ext4 has one
#   times of folders that no entry describes, and of the root (umoci: the time of unpacking)
#   empty extended attributes (Go's tar reader takes an empty record for none; GNU tar writes them so)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_layout(where, layers):
    """An OCI image layout from uncompressed layers; returns the paths of its layer blobs."""
    os.makedirs(where + "/blobs/sha256")

    def blob(data, media_type):
        d = digest(data)
        with open(f"{where}/blobs/sha256/{d[7:]}", "wb") as f:
            f.write(data)
        return {"mediaType": media_type, "digest": d, "size": len(data)}

    oci = "application/vnd.oci.image."
    packed = [blob(gzip.compress(la, 1), oci + "layer.v1.tar+gzip") for la in layers]
    config = blob(json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(la) for la in layers]}}).encode(),
        oci + "config.v1+json")
    manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
                                "config": config, "layers": packed}).encode(),
                    oci + "manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    with open(where + "/index.json", "w") as f:
        json.dump({"schemaVersion": 2, "manifests": [manifest]}, f)
    with open(where + "/oci-layout", "w") as f:
        json.dump({"imageLayoutVersion": "1.0.0"}, f)
    return [f"{where}/blobs/sha256/{p['digest'][7:]}" for p in packed]


def entry(path):
    st = os.lstat(path)
    e = {"mode": oct(st.st_mode), "owner": (st.st_uid, st.st_gid), "mtime": st.st_mtime_ns}
    if stat.S_ISREG(st.st_mode):
        h = hashlib.sha256()
        with open(path, "rb") as f:
            while piece := f.read(1 << 20):
                h.update(piece)
        e["content"] = (st.st_size, h.hexdigest())
    if stat.S_ISLNK(st.st_mode):
        e["target"] = os.readlink(path)
    if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        e["device"] = st.st_rdev
    if not stat.S_ISDIR(st.st_mode):
        e["links"] = st.st_nlink
    e["xattrs"] = {k: os.getxattr(path, k, follow_symlinks=False)
                   for k in sorted(os.listxattr(path, follow_symlinks=False))
                   if os.getxattr(path, k, follow_symlinks=False)}
    return e, st.st_ino


def tree(root):
    entries, names = {}, {}
    pending = [b"."]
    while pending:
        rel = pending.pop()
        path = os.path.join(root.encode(), rel)
        e, ino = entry(path)
        if rel != b"./lost+found":
            entries[rel] = e
        names.setdefault(ino, []).append(rel)
        if stat.S_ISDIR(int(e["mode"], 8)):
            pending += [os.path.join(rel, n) for n in os.listdir(path)]
    groups = {frozenset(v) for v in names.values() if len(v) > 1}
    return entries, groups


def compare(ours, theirs, described):
    bad = []
    (a, links_a), (b, links_b) = ours, theirs
    for rel in sorted(a.keys() | b.keys()):
        x, y = a.get(rel), b.get(rel)
        if x is None or y is None:
            bad.append(f"{rel!r}: only in {'umoci' if x is None else 'the image'}")
            continue
        for key in sorted(x.keys() | y.keys()):
            if key == "mtime" and key in x and "content" not in x and rel not in described:
                continue
            if x.get(key) != y.get(key):
                bad.append(f"{rel!r}: {key}: image {x.get(key)!r}, umoci {y.get(key)!r}")
    for group in links_a ^ links_b:
        bad.append(f"hard links differ: {sorted(group)}")
    return bad


def described_paths(layers):
    """Paths that some layer has an entry for, whose times are therefore known."""
    import io
    import tarfile
    found = set()
    for la in layers:
        with tarfile.open(fileobj=io.BytesIO(la), encoding="utf-8", errors="surrogateescape") as t:
            for e in t:
                name = os.path.normpath("./" + e.name.lstrip("/"))
                found.add(b"./" + os.fsencode(name))
    return found


def main():
    tool, paths = sys.argv[1], sys.argv[2:]
    for need in ("umoci", "e2fsck"):
        if not (shutil.which(need) or os.path.exists("/sbin/" + need)):
            print(f"skipped: no {need}")
            return SKIP
    if os.geteuid() != 0:
        print("skipped: needs root for umoci unpack and a loop mount")
        return SKIP
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    layers = []
    for p in paths:
        with open(p, "rb") as f:
            data = f.read()
        layers.append(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    layers = layers or odd_layers.all_layers()
    with tempfile.TemporaryDirectory(prefix="cb-umoci-") as work:
        blobs = write_layout(work + "/oci", layers)
        subprocess.run(["umoci", "unpack", "--image", work + "/oci:latest", work + "/bundle"],
                       check=True)
        image, mnt = work + "/image.ext4", work + "/mnt"
        subprocess.run([tool, "flatten", image, "0", *blobs], check=True)
        fsck = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
        if fsck.returncode != 0 or "ix?" in fsck.stdout:
            print(fsck.stdout)
            return 1
        os.mkdir(mnt)
        if subprocess.run(["mount", "-o", "loop,ro", image, mnt]).returncode != 0:
            print("skipped: no loop mount here")
            return SKIP
        try:
            ours = tree(mnt)
        finally:
            subprocess.run(["umount", mnt], check=True)
        bad = compare(ours, tree(work + "/bundle/rootfs"), described_paths(layers))
    for line in bad[:50]:
        print(line)
    print(f"{len(ours[0])} entries compared, {len(bad)} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
