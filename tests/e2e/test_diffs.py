"""Both builders run one script; the layers that they take out must be the same, entry by entry."""

import unittest

from harness import E2E, tar_entries

# Files whose bytes hold the time of their making: their size and content may differ, nothing else.
HOLD_TIMES = {
    "etc/shadow",                       # the day a password was set
    "etc/shadow-",
    "var/cache/apt/pkgcache.bin",       # times of the lists
    "var/cache/apt/srcpkgcache.bin",
    "var/cache/ldconfig/aux-cache",     # inode numbers and times
    "var/log/alternatives.log",
    "var/log/apt/eipp.log.xz",
    "var/log/apt/history.log",
    "var/log/apt/term.log",
    "var/log/dpkg.log",
}

# What the second layer finds: made by a layer of its own, so that it lies below.
BELOW = r"""
mkdir -p /t/rename-me/sub /t/opaque/deep /t/delete-folder/sub /t/moved-from /t/times
echo a > /t/rename-me/sub/a; echo b > /t/rename-me/b
echo old > /t/opaque/old; echo old > /t/opaque/deep/old
echo x > /t/delete-folder/sub/x; echo y > /t/delete-file
echo one > /t/hard-1; ln /t/hard-1 /t/hard-2; ln /t/hard-1 /t/hard-3
echo mode > /t/mode; echo owner > /t/owner; echo same > /t/same; echo append > /t/append
ln -s /t/same /t/link; ln -s nowhere /t/dangling
echo file > /t/file-to-folder; mkdir /t/folder-to-file; echo in > /t/folder-to-file/in
echo link > /t/file-to-link; truncate -s 4M /t/grown
mkfifo /t/fifo-to-go
"""

CHANGES = [
    # renames of files and folders, within and between folders
    "mv /t/rename-me/b /t/moved-from/b; mv /t/rename-me /t/renamed 2>/dev/null || "
    "{ cp -a /t/rename-me /t/renamed && rm -r /t/rename-me; }",
    # deletes, and a folder that was emptied and made again
    "rm /t/delete-file; rm -r /t/delete-folder; rm -r /t/opaque; mkdir /t/opaque; echo new > /t/opaque/new; "
    "rm /t/fifo-to-go",
    # hard links: new ones, one more to an old file, one broken off
    "echo h > /t/new-1; ln /t/new-1 /t/new-2; mkdir /t/d; ln /t/new-1 /t/d/new-3; ln /t/hard-1 /t/hard-4; "
    "rm /t/hard-2; echo more >> /t/hard-3",
    # metadata alone; what is no change at all; kinds that turn into others
    "chmod 4751 /t/mode; chown 12345:70000 /t/owner; chmod 644 /t/same; touch -c -d @1 /t/times; echo + >> /t/append; "
    "ln -sfn /t/append /t/link; rm /t/dangling; rm /t/file-to-folder; mkdir -m 1777 /t/file-to-folder; "
    "rm -r /t/folder-to-file; echo f > /t/folder-to-file; ln -sf mode /t/file-to-link",
    # special files, long and odd names
    "mkfifo -m 600 /t/fifo; mknod /t/null c 1 3; n=$(printf 'n%.0s' $(seq 250)); echo l > /t/$n; ln -s $n$n$n /t/far; "
    "echo u > '/t/naïve ☂ name'; echo q > \"/t/quote'and space\"; printf x > $'/t/new\\nline'",
    # sparse files, large and small
    "truncate -s 64M /t/sparse; printf end | dd of=/t/sparse bs=1 seek=50000000 conv=notrunc status=none; "
    "truncate -s 1G /t/hole; printf mid | dd of=/t/grown bs=1 seek=2000000 conv=notrunc status=none",
    # attributes and capabilities
    "perl -e 'my ($p, $n, $v) = (\"/t/append\", \"user.note\", \"kept\"); "
    "syscall(188, $p, $n, $v, 4, 0) == 0 or die \"setxattr: $!\"'",
    # users
    "useradd -m -u 4321 -s /bin/bash carol; su carol -c 'echo hers > ~/hers; chmod 600 ~/hers'",
    # one package, and what it is for
    "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libcap2-bin "
    ">/dev/null && apt-get clean && rm -rf /var/lib/apt/lists/*",
    "cp /bin/true /t/capable; setcap cap_net_bind_service=+ep /t/capable; getcap /t/capable",
    # processes that a layer leaves running do not write into the next one
    "(while :; do touch /t/ticking; sleep 0.1; done) >/dev/null 2>&1 & sleep 0.5",
]
AFTER = ["rm -f /t/ticking; test ! -e /t/delete-file; sleep 0.5; test ! -e /t/ticking; cat /t/opaque/new; echo end > /t/end"]


