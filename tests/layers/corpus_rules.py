"""The corpus, first part: how layers apply (whiteouts, replacing, links, parents)."""
from corpus_case import Bad, Dir, File, Golden, Umoci, case, lines, simple
from corpus_tar import Tar

DOCKER_DOTDOT = "umoci puts .. at the root; Docker refuses the name, and so do we"

# ---- replacing ----

simple("replace-file", "F a one", "F a two")
simple("replace-longer-by-shorter", "F a " + "x" * 90, "F a y")
simple("twice-in-one-layer", "F a one\nF a two")
simple("twice-as-other-kinds", "F a one\nD a\nF a/x x\nS a b\nF a last")
simple("folder-over-folder", "D d\nF d/x x\nD d/s\nF d/s/y y", "D d\nF d/z z")
simple("file-over-folder", "D d\nF d/x x\nD d/s\nF d/s/y y", "F d file")
simple("folder-over-file", "F d x", "D d\nF d/x y")
simple("file-over-folder-and-back", "D d\nF d/x x", "F d file", "D d\nF d/y y", "F d again")
simple("folder-over-link", "D t\nF t/x x\nS d t", "D d\nF d/y y")
simple("folder-over-dangling-link", "S d nowhere", "D d\nF d/y y")
simple("folder-over-hardlink", "F a x\nH b a", "D b\nF b/y y")
simple("file-over-link", "D t\nS d t\nF f f\nS g f", "F d x\nF g g")
simple("link-over-folder", "D d\nF d/x x\nD t\nF t/y y", "S d t")
simple("link-over-file", "F a x", "S a b")
case("folder-attributes-replaced", [
    Tar().dir("d", mode=0o2770, uid=5, gid=6, mtime=1_000_000_000, records={"SCHILY.xattr.user.old": "1"})
    .file("d/x", "x").bytes(),
    Tar().dir("d", mode=0o701, mtime=1_100_000_000, records={"SCHILY.xattr.user.new": "2"}).bytes()], Umoci())
case("folder-times-after-children", [
    Tar().dir("d", mtime=1_000_000_000).file("d/x", "x", mtime=1_500_000_000).dir("d/s", mtime=1_000_000_001)
    .file("d/s/y", "y", mtime=1_500_000_001).bytes()], Umoci())
case("folder-times-after-upper-children", [
    Tar().dir("d", mtime=1_000_000_000).file("d/x", "x").bytes(),
    Tar().file("d/y", "y", mtime=1_500_000_000).file("d/.wh.x").bytes()], Umoci())

# ---- whiteouts ----

simple("whiteout-file", "F a x\nF b y", "F .wh.a")
simple("whiteout-folder", "D d\nD d/e\nF d/e/f x\nF g g", "F .wh.d")
simple("whiteout-before-new", "F a x", "F .wh.a\nF a y")
simple("whiteout-after-new", "F a x", "F a y\nF .wh.a")
simple("whiteout-before-new-folder", "D d\nF d/x x", "F .wh.d\nD d\nF d/y y")
simple("whiteout-after-new-folder", "D d\nF d/x x\nD d/s\nF d/s/x x", "D d\nF d/y y\nF .wh.d")
simple("whiteout-middle-layer", "F a x", "F .wh.a", "F a y")
simple("whiteout-of-own-layer-alone", "F b b", "F a x\nF .wh.a")
simple("whiteout-parent-with-new-child", "D d\nF d/x x\nD d/e\nF d/e/x x", "F d/e/y y\nF .wh.d")
simple("whiteout-parent-before-new-child", "D d\nF d/x x\nD d/e\nF d/e/x x", "F .wh.d\nF d/e/y y")
simple("whiteout-missing", "F a x", "F .wh.b")
simple("whiteout-missing-parent", "F a x", "F no/.wh.b\nF no/where/.wh.c")
simple("whiteout-parent-is-file", "F a x", "F a/.wh.b")
simple("whiteout-dead-link-parent", "S dead nowhere", "F dead/.wh.x")
simple("whiteout-through-link", "D t\nF t/x x\nF t/y y\nS d t", "F d/.wh.x")
simple("whiteout-through-absolute-link", "D t\nF t/x x\nS d /t", "F d/.wh.x")
simple("whiteout-of-link", "D t\nF t/x x\nS d t", "F .wh.d")
simple("whiteout-of-dead-link", "S dead nowhere", "F .wh.dead")
simple("whiteout-name-with-dots", "F ..a x\nF ... y\nF .b z", "F .wh...a\nF .wh..b\nF .wh.....")
case("whiteout-any-type", [
    lines("D d\nF d/x x\nF e x\nF f x\nF g x\nF h x\nF i x"),
    Tar().dir(".wh.d").link(".wh.e", "x").add(".wh.f", "3", dev=(0, 0)).add(".wh.g", "6")
    .file(".wh.h", "with content" * 100).hard(".wh.i", "nothing").bytes()], Umoci())
