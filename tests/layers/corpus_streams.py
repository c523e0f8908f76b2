"""The corpus, third part: streams (compression, ends, damage) and what is large."""
import bz2
import hashlib
import json
import lzma
import struct
import zlib

from corpus_case import Bad, Dir, File, Golden, Holes, Lines, Umoci, case, lines
from corpus_formats import pax_sparse
from corpus_tar import Tar, gz, header, zst_frame, zst_skip

A = Tar().dir("d", mode=0o700).file("d/a", "x" * 3000).file("b", bytes(range(256)) * 8).bytes()
A_HOLDS = {"d": Dir(0o700), "d/a": File("x" * 3000), "b": File(bytes(range(256)) * 8)}
NO_ZSTD = "umoci 0.4 does not know zstd"


def packed(name, blob, verdict, tar=A):
    """One layer, compressed; its diff_id is of @tar."""
    case(name, [(blob, tar)], verdict)


def member(data, flags=0, extra=b""):
    """A gzip member with header fields that gzip.compress() does not write."""
    head = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, flags, 0, 0, 255)
    if flags & 4:
        head += struct.pack("<H", len(extra)) + extra
    if flags & 8:
        head += b"name.tar\0"
    if flags & 16:
        head += b"a comment\0"
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    c = zlib.compressobj(1, zlib.DEFLATED, -15)
    return head + c.compress(data) + c.flush() + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


# ---- gzip ----

packed("gzip", gz(A), Umoci())
packed("gzip-members", b"".join(gz(A[i:i + 700]) for i in range(0, len(A), 700)), Umoci())
packed("gzip-empty-members", gz(b"") + gz(A[:512]) + gz(b"") * 3 + gz(A[512:]) + gz(b""), Umoci())
packed("gzip-header-fields", member(A[:1000], 4 | 8 | 16, b"SG\x02\0xy") + member(A[1000:], 8), Umoci())
packed("gzip-header-checksum", member(A, 2 | 8), Golden(A_HOLDS, "the gzip that umoci brings miscounts it"))
packed("gzip-stored", gz(A, 0), Umoci())
packed("gzip-zeros-behind", gz(A) + bytes(3000), Golden(A_HOLDS, "tools pad to blocks; Go's gzip wants another member"))
packed("gzip-garbage-behind", gz(A) + b"garbage", Bad("CORRUPT", "gzip: data that is not gzip follows the end"))
packed("gzip-cut-in-data", gz(A)[:-60], Bad("CORRUPT", "gzip: the data ends in the middle"))
packed("gzip-cut-in-trailer", gz(A)[:-3], Bad("CORRUPT", "gzip: the data ends in the middle"))
packed("gzip-cut-in-header", gz(A)[:5], Bad("CORRUPT", "gzip: the data ends in the middle"))
packed("gzip-cut-in-last-member", gz(A[:1024]) + gz(A[1024:])[:-1], Bad("CORRUPT", "gzip: the data ends in the middle"))
packed("gzip-wrong-checksum", gz(A)[:-8] + b"\0\0\0\0" + gz(A)[-4:], Bad("CORRUPT", "gzip: wrong checksum"))
packed("gzip-wrong-length", gz(A)[:-4] + b"\1\2\3\4", Bad("CORRUPT", "gzip: wrong checksum"))
packed("gzip-of-gzip", gz(gz(A)), Bad("CORRUPT", "tar: "), gz(A))


def stargz():
    """Each entry a member, the table of contents the last one, then a footer that is an empty member."""
    toc = json.dumps({"version": 1, "entries": [{"name": "smuggled", "type": "reg", "size": 3}]}).encode()
    entries = [Tar().file(".prefetch.landmark", b"\x0f").out, Tar().dir("d", mode=0o700).out,
               Tar().file("d/a", "x" * 3000).out, Tar().file("b", bytes(range(256)) * 8).out]
    tail = Tar().file("stargz.index.json", toc).bytes()
    blob = b"".join(gz(bytes(e)) for e in entries)
    blob += gz(tail) + member(b"", 4, b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % len(blob))
    return blob, b"".join(bytes(e) for e in entries) + tail


packed("estargz", stargz()[0], Golden(A_HOLDS, "names for lazy pullers are left out; umoci keeps them"), stargz()[1])