class BothBuilders(E2E):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.built, cls.diffs = {}, {}
        for builder in ("container", "vm"):
            home = cls.new_home(builder)
            config = home.config("diffs", [("below", [BELOW]), ("changes", CHANGES), ("after", AFTER)])
            cls.built[builder] = got = home.build(config, "--isolation", builder, "--no-boot-check")
            if got.rc == 0:
                cls.diffs[builder] = {n: tar_entries(home.cached_layer(n)) for n in ("below", "changes", "after")}

    def setUp(self):
        for got in self.built.values():
            self.ok(got)
        self.tars = {b: d["changes"] for b, d in self.diffs.items()}

    def test_the_same_names(self):
        for layer in ("below", "changes", "after"):
            vm, container = (set(self.diffs[b][layer]) for b in ("vm", "container"))
            self.assertEqual(sorted(vm - container), [], f"{layer}: only from the vm")
            self.assertEqual(sorted(container - vm), [], f"{layer}: only from the container")

    def test_the_same_entries(self):
        for layer in ("below", "changes", "after"):
            vm, container = (self.diffs[b][layer] for b in ("vm", "container"))
            wrong = {}
            for path in sorted(set(vm) & set(container)):
                a, b = dict(vm[path]), dict(container[path])
                if path in HOLD_TIMES:
                    for facts in (a, b):
                        facts.pop("size", None)
                        facts.pop("content", None)
                if a != b:
                    wrong[path] = (a, b)
            self.assertEqual(wrong, {}, f"{layer}: vm and container differ")

    def each(self, path):
        for builder, tar in self.tars.items():
            with self.subTest(builder=builder, path=path):
                self.assertIn(path, tar)
                yield tar[path], tar

    def absent(self, path):
        for builder, tar in self.tars.items():
            with self.subTest(builder=builder, path=path):
                self.assertNotIn(path, tar)

    def test_deletes_are_whiteouts(self):
        for name in ("t/.wh.delete-file", "t/.wh.delete-folder", "t/.wh.rename-me", "t/.wh.hard-2", "t/.wh.dangling"):
            for e, tar in self.each(name):
                self.assertEqual((e["type"], e["size"]), ("file", 0))
        self.absent("t/.wh..wh..opq")
        for e, tar in self.each("t/opaque/new"):
            self.assertTrue("t/opaque/.wh..wh..opq" in tar or {"t/opaque/.wh.old", "t/opaque/.wh.deep"} <= set(tar))

    def test_what_did_not_change_is_not_in_the_diff(self):
        for path in ("t/same", "bin", "usr/bin/bash", "proc/version", "dev/null", "etc/resolv.conf", "etc/hosts",
                     "etc/hostname", "run/lock"):
            self.absent(path)

    def test_hard_links(self):
        for e, tar in self.each("t/new-1"):
            self.assertEqual(e["same file as"], ["t/d/new-3", "t/new-1", "t/new-2"])

    def test_metadata(self):
        for e, _ in self.each("t/mode"):
            self.assertEqual(e["mode"], oct(0o4751))
        for e, _ in self.each("t/owner"):
            self.assertEqual(e["owner"], (12345, 70000))
        for e, _ in self.each("t/append"):
            self.assertEqual(e["xattrs"], {"user.note": "kept"})
        for e, _ in self.each("t/capable"):
            self.assertEqual(list(e["xattrs"]), ["security.capability"])
        for e, _ in self.each("t/null"):
            self.assertEqual((e["type"], e["device"]), ("char", (1, 3)))
        for e, _ in self.each("t/far"):
            self.assertEqual(len(e["link"]), 750)
        for e, _ in self.each("t/file-to-folder"):
            self.assertEqual((e["type"], e["mode"]), ("folder", oct(0o1777)))

    def test_sparse_files(self):
        for e, _ in self.each("t/sparse"):
            self.assertEqual(e["size"], 64 << 20)
        for e, _ in self.each("t/hole"):
            self.assertEqual(e["size"], 1 << 30)

    def test_users_and_package(self):
        for e, _ in self.each("home/carol/hers"):
            self.assertEqual((e["owner"], e["mode"]), ((4321, 4321), oct(0o600)))
        for e, _ in self.each("usr/sbin/setcap"):
            self.assertEqual(e["owner"], (0, 0))

    def test_nothing_of_overlayfs_shows(self):
        for builder, layers in self.diffs.items():
            for layer, tar in layers.items():
                for path, e in tar.items():
                    bad = [x for x in e["xattrs"] if "overlay" in x]
                    self.assertEqual(bad, [], f"{builder} {layer} {path}")


if __name__ == "__main__":
    unittest.main()