simple("whiteout-folder-in-path", "D d\nF d/x x", "F .wh.d/inside x")
simple("whiteout-255-byte-name", "F " + "n" * 255, "F .wh." + "n" * 255)
simple("whiteout-all-names-of-an-inode", "F a x\nH b a\nH c a", "F .wh.a\nF .wh.b", "F .wh.c")
simple("whiteout-then-hardlink-in-its-layer", "F a x\nF b b", "F .wh.a\nH c b")
for name, entry in (("", ".wh."), ("-dot", "d/.wh.."), ("-dotdot", "d/.wh...")):
    simple("whiteout-invalid" + name, "D d\nF d/x x", "F " + entry,
           verdict=Bad("CORRUPT", f"entry {entry}: a whiteout of no name", layer=2))

# ---- opaque folders ----

simple("opaque-before", "D d\nF d/x x\nD d/s\nF d/s/x x", "D d\nF d/.wh..wh..opq\nF d/y y")
simple("opaque-after", "D d\nF d/x x\nD d/s\nF d/s/x x", "D d\nF d/y y\nF d/.wh..wh..opq")
simple("opaque-between", "D d\nF d/x x\nF d/y y\nF d/z z", "D d\nF d/y Y\nF d/.wh..wh..opq\nF d/z Z")
simple("opaque-with-children-of-children", "D d\nD d/s\nF d/s/x x", "F d/s/y y\nF d/.wh..wh..opq\nF d/t/z z")
simple("opaque-twice", "D d\nF d/x x", "F d/.wh..wh..opq\nF d/y y\nF d/.wh..wh..opq")
simple("opaque-missing", "F a x", "F no/.wh..wh..opq\nF no/where/.wh..wh..opq")
simple("opaque-file", "F a x", "F a/.wh..wh..opq")
simple("opaque-through-link", "D t\nF t/x x\nS d t", "F d/.wh..wh..opq")
simple("opaque-root", "F a x\nD d\nF d/x x", "F .wh..wh..opq\nF b y")
simple("opaque-three-layers", "D d\nF d/x x", "D d\nF d/.wh..wh..opq\nF d/y y", "F d/z z", "F d/.wh..wh..opq\nF d/w w")
case("opaque-any-type", [
    lines("D d\nF d/x x\nD e\nF e/x x\nD f\nF f/x x"),
    Tar().dir("d/.wh..wh..opq").link("e/.wh..wh..opq", "x").file("f/.wh..wh..opq", "content").bytes()], Umoci())
simple("opaque-names-that-are-nearly", "D d\nF d/x x", "F d/.wh..opq\nF d/wh..wh..opq y\nF d/..wh..wh..opq z")
simple("opaque-then-whiteout", "D d\nF d/x x", "D d\nF d/y y\nF d/.wh..wh..opq\nF .wh.d")

# ---- bookkeeping of others ----

simple("aufs", "F a x", "D .wh..wh.plnk\nF .wh..wh.plnk/1.2 x\nF .wh..wh.aufs\nD .wh..wh.orph\nF d/.wh..wh.aufs\nF b y",
       verdict=Golden({"a": File("x"), "b": File("y")},
                      "umoci takes AUFS' names for whiteouts; Docker skips them"))
simple("estargz-landmarks", "F .prefetch.landmark x\nF a a\nF stargz.index.json {}",
       "F .no.prefetch.landmark x\nF d/stargz.index.json y\nF d/.prefetch.landmark z",
       verdict=Golden({"a": File("a"), "d": Dir(), "d/stargz.index.json": File("y"),
                       "d/.prefetch.landmark": File("z")},
                      "only lazy pullers know these names at the root; umoci keeps them"))

# ---- hard links ----

simple("hardlink", "F a x\nH b a\nH d/c ./a\nH d/e /a")
simple("hardlink-to-lower", "F a x", "H b a")
simple("hardlink-to-lower-then-replaced", "F a x", "H b a", "F a y")
simple("hardlink-copy-up", "F a x\nH b a\nH c a", "F b y")
simple("hardlink-target-replaced-later", "F a x\nH b a\nF a y")
simple("hardlink-over-file", "F a x\nF b y", "H b a")
simple("hardlink-over-folder", "F a x\nD d\nF d/y y", "H d a")
simple("hardlink-over-its-own-folder", "D d\nF d/a x\nH d d/a",
       verdict=Golden({"d": File("x")}, "umoci removes the folder first and then misses the target"))
simple("hardlink-to-itself", "F a x\nF b y", "H a a",
       verdict=Golden({"a": File("x"), "b": File("y")}, "umoci removes the name first and then misses the target"))