# ---- zstd ----

packed("zstd", zst_frame(A), Golden(A_HOLDS, NO_ZSTD))
packed("zstd-frames", b"".join(zst_frame(A[i:i + 700]) for i in range(0, len(A), 700)), Golden(A_HOLDS, NO_ZSTD))
packed("zstd-skippable", zst_skip(b"first") + zst_frame(A[:100]) + zst_skip(b"", 15) + zst_frame(b"") + zst_frame(A[100:]) +
       zst_skip(b"GNUlInUx" * 8), Golden(A_HOLDS, NO_ZSTD))
packed("zstd-cut", zst_frame(A)[:-10], Bad("CORRUPT", "zstd: the data ends in the middle"))
packed("zstd-cut-in-skippable", zst_frame(A) + zst_skip(b"x" * 100)[:-1], Bad("CORRUPT", "zstd: the data ends in the middle"))
packed("zstd-garbage-behind", zst_frame(A) + b"garbage!", Bad("CORRUPT", "zstd: "))
packed("zstd-window-too-large", zst_frame(A, 31), Bad("CORRUPT", "zstd: "))
packed("xz", lzma.compress(A), Bad("CORRUPT", "the layer is compressed with xz, which images may not be"))
packed("bzip2", bz2.compress(A), Bad("CORRUPT", "the layer is compressed with bzip2, which images may not be"))
case("mixed-compression", [(gz(A), A), lines("F c plain"), (zst_frame(lines("F e z")), lines("F e z"))],
     Golden(dict(A_HOLDS, c=File("plain"), e=File("z")), NO_ZSTD))

# ---- digests ----

packed("wrong-diff-id", gz(A), Bad("CORRUPT", "its content is sha256:"), lines("F other x"))
case("wrong-diff-id-of-the-middle", [A, (gz(A), lines("F other x")), A],
     Bad("CORRUPT", "the image's config says sha256:", layer=2))
case("diff-id-behind-the-end", [(gz(A + b"not looked at" * 100), A)], Bad("CORRUPT", "its content is sha256:"))

# ---- ends ----

UNMARKED = bytes(Tar().file("a", "x").out)
case("no-layers", [], Golden({}, "umoci wants one"))
case("empty-blob", [b"", lines("F a x")], Golden({"a": File("x")}, "umoci wants at least an end mark"))
case("empty-tar", [bytes(1024), bytes(512), lines("F a x")], Umoci())
case("no-end-mark", [UNMARKED], Umoci())
case("one-zero-block", [UNMARKED + bytes(512)], Umoci())
case("many-zero-blocks", [UNMARKED + bytes(51200)], Umoci())
case("zero-block-between", [UNMARKED + bytes(512) + lines("F b y")],
     Bad("CORRUPT", "after entry a: tar: a lone block of zeros at byte 1024, and more behind it"))
case("entries-behind-the-end", [UNMARKED + bytes(1024) + lines("F b y"), lines("F c z")], Umoci())
case("garbage-behind-the-end", [UNMARKED + bytes(1024) + b"garbage" * 100], Umoci())
case("cut-in-header", [A[:700 - 512]], Bad("CORRUPT", "tar: ends in the middle of a header"))
case("cut-in-second-header", [lines("F a x")[:1024 + 100]],
     Bad("CORRUPT", "after entry a: tar: ends in the middle of a header"))
case("cut-in-data", [Tar().file("first").file("a", "x" * 2000).bytes()[:1024 + 1000]],
     Bad("CORRUPT", "entry a: tar: ends in the middle of an entry's data"))
case("cut-behind-header", [Tar().file("a", "x" * 2000).bytes()[:512]],
     Bad("CORRUPT", "entry a: tar: ends in the middle of an entry's data"))
case("cut-in-padding", [Tar().file("a", "x" * 700).bytes()[:512 + 700], Tar().file("b", "y" * 700).bytes()[:512 + 1000]],
     Umoci())
case("cut-in-pax", [Tar().file("x", records={"path": "long" * 300}).bytes()[:900]],
     Bad("CORRUPT", "tar: ends in the middle of an extended header"))
case("cut-in-data-of-whiteout", [lines("F a x"), Tar().file(".wh.a", "x" * 2000).bytes()[:1000]],
     Bad("CORRUPT", "after entry .wh.a: tar: ends in the middle of an entry's data", layer=2))
