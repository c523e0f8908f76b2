"""The corpus, second part: what tar can say (dialects, long names, numbers, attributes, sparse files)."""
import base64
import struct

from corpus_case import Bad, Block, Char, Dir, Fifo, File, Golden, Holes, Link, Umoci, case
from corpus_tar import EPOCH, Tar, header, padded, pax, record

GNU = b"ustar  \0"
V7 = bytes(8)


def one(name, tar, verdict=None):
    """A case of one layer: a Tar, or the bytes of one."""
    case(name, [tar.bytes() if isinstance(tar, Tar) else tar], verdict or Umoci())


# ---- dialects ----

one("v7", Tar().file("a", "x", magic=V7).add("d/", "\0", magic=V7, mode=0o750).link("l", "a", magic=V7)
    .hard("h", "a", magic=V7).file("d/e", "y", magic=V7))
one("v7-folder-by-slash", Tar().add("d/", "\0", magic=V7, mode=0o700).add("d/f", "\0", data="x", magic=V7)
    .add("e//", "\0", magic=V7))
one("v7-folder-of-type-0", Tar().add("d/", "0", magic=V7, mode=0o700).add("d/f", "0", data="x", magic=V7),
    Golden({"d": Dir(0o700), "d/f": File("x")}, "V7 has no folders but by the slash; umoci makes it a file"))
one("ustar-file-with-slash", Tar().add("e/", "0", data="x"))
one("ustar-prefix", Tar().file("leaf", "x", prefix="p" * 80 + "/" + "q" * 60).dir("d" * 100, prefix="r" * 155)
    .file("f", "y", prefix="p" * 80))
one("gnu", Tar().file("a", "x", magic=GNU).dir("d", magic=GNU).file("d/b", "y", magic=GNU, uid=1234567890))
one("gnu-long-names", Tar().gnu_long("L", "n/" * 90 + "leaf").file("short", "x", magic=GNU)
    .gnu_long("K", "t/" * 90 + "target").link("l", "short", magic=GNU)
    .gnu_long("K", "n/" * 90 + "leaf").gnu_long("L", "h/" * 60 + "hard").hard("h", "short", magic=GNU)
    .gnu_long("L", "d/" * 70).dir("d", magic=GNU).file("after", "y", magic=GNU))
one("gnu-prefix-of-old-go", Tar().file("leaf", "x", magic=GNU, tail=b"a/prefix/where/GNU/has/times"))
one("star", Tar().raw(header("leaf", size=1, tail=b"p" * 131 + b"13000000000\x0013000000001\0" + b"\0" * 8 + b"tar\0") + padded(b"x")))
one("gnu-times-in-prefix", Tar().file("a", "x", magic=GNU, tail=b"13000000000\x0013000000001\0"))
one("pax-long-names", Tar().file("n/" * 90 + "leaf", "x").link("l", "t/" * 90 + "target")
    .hard("h/" * 60 + "hard", "n/" * 90 + "leaf").dir("d/" * 70).file("after", "y"))
one("pax-over-gnu-long-name", Tar().gnu_long("L", "from-gnu-" + "g" * 150).file("x", "1", records={"path": "from-pax"}))
one("pax-link-over-gnu-long-link", Tar().gnu_long("K", "from-gnu").link("x", "y", records={"linkpath": "from-pax"}))
one("type-nul", Tar().add("a", "\0", data="x"))
one("type-contiguous", Tar().add("a", "7", data="x"),
    Golden({"a": File("x")}, "POSIX has '7' be a file; umoci does not know it"))
for kind in "89AZDMNVX":
    one("type-unknown-" + kind, Tar().file("before").add("odd", kind, data="x" if kind not in "X" else ""),
        Bad("CORRUPT", f"entry odd: its tar type is 0x{ord(kind):02x} ('{kind}'), which a layer cannot have"))
one("type-unknown-255", Tar().add("odd", b"\xff"), Bad("CORRUPT", "entry odd: its tar type is 0xff, which a layer"))
one("type-unknown-long-name", Tar().add("odd/" + "n" * 120, "Q"),
    Bad("CORRUPT", "entry odd/" + "n" * 120 + ": its tar type is 0x51 ('Q'), which"))