simple("hardlink-to-another-name-of-itself", "F a x\nH b a", "H b a")
simple("hardlink-from-archive-root", "D d\nF d/a inner\nF a outer\nH d/b a")
simple("hardlink-to-link", "F a x\nS l a\nS dead nowhere\nH m l\nH n dead")
simple("hardlink-through-link", "D t\nF t/x x\nS d /t", "H b d/x")
simple("hardlink-down-and-out", "S d ../../../..", "H d/b d/etc/passwd",
       verdict=Bad("CORRUPT", "entry d/b: a hard link to d/etc/passwd, which does not exist", layer=2))
simple("hardlink-up-and-out", "F a x", "H b ../../../../etc/passwd",
       verdict=Bad("CORRUPT", 'entry b: the target of a hard link: a path with ".."', layer=2))
simple("hardlink-missing", "F a x", "F b b\nH c missing",
       verdict=Bad("CORRUPT", "entry c: a hard link to missing, which does not exist", layer=2))
simple("hardlink-before-target", "H b a\nF a x",
       verdict=Bad("CORRUPT", "entry b: a hard link to a, which does not exist"))
simple("hardlink-to-whited-out", "F a x", "F .wh.a\nH b a",
       verdict=Bad("CORRUPT", "entry b: a hard link to a, which does not exist", layer=2))
simple("hardlink-to-folder", "D d", "H e d",
       verdict=Bad("CORRUPT", "entry e: a hard link to d, which is a folder", layer=2))
simple("hardlink-to-root", "H e /", verdict=Bad("CORRUPT", "entry e: a hard link to the root"))
case("hardlink-header-is-not-applied", [
    Tar().file("a", "x", mode=0o4711, uid=7, gid=8, mtime=1_000_000_000, records={"SCHILY.xattr.user.k": "v"})
    .hard("b", "a", mode=0o666, uid=1, gid=2, mtime=1_500_000_000).bytes()], Umoci())
case("hardlink-to-device", [
    Tar().add("null", "3", dev=(1, 3)).add("pipe", "6").hard("null2", "null").hard("pipe2", "pipe").bytes()], Umoci())
simple("hardlinks-many", "F a x\n" + "\n".join(f"H l{i} a" for i in range(300)),
       "\n".join(f"F .wh.l{i}" for i in range(0, 300, 2)))

# ---- parents ----

simple("parents-implicit", "F a/b/c/d x\nD e/f/g\nS h/i/j k")
simple("parents-implicit-then-described", "F a/b x\nD a", "D a")
case("parents-implicit-times", [
    Tar().file("a/b", "x", mtime=1_000_000_000).file("a/c/d", "y", mtime=1_100_000_000).bytes()],
    Golden({"a": Dir(mtime=1_000_000_000), "a/b": File("x", mtime=1_000_000_000), "a/c": Dir(mtime=1_100_000_000),
            "a/c/d": File("y", mtime=1_100_000_000)},
           "umoci gives such folders the time of unpacking; ours must be the same every day: that of the entry"))
simple("parents-in-lower-keep-attributes", "D d", "F d/e/f x")
simple("parent-of-lower-file-is-replaced", "F a x", "D a\nF a/b y")
simple("parent-is-file", "F a x", "F a/b y",
       verdict=Bad("CORRUPT", "entry a/b: its parent a is not a folder", layer=2))
simple("parent-is-file-below", "F d/a x", "D d/a/b/c",
       verdict=Bad("CORRUPT", "entry d/a/b/c: its parent a is not a folder", layer=2))
case("parent-is-fifo", [Tar().add("p", "6").file("p/x").bytes()],
     Bad("CORRUPT", "entry p/x: its parent p is not a folder"))
simple("merged-usr", "D usr\nD usr/bin\nD usr/lib\nS bin usr/bin\nS lib usr/lib\nF usr/bin/sh sh",
       "F bin/ls ls\nF lib/libc.so libc\nH bin/dash bin/sh", "F bin/.wh.sh\nF usr/bin/.wh.ls\nF bin/cat cat")
simple("merged-usr-absolute", "D usr/bin\nS bin /usr/bin", "F bin/ls ls\nF bin/x/y z")
simple("merged-usr-folder-entry", "D usr/bin\nF usr/bin/sh sh\nS bin usr/bin", "D bin\nF bin/ls ls")
simple("link-chain-as-prefix", "D t\nS a b\nS b ./c/../d\nD c\nS d /e\nS e t", "F a/x x")
simple("link-up-and-out-as-prefix", "S up ../../..\nS d/up ../../../t\nD t", "F up/x x\nF d/up/y y")
simple("link-with-target-of-many-parts", "D a/b/c\nS l a/b/../b/./c//", "F l/x x")
simple("dangling-link-as-prefix", "S d t/u", "F d/x x")
simple("dangling-absolute-link-as-prefix", "S var/run /run/deep", "F var/run/x x\nD var/run/y")
simple("link-loop-as-prefix", "S a b\nS b a", "F a/x x",
       verdict=Bad("CORRUPT", "entry a/x: its parent leads through more than 40 symbolic links", layer=2))
