"""The flattened image, entry by entry, against what `umoci unpack` makes of the same layers."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import unittest

import harness
from harness import E2E, Layout, Registry, make_tar, tar_of

CAP_NET_BIND = "\x01\x00\x00\x02" + "\x00\x04\x00\x00" + "\x00" * 12


def walk(root):
    """{path: facts} of a tree on disk."""
    out, links = {}, {}
    for folder, subs, files in os.walk(root, followlinks=False):
        for n in subs + files:
            full = os.path.join(folder, n)
            path = os.path.relpath(full, root)
            st = os.lstat(full)
            kind = stat.S_IFMT(st.st_mode)
            facts = {"type": oct(kind), "mode": oct(st.st_mode & 0o7777), "owner": [st.st_uid, st.st_gid],
                     "xattrs": {k: os.getxattr(full, k, follow_symlinks=False).hex()
                                for k in os.listxattr(full, follow_symlinks=False)}}
            if kind == stat.S_IFLNK:
                facts["link"] = os.readlink(full)
            elif kind == stat.S_IFREG:
                h = hashlib.sha256()
                with open(full, "rb") as f:
                    while chunk := f.read(1 << 20):
                        h.update(chunk)
                facts["size"], facts["content"] = st.st_size, h.hexdigest()
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                facts["device"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
            if kind != stat.S_IFDIR:
                facts["mtime"] = int(st.st_mtime)
                if st.st_nlink > 1:
                    links.setdefault(st.st_ino, []).append(path)
            out[path] = facts
    for group in links.values():
        for path in group:
            out[path]["same file as"] = sorted(group)
    return out


def tricky_layers():
    long = "long-" + "x" * 250
    first = [
        ("t/", {"type": "folder", "mode": 0o755}),
        ("t/keep", {"data": b"keep"}),
        ("t/replaced", {"data": b"old"}),
        ("t/gone", {"data": b"gone"}),
        ("t/gone-folder/", {"type": "folder"}),
        ("t/gone-folder/a", {"data": b"a"}),
        ("t/opaque/", {"type": "folder", "mode": 0o700}),
        ("t/opaque/old", {"data": b"old"}),
        ("t/opaque/sub/", {"type": "folder"}),
        ("t/opaque/sub/old", {"data": b"old"}),
        ("t/file-then-folder", {"data": b"f"}),
        ("t/folder-then-file/", {"type": "folder"}),
        ("t/folder-then-file/in", {"data": b"in"}),
        ("t/link-then-folder", {"type": "link", "link": "keep"}),
        ("t/hard-a", {"data": b"hard", "mode": 0o640, "uid": 7, "gid": 8}),
        ("t/hard-b", {"type": "hardlink", "link": "t/hard-a"}),
        ("t/hard-c", {"type": "hardlink", "link": "t/hard-a"}),
        ("t/suid", {"data": b"#!", "mode": 0o6755}),
        ("t/sticky/", {"type": "folder", "mode": 0o1777}),
        ("t/big-owner", {"data": b"o", "uid": 3000000, "gid": 2147483646}),
        ("t/attrs", {"data": b"x", "xattrs": {"user.one": "1", "user.two": "second value"}}),
        ("t/capable", {"data": b"x", "mode": 0o755, "xattrs": {"security.capability": CAP_NET_BIND}}),
        ("t/null", {"type": "char", "device": (1, 3), "mode": 0o666}),
        ("t/disk", {"type": "block", "device": (259, 70000), "mode": 0o600}),
        ("t/pipe", {"type": "fifo", "mode": 0o622}),
        ("t/" + long, {"data": b"l"}),
        ("t/fast-link", {"type": "link", "link": "k" * 59}),
        ("t/slow-link", {"type": "link", "link": "k" * 1000}),
        ("t/naïve ☂", {"data": b"u"}),
        ("t/empty", {"data": b""}),
        ("t/zeros", {"data": bytes(3 << 20) + b"end"}),
        ("t/old", {"data": b"t", "mtime": 1}),
        ("t/many/", {"type": "folder"}),
        *((f"t/many/file-{i:05}-{'y' * (i % 60)}", {"data": b"%d" % i}) for i in range(3000)),
    ]
    second = [
        ("t/replaced", {"data": b"new and longer", "mode": 0o600}),
        ("t/.wh.gone", {}),
        ("t/.wh.gone-folder", {}),
        ("t/opaque/", {"type": "folder", "mode": 0o711}),
        ("t/opaque/new", {"data": b"new"}),
        ("t/opaque/.wh..wh..opq", {}),
        ("t/file-then-folder/", {"type": "folder"}),
        ("t/file-then-folder/in", {"data": b"in"}),
        ("t/folder-then-file", {"data": b"file"}),
        ("t/link-then-folder/", {"type": "folder"}),
        ("t/link-then-folder/in", {"data": b"in"}),
        ("t/hard-b", {"data": b"now apart"}),
        ("t/hard-d", {"type": "hardlink", "link": "t/hard-a"}),
        ("t/many/.wh.file-00010-" + "y" * 10, {}),
        ("t/attrs", {"data": b"x", "xattrs": {"user.two": "changed"}}),
        ("usr/share/doc/added", {"data": b"deep in the base"}),
    ]
    third = [("t/gone", {"data": b"back again"}), ("t/.wh.hard-a", {}), ("t/opaque/sub/", {"type": "folder"})]
    return [make_tar(x) for x in (first, second, third)]


class AgainstUmoci(E2E):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not harness.ROOT:
            return
        registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(registry.stop)
        layout = Layout(cls.folder / "pushed").add_layer(harness.base_tar().read_bytes())
        for tar in tricky_layers():
            layout.add_layer(tar)
        layout.finish(Env=["PATH=/usr/bin:/bin"])
        ref = registry.push(layout, "tricky")
        config = cls.home.config("flat", [("more", ["rm /t/keep; echo made > /t/made; ln /t/made /t/made-2"])], base=ref)
        cls.build = cls.home.build(config, "--isolation", "container", "--no-boot-check")
        if cls.build.rc:
            return
        # The very layers of the template, as an image that umoci reads (it refuses zstd).
        same = Layout(cls.folder / "layers")
        for layer in cls.home.manifest("flat")["layers"]:
            same.add_layer(tar_of(cls.home.blob(layer["digest"])))
        same.finish()
        subprocess.run(["umoci", "unpack", "--image", f"{same.folder}:latest", str(cls.folder / "bundle")], check=True,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        cls.theirs = walk(cls.folder / "bundle" / "rootfs")
        cls.ours = json.loads(cls.mounted("walk"))

    @classmethod
    def mounted(cls, what):
        """Runs this file on our image, mounted read-only in a mount namespace that ends with it."""
        point = cls.folder / "mnt"
        point.mkdir(exist_ok=True)
        return subprocess.run(
            ["unshare", "-m", "sh", "-ec", 'mount -o ro,loop,noload "$1" "$2"; "$3" "$4" "$2"; umount "$2"', "sh",
             cls.home.image("flat"), point, sys.executable, __file__], check=True, stdout=subprocess.PIPE).stdout

    def setUp(self):
        self.needs_root()
        self.ok(self.build)

    def test_the_same_names(self):
        ours, theirs = set(self.ours) - {"lost+found"}, set(self.theirs)
        self.assertEqual(sorted(ours - theirs), [], "only in our image")
        self.assertEqual(sorted(theirs - ours), [], "only in umoci's tree")
        self.assertGreater(len(ours), 8000)

    def test_the_same_entries(self):
        wrong = {p: (self.ours[p], self.theirs[p]) for p in sorted(set(self.ours) & set(self.theirs))
                 if self.ours[p] != self.theirs[p]}
        self.assertEqual(wrong, {}, "(ours, umoci's)")

    def test_the_layers_were_applied(self):
        self.assertNotIn("t/gone-folder", self.ours)
        self.assertNotIn("t/opaque/sub/old", self.ours)
        self.assertIn("t/opaque/new", self.ours)
        self.assertEqual(self.ours["t/gone"]["content"], hashlib.sha256(b"back again").hexdigest())
        self.assertEqual(self.ours["t/hard-c"]["same file as"], ["t/hard-c", "t/hard-d"])
        self.assertEqual(self.ours["t/made"]["same file as"], ["t/made", "t/made-2"])

    def test_e2fsck_finds_nothing(self):
        got = subprocess.run(["/sbin/e2fsck", "-fn", self.home.image("flat")], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
        self.assertEqual(got.returncode, 0, got.stdout)


if __name__ == "__main__":
    if len(sys.argv) == 2 and os.path.isdir(sys.argv[1]):
        json.dump(walk(sys.argv[1]), sys.stdout)
    else:
        unittest.main()
