"""Tars byte by byte, so that a case of the corpus can hold what no tar program would write."""
import gzip
import struct

EPOCH = 1_600_000_000  # the time of every entry that names none


def octets(value):
    return value if isinstance(value, bytes) else value.encode()


def number(value, width):
    """A numeric field: octal, or base-256 when it does not fit or is negative. Bytes stay as they are."""
    if isinstance(value, bytes):
        return value.ljust(width, b"\0")
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0xFF if value < 0 else 0x80]) + value.to_bytes(width - 1, "big", signed=value < 0)


def header(name, kind="0", size=0, mode=None, uid=0, gid=0, mtime=EPOCH, link="", dev=(0, 0), magic=b"ustar\00000",
           prefix="", signed=False, checksum=None, tail=b""):
    """One header block. @tail: what GNU's formats have in place of the prefix. @checksum: a wrong one."""
    if mode is None:
        mode = 0o755 if kind == "5" else 0o777 if kind == "2" else 0o644
    block = bytearray(512)

    def put(at, what, room):
        assert len(what) <= room, what
        block[at:at + len(what)] = what

    put(0, octets(name)[:100], 100)
    put(100, number(mode, 8), 8)
    put(108, number(uid, 8), 8)
    put(116, number(gid, 8), 8)
    put(124, number(size, 12), 12)
    put(136, number(mtime, 12), 12)
    put(148, b" " * 8, 8)
    put(156, octets(kind), 1)
    put(157, octets(link)[:100], 100)
    put(257, magic, 8)
    if magic != bytes(8):
        put(329, number(dev[0], 8), 8)
        put(337, number(dev[1], 8), 8)
        put(345, tail or octets(prefix), 167)
    total = sum(b - 256 if signed and b > 127 else b for b in block)
    put(148, checksum or b"%06o\0 " % total, 8)
    return bytes(block)


def padded(data):
    return data + bytes(-len(data) % 512)


def record(key, value):
    """One PAX record; its length counts itself."""
    body = b" " + octets(key) + b"=" + octets(value) + b"\n"
    total = len(body)
    while total != len(body) + len(b"%d" % total):
        total = len(body) + len(b"%d" % total)
    return b"%d" % total + body


def pax(records, kind="x", name="PaxHeaders/entry"):
    """An extended header. @records: pairs or a mapping; or the bytes as they are."""
    if not isinstance(records, bytes):
        pairs = records.items() if isinstance(records, dict) else records
        records = b"".join(record(k, v) for k, v in pairs)
    return header(name, kind, len(records)) + padded(records)


class Tar:
    """The entries of one layer, in the order of the calls."""

    def __init__(self):
        self.out = bytearray()

    def raw(self, data):
        self.out += data
        return self

    def add(self, name, kind="0", data=b"", records=None, **fields):
        """@records: a PAX header in front. A name or link that a header has no room for gets one by itself."""
        data, name, link = octets(data), octets(name), octets(fields.get("link", ""))
        records = dict(records or {})
        if len(name) > 100:
            records.setdefault("path", name)
        if len(link) > 100:
            records.setdefault("linkpath", link)
        if records:
            self.raw(pax(records))
        fields.setdefault("size", len(data))
        return self.raw(header(name, kind, **fields) + padded(data))

    def file(self, name, data=b"", **fields):
        return self.add(name, "0", data, **fields)

    def dir(self, name, **fields):
        return self.add(name, "5", **fields)

    def link(self, name, target, **fields):
        return self.add(name, "2", link=target, **fields)

    def hard(self, name, target, **fields):
        return self.add(name, "1", link=target, **fields)

    def gnu_long(self, kind, text):
        """GNU's own way to long names ('L') and link targets ('K')."""
        text = octets(text) + b"\0"
        return self.raw(header("././@LongLink", kind, len(text), magic=b"ustar  \0") + padded(text))

    def bytes(self, end=2):
        return bytes(self.out) + bytes(512 * end)


# ---- compression ----

def gz(data, level=1):
    return gzip.compress(data, level, mtime=0)


def zst_frame(data, window_log=17):
    """A zstd frame of blocks that are not compressed, without a checksum."""
    out = bytearray(struct.pack("<IBB", 0xFD2FB528, 0, (window_log - 10) << 3))
    pieces = [data[i:i + (128 << 10)] for i in range(0, len(data), 128 << 10)] or [b""]
    for i, piece in enumerate(pieces):
        out += struct.pack("<I", len(piece) << 3 | (i == len(pieces) - 1))[:3] + piece
    return bytes(out)


def zst_skip(payload, kind=0):
    return struct.pack("<II", 0x184D2A50 + kind, len(payload)) + payload