# ---- PAX records ----

one("pax-global", Tar().raw(pax({"comment": "git", "mtime": "1", "uid": "77", "path": "nowhere"}, "g")).file("a", "x"),
    Golden({"a": File("x")}, "umoci does not know global headers; Docker passes over them"))
one("pax-global-at-end", Tar().file("a", "x").raw(pax({"comment": "end"}, "g")),
    Golden({"a": File("x")}, "umoci does not know global headers; Docker passes over them"))
one("pax-global-malformed", Tar().raw(pax(b"7 broke", "g")).file("a", "x"), Bad("CORRUPT", "tar: "))
one("pax-empty-values", Tar().file("a", "x", uid=5, gid=6, mtime=1_000_000_000,
                                   records={"uid": "", "gid": "", "mtime": "", "path": "", "linkpath": ""}))
one("pax-size", Tar().raw(pax({"size": "5"})).raw(header("a", size=0) + padded(b"12345")).file("b", "y"))
one("pax-ids", Tar().file("a", uid=1, gid=2, records={"uid": "4294967294", "gid": "3000000000"}).dir("d", records={
    "uid": "65536", "gid": "0", "uname": "nobody", "gname": "staff"}))
one("pax-repeated", Tar().raw(pax([("path", "first"), ("path", "second"), ("uid", "1"), ("uid", "2")])).file("x", "1"))
one("pax-unknown-keys", Tar().file("a", "x", records={"VENDOR.thing": "1", "comment": "c", "hdrcharset": "BINARY",
                                                    "MSWINDOWS.fileattr": "32", "LIBARCHIVE.creationtime": "1.5",
                                                    "SCHILY.dev": "1", "SCHILY.ino": "2", "SCHILY.nlink": "9",
                                                    "atime": "2.5", "ctime": "3.5"}))
one("pax-two-headers", Tar().raw(pax({"path": "first"})).raw(pax({"path": "second"})).file("x", "1"))
one("pax-without-entry", Tar().file("a", "x").raw(pax({"path": "nothing"})), Bad("CORRUPT", "tar: "))
one("pax-malformed-length", Tar().raw(pax(b"99 path=a\n")).file("x"), Bad("CORRUPT", "tar: "))
one("pax-malformed-no-equals", Tar().raw(pax(b"8 patha\n")).file("x"), Bad("CORRUPT", "tar: "))
one("pax-malformed-no-newline", Tar().raw(pax(b"9 path=ab9 path=cd")).file("x"), Bad("CORRUPT", "tar: "))
one("pax-malformed-number", Tar().file("x", records={"uid": "12x"}), Bad("CORRUPT", "x: "))
one("pax-malformed-size", Tar().file("x", records={"size": "-5"}), Bad("CORRUPT", "tar: "))
one("pax-malformed-time", Tar().file("x", records={"mtime": "noon"}), Bad("CORRUPT", "x: "))
one("pax-path-with-nul", Tar().file("x", records={"path": b"a\0b"}), Bad("CORRUPT", "tar: "))
one("pax-link-with-nul", Tar().link("x", "y", records={"linkpath": b"a\0b"}), Bad("CORRUPT", "tar: "))
one("pax-folder-with-size", Tar().raw(pax({"size": "512"})).dir("d").file("d/a", "x"),
    Umoci())
one("pax-header-huge", Tar().raw(header("PaxHeaders/x", "x", 1 << 30)),
    Bad("LIMIT", "tar: an extended header of 1073741824 bytes"))

# ---- numbers ----

one("ids-base-256", Tar().file("a", uid=2 ** 21, gid=2 ** 32 - 2).file("b", uid=2 ** 32 - 2, gid=2 ** 31))
one("id-above-range-base-256", Tar().file("a", uid=2 ** 32), Bad("CORRUPT", "entry a: owner 4294967296:0 is out of range"))
one("id-above-range-pax", Tar().file("a", records={"gid": "4294967296"}),
    Bad("CORRUPT", "entry a: owner 0:4294967296 is out of range"))
one("id-no-id", Tar().file("a", records={"uid": "4294967295"}),
    Bad("CORRUPT", "entry a: owner 4294967295:0 is out of range", why="Linux has -1 mean: no change"))
