"""Layers that use what tar and the image specification allow and few images do."""
import io
import tarfile

ACL_USER_1000_RW = bytes.fromhex(  # the kernel's form: version 2, then tag, permissions, id
    "02000000" "0100" "0600" "ffffffff" "0200" "0600" "e8030000"
    "0400" "0400" "ffffffff" "1000" "0600" "ffffffff" "2000" "0400" "ffffffff")
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep, v2


class Layer:
    def __init__(self, fmt=tarfile.PAX_FORMAT):
        self.raw = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.raw, mode="w", format=fmt, encoding="utf-8",
                                errors="surrogateescape")
        self.clock = 1_600_000_000

    def add(self, name, kind=tarfile.REGTYPE, data=b"", mode=None, uid=0, gid=0, link="", mtime=None,
            xattrs=None, dev=(0, 0), pax=None):
        e = tarfile.TarInfo(name)
        e.type, e.size, e.linkname = kind, len(data), link
        e.mode = mode if mode is not None else (0o755 if kind == tarfile.DIRTYPE else 0o644)
        e.uid, e.gid = uid, gid
        self.clock += 7
        e.mtime = self.clock if mtime is None else mtime
        e.devmajor, e.devminor = dev
        e.pax_headers = dict(pax or {})
        for key, value in (xattrs or {}).items():
            e.pax_headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
        self.tar.addfile(e, io.BytesIO(data))

    def dir(self, name, **kw):
        self.add(name, tarfile.DIRTYPE, **kw)

    def symlink(self, name, target, **kw):
        self.add(name, tarfile.SYMTYPE, link=target, mode=0o777, **kw)

    def hardlink(self, name, target):
        self.add(name, tarfile.LNKTYPE, link=target)

    def bytes(self):
        self.tar.close()
        return self.raw.getvalue()


def base():
    la = Layer()
    la.dir("./", mode=0o711, mtime=1_500_000_000)
    for d in ("etc", "usr", "usr/bin", "usr/lib", "var", "home", "home/user", "opt", "tmp"):
        la.dir(d + "/", mode=0o1777 if d == "tmp" else None)
    la.symlink("bin", "usr/bin")
    la.symlink("var/run", "/run/deep/er")  # dangles until something is put below it
    la.symlink("fast", "x" * 59)
    la.symlink("slow", "y" * 60)
    la.symlink("longest", "/".join(["z" * 200] * 20))
    la.add("etc/passwd", data=b"root:x:0:0::/:/bin/sh\n")
    la.add("usr/bin/su", data=b"\x7fELF" + bytes(9000), mode=0o4755)
    la.add("usr/bin/ping", data=b"ping", mode=0o755, xattrs={"security.capability": CAPABILITY})
    la.add("usr/bin/mail", data=b"mail", mode=0o2755, gid=8)
    la.hardlink("usr/bin/ping6", "usr/bin/ping")
    la.hardlink("usr/bin/ping-also", "./usr/bin/ping")
    la.hardlink("etc/passwd-", "/etc/passwd")
    la.hardlink("bin-link", "bin")  # of the link itself
    la.add("home/user/big-ids", data=b"x", uid=3_000_000_000, gid=4_294_967_293)
    la.add("home/user/notes", data=b"n", xattrs={"user.note": b"a\0b\n=\xff", "user.empty": b""})
    la.add("home/user/many", data=b"n", xattrs={f"user.k{i:03}": b"v" * i for i in range(40)})
    la.add("home/user/acl", data=b"a", mode=0o664,
           xattrs={"system.posix_acl_access": ACL_USER_1000_RW})
    la.add("etc/before-1970", data=b"old", mtime=-1_000_000_000)
    la.add("etc/beyond-2038", data=b"new", mtime=5_000_000_000)
    la.add("etc/nanoseconds", data=b"ns", pax={"mtime": "1234567890.123456789"})
    la.add("etc/fraction-before-1970", data=b"ns", pax={"mtime": "-1.25"})
    la.add("n" * 255, data=b"name of 255 bytes")
    la.add("/".join(["d" * 100] * 12) + "/leaf", data=b"deep path")
    la.add("na\u00efve-\u65e5\u672c/\U0001f600", data=b"utf-8")
    la.add("nfd-e\u0301", data=b"decomposed stays decomposed")
    la.add("dev/tty0", tarfile.CHRTYPE, dev=(4, 0), mode=0o620, gid=5)
    la.add("dev/sda", tarfile.BLKTYPE, dev=(8, 0), mode=0o660)
    la.add("dev/nvme", tarfile.BLKTYPE, dev=(259, 65_537))
    la.add("run/fifo", tarfile.FIFOTYPE, mode=0o600)
    la.add("empty", data=b"")
    la.add("block", data=b"b" * 4096)
    la.add("zeros", data=bytes(3 << 20))
    la.add("mixed", data=bytes(1 << 20) + b"m" * 5000 + bytes(1 << 20) + b"e")
    for i in range(3000):
        la.add(f"crowd/{'c' * (i % 60)}-{i}", data=b"%d" % i)
    for d in ("gone", "opaque", "kept", "replaced-by-file", "merged"):
        la.dir(d, uid=7)
        la.dir(d + "/sub")
        la.add(d + "/sub/lower", data=b"lower")
        la.add(d + "/lower", data=b"lower")
    la.add("replaced-by-dir", data=b"file")
    la.add("shared-1", data=b"shared between three names")
    la.hardlink("shared-2", "shared-1")
    la.hardlink("shared-3", "shared-1")
    la.add("twice", data=b"first")
    la.add("twice", data=b"second wins", mode=0o600)
    return la.bytes()


def middle():
    la = Layer(tarfile.GNU_FORMAT)
    la.add("bin/through-link", data=b"lands in usr/bin")
    la.add("var/run/made", data=b"lands in /run/deep/er")
    la.add(".wh.gone")
    la.dir("opaque", mode=0o700)
    la.add("opaque/before", data=b"written before the marker")
    la.add("opaque/.wh..wh..opq")
    la.add("opaque/after", data=b"written after the marker")
    la.add("kept/.wh.lower")
    la.add("kept/.wh.never-was")
    la.add("nowhere/.wh.nothing")
    la.add("replaced-by-file", data=b"now a file")
    la.dir("replaced-by-dir", mode=0o750, uid=12)
    la.add("replaced-by-dir/inside", data=b"i")
    la.dir("merged", mode=0o500, uid=9, gid=9)
    la.add("merged/upper", data=b"u")
    la.add("shared-1", data=b"only this name changes")
    la.hardlink("new-name", "shared-2")  # of a file of the layer below
    la.add("etc/.wh.passwd")  # the other name stays
    la.add("re-added/file", data=b"survives")
    la.add(".wh.re-added")
    la.symlink("etc/l" + "o" * 120 + "ng", "t" * 150)
    la.add("n" * 255, data=b"replaced", mode=0o600)
    for i in range(0, 3000, 3):
        la.add(f"crowd/.wh.{'c' * (i % 60)}-{i}")
    return la.bytes()


def top():
    la = Layer()
    la.dir("home/user", mode=0o700, uid=1000, gid=1000, xattrs={"user.dir": b"d"})
    la.add("opaque/top", data=b"t")
    la.symlink("block", "replaces a file")
    la.add("slow", data=b"replaces a symbolic link")
    la.add("dev/.wh.sda")
    la.dir("tmp", mode=0o1777)
    return la.bytes()


def all_layers():
    return [base(), middle(), top()]
