"""An image of many large layers, made as an OCI layout without holding a layer in memory, and a look at what became of
it. Every page of 4 KiB is another one and none is zero, so nothing is elided or stored once for two; the rest of a page
repeats, so that zstd makes the layout a hundredth of the image.

Each layer brings two files of its own, replaces one that it shares with others, removes one of the layer below, and
adds a small one to a folder that all share."""

import contextlib
import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

from harness import Layout

MIB = 1 << 20
PAGE = 4096
REPLACED = 8  # as many files are replaced again and again


def pages(name, size):
    """@size bytes (whole MiB) that only @name has, a MiB at a time."""
    seed = hashlib.sha256(name.encode()).digest()
    fill = (seed * (PAGE // len(seed)))[16:]
    for mib in range(size // MIB):
        yield b"".join(seed[:8] + (mib * 256 + page + 1).to_bytes(8, "big") + fill for page in range(MIB // PAGE))


class Body:
    """What tarfile reads a member from."""

    def __init__(self, name, size):
        self.source, self.rest, self.hash = pages(name, size), b"", hashlib.sha256()

    def read(self, n):
        while len(self.rest) < n:
            more = next(self.source, None)
            if more is None:
                break
            self.rest += more
        data, self.rest = self.rest[:n], self.rest[n:]
        self.hash.update(data)
        return data


class Packed:
    """A layer blob as it is written: zstd of what is given, and the digest of that."""

    def __init__(self, path):
        self.diff = hashlib.sha256()
        self.file = open(path, "wb")
        self.zstd = subprocess.Popen(["zstd", "-1qc"], stdin=subprocess.PIPE, stdout=self.file)

    def write(self, data):
        self.diff.update(data)
        self.zstd.stdin.write(data)
        return len(data)

    def close(self):
        self.zstd.stdin.close()
        if self.zstd.wait():
            raise AssertionError("zstd failed")
        self.file.close()


def sha256_file(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while data := f.read(MIB):
            h.update(data)
    return h.hexdigest()


def add(tar, tree, name, size=0, kind=tarfile.REGTYPE):
    m = tarfile.TarInfo(name)
    m.type, m.size, m.mtime, m.mode = kind, size, 1700000000, 0o755 if kind == tarfile.DIRTYPE else 0o644
    body = Body(f"{len(tree)} {name}", size)
    tar.addfile(m, body if size else None)
    if kind == tarfile.REGTYPE and "/.wh." not in name:
        tree[name] = (size, body.hash.hexdigest())


def make(folder, layers, total):
    """The layout in @folder; {path: (size, sha256)} of the files that its image has. @total: bytes in all layers."""
    layout, tree = Layout(folder), {}
    each = total // layers // 4 // MIB * MIB
    for i in range(layers):
        part = Path(folder) / "part"
        out = Packed(part)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=MIB) as tar:
            for name in ("data/", f"data/{i:03}/", "replaced/", "shared/"):
                add(tar, tree, name.rstrip("/"), kind=tarfile.DIRTYPE)
            add(tar, tree, f"data/{i:03}/stays", 2 * each)
            add(tar, tree, f"data/{i:03}/goes", each)
            add(tar, tree, f"replaced/{i % REPLACED}", each)
            add(tar, tree, f"shared/{i:03}", MIB)
            if i:
                add(tar, tree, f"data/{i - 1:03}/.wh.goes")
                tree.pop(f"data/{i - 1:03}/goes")
        out.close()
        digest = sha256_file(part)
        layout.layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                              "digest": "sha256:" + digest, "size": part.stat().st_size})
        layout.diff_ids.append("sha256:" + out.diff.hexdigest())
        part.rename(layout.folder / "blobs/sha256" / digest)
    layout.finish(Cmd=["x"])
    return layout, tree


def digests(image, names):
    """SHA-256 of these files of an ext4 image, read by debugfs."""
    out = {}
    for name in names:
        p = subprocess.Popen(["/sbin/debugfs", "-R", f"cat /{name}", str(image)], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
        h, size = hashlib.sha256(), 0
        while data := p.stdout.read(MIB):
            h.update(data)
            size += len(data)
        with contextlib.closing(p.stdout):
            p.wait()
        out[name] = (size, h.hexdigest())
    return out


def names(image):
    """All files of the image, by debugfs."""
    out = []
    for folder in ("data", "replaced", "shared"):
        listing = subprocess.run(["/sbin/debugfs", "-R", f"ls -p /{folder}", str(image)], check=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        for line in listing.splitlines():
            _, _, mode, _, _, name, *_ = (line.split("/") + [""] * 7)[:7]
            if name in ("", ".", ".."):
                continue
            if mode.startswith("04"):
                inner = subprocess.run(["/sbin/debugfs", "-R", f"ls -p /{folder}/{name}", str(image)], check=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
                out += [f"{folder}/{name}/{x.split('/')[5]}" for x in inner.splitlines()
                        if x.count("/") > 5 and x.split("/")[5] not in (".", "..")]
            else:
                out.append(f"{folder}/{name}")
    return sorted(out)


def fsck(image):
    """What e2fsck says of it; "" when it finds nothing."""
    got = subprocess.run(["/sbin/e2fsck", "-fn", str(image)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env={**os.environ, "LC_ALL": "C"})
    return got.stdout if got.returncode else ""