one("id-negative", Tar().file("a", uid=-1), Bad("CORRUPT", "entry a: owner -1:0 is out of range"))
one("numbers-with-blanks", Tar().file("a", "x", mode=b"   755 \0", uid=b"     7 \0", gid=b"7 \0", size=b"          1 ",
                                      mtime=b"13000000000 "))
one("numbers-empty", Tar().file("a", mode=b"\0" * 8, uid=b"\0" * 8, gid=b" " * 8, mtime=b"\0" * 12))
one("numbers-not-octal", Tar().file("a", uid=b"0000089\0"), Bad("CORRUPT", "a"))
one("numbers-not-numbers", Tar().file("a", mode=b"rw-r--r-"), Bad("CORRUPT", "a"))
one("size-negative", Tar().file("a", size=-512), Bad("CORRUPT", "tar: "))
one("size-beyond-all", Tar().file("a", "x", size=1 << 62), Bad("LIMIT", "entry a: a file of 4611686018427387904 bytes"))
one("size-beyond-the-archive", Tar().file("a", "x" * 600, size=1 << 33), Bad("CORRUPT", "entry a: tar: "))
one("sizes-at-block-ends", Tar().file("a", "a" * 511).file("b", "b" * 512).file("c", "c" * 513).file("d", "d" * 4095)
    .file("e", "e" * 4096).file("f", "f" * 4097).file("g", b"\0" * 8192 + b"g").file("h", b"h" + b"\0" * 8191))
one("modes", Tar().file("suid", mode=0o4755).file("sgid", mode=0o2711).file("sticky", mode=0o1644).file("none", mode=0)
    .file("all", mode=0o7777, uid=5, gid=6).dir("d", mode=0o3777, uid=1).file("type-bits", mode=0o100640)
    .dir("d/e", mode=0o40700).link("l", "x", mode=0o600))