simple("link-to-itself-as-prefix", "S a a\nF a/x x",
       verdict=Bad("CORRUPT", "entry a/x: its parent leads through more than 40 symbolic links"))
simple("link-loop-with-growth", "S a a/b\nF a/x x",
       verdict=Bad("CORRUPT", "entry a/x: its parent leads through more than 40 symbolic links"))
simple("link-loop-is-data", "S a b\nS b a\nS c c\nS d /proc/self/root\nS e ../../../../etc/passwd")
simple("link-chain-40", "D t\nS l0 t\n" + "\n".join(f"S l{i} l{i - 1}" for i in range(1, 40)), "F l39/x x")
simple("link-chain-41", "D t\nS l0 t\n" + "\n".join(f"S l{i} l{i - 1}" for i in range(1, 41)), "F l40/x x",
       verdict=Bad("CORRUPT", "entry l40/x: its parent leads through more than 40 symbolic links", layer=2,
                   why="Linux goes through 40 links, umoci through 255"))
simple("link-to-file-as-prefix", "F f x\nS l f", "F l/x x",
       verdict=Bad("CORRUPT", "entry l/x: its parent f is not a folder", layer=2))

# ---- names ----

simple("names-absolute-and-doubled", "F /a x\nF .//b///c y\nD ./d/./\nF ././e z")
for name, path in (("leading", "../x"), ("inside", "a/../../x"), ("harmless", "a/../x"), ("last", "a/..")):
    simple("dotdot-" + name, "D a", "F " + path,
           verdict=Bad("CORRUPT", f'entry {path}: a path with ".."', layer=2, why=DOCKER_DOTDOT))
simple("dotdot-whiteout", "D a", "F a/../.wh.a",
       verdict=Bad("CORRUPT", 'entry a/../.wh.a: a path with ".."', layer=2, why=DOCKER_DOTDOT))
simple("dots-that-are-names", "F ... x\nF ..a y\nF a.. z\nD ..../.....\nF .a/..b/c... w")
case("root-entry", [Tar().dir("./", mode=0o711, uid=3, gid=4, mtime=1_000_000_000).file("a").bytes(),
                    Tar().dir(".", mode=0o750, mtime=1_100_000_000).bytes()], Umoci())
case("root-entry-attributes", [
    Tar().dir("/", mode=0o1755, uid=3, gid=4, mtime=1_000_000_000, records={"SCHILY.xattr.user.k": "v"}).bytes()],
    Golden({}, "the root's own attributes, by hand", root=Dir(0o1755, uid=3, gid=4, mtime=1_000_000_000,
                                                            xattrs={"user.k": "v"})))
case("root-entry-of-a-file", [Tar().file(".", "x").bytes()],
     Bad("CORRUPT", "entry .: the root can only be a folder"))
case("root-entry-of-a-link", [Tar().link("./", "/etc").bytes()],
     Bad("CORRUPT", "entry ./: the root can only be a folder", why="CVE-2021-29136"))
case("names-odd-bytes", [
    Tar().file(b"new\nline", "1").file(b"not-utf8-\xff\xfe", "2").file(b"back\\slash", "3").file(b"tab\t", "4")
    .file(b"esc\x1b[31m", "5").file(b"del\x7f", "6").file(b" space ", "7").file(b"*?[a]", "8").dir(b"caf\xe9")
    .file(b"caf\xe9/x", "9").link(b"l-\xff", b"to-\xfe\n").file(b"\xc0\xaf", "10").bytes(),
    Tar().file(b".wh.new\nline").file(b"caf\xe9/.wh.x").hard(b"h\xff", b"not-utf8-\xff\xfe").bytes()], Umoci())
case("names-odd-bytes-in-pax", [
    Tar().file("x", "1", records={"path": b"pax-\xff-\xe9\n"}).link("y", "z", records={"linkpath": b"\xfe\xff"})
    .file("z", "1", records={"path": "pax-日本-e\u0301"}).bytes()], Umoci())
simple("names-of-one-case", "F Makefile a\nF makefile b\nD SRC\nD src\nF SRC/x x\nF src/x y", "F .wh.makefile")
case("names-of-one-look", [
    Tar().file("caf\u00e9", "nfc").file("cafe\u0301", "nfd").file("\u212b", "angstrom").file("\u00c5", "ring")
    .file("ﬁ", "ligature").file("fi", "fi").bytes(), Tar().file(".wh.cafe\u0301").bytes()], Umoci())