case("no-tar", [b"<html>not found</html>" * 100], Bad("CORRUPT", "tar: this is none"))
case("zero-block-first", [bytes(512) + A], Bad("CORRUPT", "tar: a lone block of zeros at byte 0, and more behind it"))
case("checksum-wrong", [Tar().file("first").raw(header("a", checksum=b"0001234\0")).bytes()],
     Bad("CORRUPT", "after entry first: tar: a damaged header: its checksum is wrong"))
case("checksum-no-number", [Tar().file("first").raw(header("a", checksum=b"garbage\0")).bytes()],
     Bad("CORRUPT", "after entry first: tar: a damaged header"))
case("checksum-signed", [Tar().raw(header(b"caf\xe9\xff\xfe" * 9, signed=True)).file("b").bytes()], Umoci())
case("bit-flipped", [A[:514] + bytes([A[514] ^ 4]) + A[515:]], Bad("CORRUPT", "after entry d: tar: a damaged header"))
case("bad-layer-on-good-ones", [lines("F a x"), lines("F b y"), lines("F b/c z"), lines("F d w")],
     Bad("CORRUPT", "entry b/c: its parent b is not a folder", layer=3))

# ---- many and large ----

case("layers-50", [lines(f"F f{i} {i}\nF last {i}\nF d/.wh.x{i - 1}\nF d/x{i} x") for i in range(50)], Umoci())

SPARSE_5G = {0: b"first", 1 << 30: b"m" * 4096, (5 << 30) - 3: b"end"}
case("sparse-5-gib", [Tar().raw(pax_sparse("1.0", "s", SPARSE_5G, 5 << 30)).hard("t", "s").bytes()],
     Golden({"s": Holes(5 << 30, SPARSE_5G, same="s"), "t": Holes(5 << 30, SPARSE_5G, same="s")},
            "umoci writes 5 GiB of zeros"), large=True)


def many_hard_links(count):
    t = Tar().file("a", "x")
    for i in range(count):
        t.hard(f"l/{i}", "a")
    return [t.bytes()]


case("hardlinks-65001", lambda: many_hard_links(65_000), Bad("LIMIT", "entry l/64999: more than 65000 hard links to one file",
                                                             why="the most that ext4 can count"), large=True)


def a_million_files():
    """1,000 folders of 1,000 empty files. Every folder's name has the same sum of bytes, so that all headers of a file
    have one checksum, and a folder is a copy of another with the name replaced."""
    first = b"d000-999/"
    template = b"".join(header(first + b"f%03d" % i) for i in range(1000))
    packer, diff_id, blob = zlib.compressobj(1, zlib.DEFLATED, 31), hashlib.sha256(), []
    for i in range(1000):
        piece = template.replace(first, b"d%03d-%03d/" % (i, 999 - i))
        diff_id.update(piece)
        blob.append(packer.compress(piece))
    diff_id.update(bytes(1024))
    return [(b"".join(blob) + packer.compress(bytes(1024)) + packer.flush(), diff_id.hexdigest())]


def check_million(listing):
    """Every line but those of folders is the same behind the name, the inode's number aside; names are all there."""
    names, rest, dirs = set(), set(), 0
    for line in listing:
        name, fields = line.rstrip("\n").split("\t", 1)
        if "type=dir" in fields:
            dirs += 1
            continue
        before, _, after = fields.partition("\tino=")
        rest.add((before, after.split("\t", 1)[1]))
        names.add(name)
    wanted = {f"d{i:03}-{999 - i:03}/f{k:03}" for i in range(1000) for k in range(1000)}
    bad = [] if names == wanted else [f"{len(names ^ wanted)} names are missing or should not be there"]
    if dirs != 1000 + 2:  # the root and lost+found
        bad.append(f"{dirs} folders")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    one = ("type=file\tmode=0644\tuid=0\tgid=0\tmtime=1600000000.000000000\tnlink=1", f"size=0\tblocks=0\tsha256={empty}")
    return bad + ([] if rest == {one} else [f"not all files are alike: {sorted(rest)[:5]}"])


case("files-1000000", a_million_files, Lines(check_million, "umoci takes minutes"), large=True)