case("modes-before-and-after-data", [
    Tar().file("a", "x" * 5000, mode=0o6755, uid=1000, gid=1000, records={
        "SCHILY.xattr.security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}).bytes(),
    Tar().file("a", "y", mode=0o4711, uid=1001).bytes()], Umoci())

# ---- times ----

one("times", Tar().file("zero", mtime=0).file("old", mtime=-1_000_000_000).file("oldest", mtime=-2 ** 31)
    .file("y2038", mtime=2 ** 31).file("y2106", mtime=2 ** 32)
    .link("l", "x", mtime=1_234_567_890).dir("d", mtime=-5).add("p", "6", mtime=77)
    .file("ns", records={"mtime": "1234567890.123456789"}).file("ns-short", records={"mtime": "1234567890.5"})
    .file("ns-long", records={"mtime": "1234567890.1234567899"}).file("ns-old", records={"mtime": "-1.25"})
    .file("ns-nearly", records={"mtime": "-0.25"}).file("dot", records={"mtime": "5."}))
one("times-of-links", Tar().file("a", "x", records={"mtime": "1.5"}).hard("b", "a", records={"mtime": "2.5"})
    .link("c", "a", records={"mtime": "-3.000000001"}))
one("times-beyond-ext4", Tar().file("early", records={"mtime": "-99999999999.5"}).file("y2446", mtime=15_032_385_534)
    .file("late", records={"mtime": "99999999999.5"}).dir("d", records={"mtime": "9223372036854775807"}).file("b256", mtime=-2 ** 40),
    Golden({"early": File(mtime=-2 ** 31), "y2446": File(mtime=15_032_385_534), "late": File(mtime=(15_032_385_535, 0)), "d": Dir(mtime=15_032_385_535),
            "b256": File(mtime=-2 ** 31)},
           "ext4 holds 1901 to 2446: the nearest of them; what umoci shows is the host's file system's"))

# ---- attributes ----

CAP_V2 = bytes.fromhex("0100000200040000000000000000000000000000")
CAP_V3 = bytes.fromhex("010000030004000000000000000000000000000000000000")
CAP_V3_ROOTID = bytes.fromhex("0100000300040000000000000000000000000000e8030000")


def acl(user, named, group, mask, other):
    """In the kernel's form: version 2, then tag, permissions and id of each entry."""
    out, none = struct.pack("<I", 2), 0xFFFFFFFF
    for tag, perm, who in ((1, user, none), (2, named[-1:], int(named.split(":")[0] or 0) if named else 0),
                           (4, group, none), (16, mask, none), (32, other, none)):
        out += struct.pack("<HHI", tag, int(perm), who) if perm else b""
    return out


ACL = acl("6", "1000:6", "4", "6", "4")
MODE_ACL = acl("6", "", "4", "", "0")


def attrs(**kw):
    return {"SCHILY.xattr." + k: v for k, v in kw.items()}


one("xattrs", Tar().file("a", "x", records={"SCHILY.xattr.user.k": b"v\0\n=\xff", "SCHILY.xattr.user.l": "v=w"})
    .dir("d", records={"SCHILY.xattr.user.d": "1"}).file("many", records={
        f"SCHILY.xattr.user.n{i}": "v" * i for i in range(1, 40)}).file("big", records={"SCHILY.xattr.user.b": "b" * 3900}))
one("xattrs-replaced-whole", Tar().dir("d", records=attrs(**{"user.a": "1"})).dir("d", records=attrs(**{"user.b": "2"}))
    .file("f", records=attrs(**{"user.a": "1"})).file("f"))
one("xattr-name-with-equals", Tar().file("a", records={"SCHILY.xattr.user.with=equals": "no"}),
    Golden({"a": File(xattrs={"user.with": "equals=no"})}, "PAX cannot say it: the first = ends the key"))
one("xattrs-binary", Tar().file("a", "x", records={"SCHILY.xattr.user.k": b"v\0\n=\xff\0"})
    .file("b", records={"SCHILY.xattr.user.\xff".encode("latin-1"): b"\xff"}))
one("xattrs-empty-value", Tar().file("a", "x", records={"SCHILY.xattr.user.none": "", "SCHILY.xattr.user.some": "s"}))
one("xattrs-libarchive", Tar().file("a", "x", records={
    "LIBARCHIVE.xattr.user.k": base64.b64encode(b"v\0alue").rstrip(b"="),
    "LIBARCHIVE.xattr.user.sp%20ace%3d": base64.b64encode(b"longer value")}),
    Golden({"a": File("x", xattrs={"user.k": b"v\0alue", "user.sp ace=": b"longer value"})},
           "bsdtar writes them, umoci does not know them"))
one("xattrs-both-spellings", Tar().file("a", "x", records={
    "SCHILY.xattr.user.k": "same", "LIBARCHIVE.xattr.user.k": base64.b64encode(b"same")}),
    Golden({"a": File("x", xattrs={"user.k": "same"})}, "bsdtar writes both, umoci reads one"))
one("xattrs-dropped", Tar().file("a", "x", records=attrs(**{
    "trusted.secret": "1", "trusted.overlay.opaque": "y", "security.selinux": "label", "security.ima": "sig",
    "security.evm": "sig", "security.unknown": "x", "system.nfs4_acl": "acl", "user.overlay.whiteout": "y", "user.kept": "k",
    "btrfs.compression": "zstd", "com.apple.provenance": "x"})),
    Golden({"a": File("x", xattrs={"user.kept": "k"})}, "labels belong to a host; containerd refuses or drops them, umoci "
                                                      "sets what the host lets it"))
one("xattrs-where-linux-has-none", Tar().link("l", "x", records=attrs(**{"user.k": "v"}))
    .add("p", "6", records=attrs(**{"user.k": "v"})).add("c", "3", dev=(1, 3), records=attrs(**{"user.k": "v"})),
    Golden({"l": Link("x"), "p": Fifo(), "c": Char(1, 3)}, "Linux has no user attributes there: umoci warns, we drop them"))
one("capabilities", Tar().file("v2", "x", mode=0o755, records=attrs(**{"security.capability": CAP_V2}))
    .file("v2-owned", "x", mode=0o4755, uid=7, records=attrs(**{"security.capability": CAP_V2})))
one("capabilities-v3", Tar().file("v3", "x", mode=0o755, records=attrs(**{"security.capability": CAP_V3_ROOTID})))
one("capabilities-v3-root", Tar().file("v3", "x", records=attrs(**{"security.capability": CAP_V3})),
    Golden({"v3": File("x", xattrs={"security.capability": CAP_V3})}, "the kernel rewrites it as version 2 under umoci"))
one("acls", Tar().file("a", "x", mode=0o664, records=attrs(**{"system.posix_acl_access": ACL}))
    .dir("d", mode=0o664, records=attrs(**{"system.posix_acl_default": ACL, "system.posix_acl_access": ACL})))
one("acl-that-is-the-mode", Tar().file("a", "x", mode=0o640, records=attrs(**{"system.posix_acl_access": MODE_ACL}))
    .dir("d", mode=0o640, records=attrs(**{"system.posix_acl_default": MODE_ACL, "system.posix_acl_access": MODE_ACL})))
one("acl-against-mode", Tar().file("a", "x", mode=0o4751, records=attrs(**{"system.posix_acl_access": ACL}))
    .file("b", "y", mode=0o600, records=attrs(**{"system.posix_acl_access": MODE_ACL})),
    Golden({"a": File("x", mode=0o4751, xattrs={"system.posix_acl_access": acl("7", "1000:6", "4", "5", "1")}),
            "b": File("y", mode=0o600)},
           "Docker sets the mode last, and the kernel has the ACL follow it; umoci sets the ACL last"))
one("acl-malformed", Tar().file("a", records=attrs(**{"system.posix_acl_access": b"\1\0\0\0"})),
    Bad("CORRUPT", "entry a: a malformed POSIX ACL"))
one("acl-default-on-a-file", Tar().file("a", records=attrs(**{"system.posix_acl_default": ACL})),
    Golden({"a": File()}, "only folders have one: umoci fails, we drop it"))
one("xattrs-too-large", Tar().file("a", records={"SCHILY.xattr.user.k": "v" * 5000}),
    Bad("LIMIT", "entry a: the extended attribute user.k is too large (5000 bytes)"))
one("xattrs-too-many", Tar().file("a", records={f"SCHILY.xattr.user.k{i}": "v" * 1000 for i in range(8)}),
    Bad("LIMIT", "entry a: its extended attributes do not fit into an inode and one block of 4096 bytes"))
one("xattrs-name-of-255", Tar().file("a", records={"SCHILY.xattr.user." + "n" * 250: "v"}))
one("xattrs-name-of-256", Tar().file("a", records={"SCHILY.xattr.user." + "n" * 256: "v"}),
    Bad("LIMIT", "entry a: the extended attribute user.nnn"))

# ---- devices ----

one("devices", Tar().add("null", "3", dev=(1, 3), mode=0o666).add("tty", "3", dev=(4, 64), gid=5, mode=0o620)
    .add("sda", "4", dev=(8, 0)).add("zero-block", "4", dev=(0, 0)).add("nvme", "4", dev=(259, 65537))
    .add("last", "3", dev=(4095, 1048575)).add("p", "6", mode=0o600))
one("device-0-0", Tar().add("c", "3", dev=(0, 0)), Bad("CORRUPT", "entry c: a character device 0:0"))
one("device-major-above-range", Tar().add("c", "3", dev=(4096, 0)), Bad("CORRUPT", "entry c: device number 4096:0 is out"))
one("device-minor-above-range", Tar().add("c", "4", dev=(1, 1 << 20)), Bad("CORRUPT", "entry c: device number 1:1048576 is"))
one("device-beyond-32-bits", Tar().add("c", "3", dev=((1 << 32) + 1, 3)), Bad("CORRUPT", "entry c: device number"))
one("device-negative", Tar().add("c", "3", dev=(1, -3)), Bad("CORRUPT", "entry c: device number"))
one("device-with-size", Tar().add("c", "3", dev=(1, 3), size=512).file("next", "x"))

# ---- sizes on what has no data ----

one("folder-with-size", Tar().dir("d", size=512).file("d/a", "x"))
one("link-with-size", Tar().link("l", "x", size=1024).file("a", "x"))
one("hardlink-with-size", Tar().file("a", "x" * 700).hard("b", "a", size=700).file("c", "y"))
one("hardlink-with-size-in-pax", Tar().file("a", "x" * 700, records={"mtime": "5.5"}).hard("b", "a", size=700).file("c", "y"))
one("hardlink-with-size-at-end", Tar().file("a", "x" * 700).hard("b", "a", size=700))

# ---- sparse files ----

PIECES = {0: b"start" * 100, 65536: b"m" * 4096, 131072: b"end"}
SIZE = 200_000


def gnu_map(pieces):
    return b"".join(b"%011o\0%011o\0" % (at, len(d)) for at, d in pieces)


def old_sparse(name, pieces, size, stored=None):
    """GNU's old format: four pieces in the header, 21 in each block that follows."""
    pieces = sorted(pieces.items())
    data = b"".join(d for _, d in pieces)
    rest = pieces[4:]
    tail = (bytes(41) + gnu_map(pieces[:4]).ljust(96, b"\0") + (b"\1" if rest else b"\0") + b"%011o\0" % size)
    out = header(name, "S", stored if stored is not None else len(data), magic=GNU, tail=tail)
    while rest:
        more, rest = rest[:21], rest[21:]
        out += (gnu_map(more).ljust(504, b"\0") + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return out + padded(data)


def pax_sparse(version, name, pieces, size):
    pieces = sorted(pieces.items())
    data = b"".join(d for _, d in pieces)
    if version == "0.0":
        keys = [("GNU.sparse.size", str(size)), ("GNU.sparse.numblocks", str(len(pieces)))]
        for at, d in pieces:
            keys += [("GNU.sparse.offset", str(at)), ("GNU.sparse.numbytes", str(len(d)))]
        return pax(keys) + header(name, "0", len(data)) + padded(data)
    if version == "0.1":
        text = ",".join(f"{at},{len(d)}" for at, d in pieces)
        return pax([("GNU.sparse.size", str(size)), ("GNU.sparse.numblocks", str(len(pieces))),
                    ("GNU.sparse.name", name), ("GNU.sparse.map", text)]) + \
            header("GNUSparseFile.1/x", "0", len(data)) + padded(data)
    text = padded(f"{len(pieces)}\n".encode() + b"".join(b"%d\n%d\n" % (at, len(d)) for at, d in pieces))
    return pax([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", name),
                ("GNU.sparse.realsize", str(size))]) + \
        header("GNUSparseFile.1/x", "0", len(text) + len(data)) + text + padded(data)


MANY = {i * 8192: bytes([65 + i % 26]) * 4096 for i in range(60)}
WHY_HOLES = "umoci has the same bytes, but not the holes; GNU's old format it does not know"
for version in ("gnu", "0.0", "0.1", "1.0"):
    for name, pieces, size in (("few", PIECES, SIZE), ("many", MANY, 60 * 8192)):
        made = old_sparse("s", pieces, size) if version == "gnu" else pax_sparse(version, "s", pieces, size)
        if version != "gnu":
            one(f"sparse-{version}-{name}", Tar().raw(made).file("next", "n"))
        one(f"sparse-{version}-{name}-holes", Tar().raw(made).file("next", "n"),
            Golden({"s": Holes(size, pieces), "next": File("n")}, WHY_HOLES))
one("sparse-all-hole", Tar().raw(old_sparse("a", {}, 1 << 20)).raw(pax_sparse("1.0", "b", {}, 1 << 20)),
    Golden({"a": Holes(1 << 20, {}), "b": Holes(1 << 20, {})}, WHY_HOLES))
one("sparse-empty", Tar().raw(old_sparse("a", {}, 0)).raw(pax_sparse("1.0", "b", {}, 0)).file("c"),
    Golden({"a": File(), "b": File(), "c": File()}, WHY_HOLES))
one("sparse-odd-places", Tar().raw(pax_sparse("1.0", "s", {1: b"a", 4095: b"bc", 10_000: b"d" * 5000}, 20_001)))
one("sparse-zero-pieces", Tar().raw(pax_sparse("1.0", "s", {0: b"", 512: b"x", 8192: b""}, 8192)))
one("sparse-hardlink", Tar().raw(pax_sparse("1.0", "s", PIECES, SIZE)).hard("t", "s"))
one("sparse-unknown-version", Tar().raw(pax_sparse("1.0", "s", PIECES, SIZE).replace(b"GNU.sparse.major=1", b"GNU.sparse.major=2")),
    Bad("CORRUPT", "a sparse file of an unknown format"))
one("sparse-out-of-order", Tar().raw(pax_sparse("0.1", "s", {0: b"a" * 512, 512: b"b" * 512}, 2048)
                                     .replace(b"0,512,512,512", b"512,512,0,512")), Bad("CORRUPT", "entry s: tar: "))
one("sparse-overlap", Tar().raw(pax_sparse("0.1", "s", {0: b"a" * 512, 512: b"b" * 512}, 2048)
                                .replace(b"0,512,512,512", b"0,512,100,512")), Bad("CORRUPT", "entry s: tar: "))
one("sparse-beyond-its-size", Tar().raw(pax_sparse("1.0", "s", {0: b"a" * 512, 4096: b"b" * 512}, 4200)),
    Bad("CORRUPT", "entry s: tar: "))
one("sparse-more-in-map-than-data", Tar().raw(old_sparse("s", {0: b"a" * 512, 4096: b"b" * 512}, 8192, stored=512))
    .file("next", "n"), Bad("CORRUPT", "s"))
one("sparse-map-malformed", Tar().raw(pax_sparse("1.0", "s", {0: b"a" * 512}, 512).replace(b"1\n0\n512\n", b"1\n0\nx12\n")),
    Bad("CORRUPT", "s"))
one("sparse-map-endless", Tar().raw(pax_sparse("1.0", "s", {0: b"a" * 512}, 512).replace(b"1\n0\n512\n", b"9\n0\n512\n")),
    Bad("CORRUPT", "s"))

# ---- long names and deep paths ----

one("name-of-255", Tar().file("n" * 255, "x").dir("d" * 255).file("d" * 255 + "/" + "e" * 255, "y").link("l" * 255, "t"))
one("name-of-256", Tar().file("n" * 256), Bad("CORRUPT", "a name of 256 bytes; the most is 255"))
one("name-of-256-in-parent", Tar().file("d/" + "n" * 256 + "/x"), Bad("CORRUPT", "a name of 256 bytes; the most is 255"))
PATH_4096 = "/".join(["d" * 254] * 16) + "/" + "e" * 15 + "f"
assert len(PATH_4096) == 4096
one("path-of-4095", Tar().file(PATH_4096[:-1], "x").file("next", "y"),
    Golden(dict({"/".join(["d" * 254] * n): Dir() for n in range(1, 17)}, **{PATH_4096[:-1]: File("x"), "next": File("y")}),
           "longer than any path that umoci can name on its host"))
one("path-of-4096", Tar().file(PATH_4096, "x"),
    Golden(dict({"/".join(["d" * 254] * n): Dir() for n in range(1, 17)}, **{PATH_4096: File("x")}),
           "longer than any path that umoci can name on its host"))
one("path-of-4097", Tar().file(PATH_4096 + "g"), Bad("LIMIT", "a path above 4096 bytes"))
one("path-of-10000", Tar().file("d/" * 5000 + "x"), Bad("LIMIT", "a path above 4096 bytes"))
one("path-deep", Tar().file("d/" * 1000 + "x", "deep"))
case("path-deeper-by-links", [
    Tar().dir("d/" * 1000).link("l", "d/" * 1000).dir("d/" * 1000 + "e/" * 1000).link("d/" * 1000 + "m", "e/" * 1000).bytes(),
    Tar().dir("l/m/" + "f/" * 60).bytes()], Bad("LIMIT", "folders nested deeper than 2048", layer=2))
one("link-of-4095", Tar().link("l", "t" * 4095).link("m", "t" * 59).link("n", "t" * 60))
one("link-of-4096", Tar().link("l", "t" * 4096), Bad("LIMIT", "entry l: a symbolic link to a path of 4096 bytes"))
one("link-to-nothing", Tar().link("l", ""), Bad("CORRUPT", "entry l: a symbolic link to nothing"))
one("name-empty", Tar().file("", "x"), Bad("CORRUPT", "root"))
one("name-of-slashes", Tar().file("///", "x"), Bad("CORRUPT", "the root can only be a folder"))
