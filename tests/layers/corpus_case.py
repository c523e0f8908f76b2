"""What a case of the corpus is, and the words of its table."""
from corpus_tar import EPOCH, Tar, octets

CASES = []


class Case:
    def __init__(self, name, layers, verdict, large=False):
        self.name = name        # a word, unique
        self._layers = layers   # or a function that makes them; each the bytes of a tar, or (blob, tar or its SHA-256)
        self.verdict = verdict  # Umoci, Golden, Lines or Bad
        self.large = large      # left out unless asked for

    def layers(self):
        made = self._layers() if callable(self._layers) else self._layers
        return [la if isinstance(la, tuple) else (la, la) for la in made]


class Umoci:
    """Legal; the image equals what `umoci raw unpack` makes, entry by entry. @but: path -> fields that differ by
    the rule that @why gives, with our value; or None for a path that only umoci has."""

    def __init__(self, but=None, why=""):
        self.but, self.why = but or {}, why
        assert bool(self.but) == bool(why)


class Golden:
    """Legal; the image holds exactly these entries. @why: what keeps umoci from saying so."""

    def __init__(self, entries, why, root=None):
        self.entries, self.why, self.root = entries, why, root


class Lines:
    """Legal; too large for a listing in memory: @check gets the lines of image_list.h and returns what is wrong."""

    def __init__(self, check, why):
        self.check, self.why = check, why


class Bad:
    """Refused with @code and these words, in the layer with this number, counted from 1."""

    def __init__(self, code, words, layer=1, why=""):
        self.code, self.words, self.layer, self.why = code, words, layer, why


def case(name, layers, verdict, **kw):
    assert all(c.name != name for c in CASES), name
    CASES.append(Case(name, layers, verdict, **kw))


# ---- entries of a golden listing ----

def _entry(kind, mode, uid=0, gid=0, mtime=EPOCH, xattrs=None, same=None, **more):
    """@same: entries with the same word are names of one inode. @mtime: seconds, or (seconds, nanoseconds)."""
    mtime = mtime if isinstance(mtime, tuple) else (mtime, 0)
    xattrs = {k: octets(v) for k, v in (xattrs or {}).items()}
    return {"type": kind, "mode": mode, "uid": uid, "gid": gid, "mtime": mtime, "xattrs": xattrs, "same": same, **more}


def File(data=b"", mode=0o644, **kw):
    return _entry("file", mode, data=octets(data), **kw)


def Holes(size, pieces, mode=0o644, **kw):
    """A file of @size bytes that are zero but for {offset: bytes}."""
    return _entry("file", mode, size=size, pieces=pieces, **kw)


def Dir(mode=0o755, **kw):
    return _entry("dir", mode, **kw)


def Link(target, **kw):
    return _entry("link", 0o777, target=octets(target), **kw)


def Char(major, minor, mode=0o644, **kw):
    return _entry("char", mode, dev=(major, minor), **kw)


def Block(major, minor, mode=0o644, **kw):
    return _entry("block", mode, dev=(major, minor), **kw)


def Fifo(mode=0o644, **kw):
    return _entry("fifo", mode, **kw)


# ---- layers as lines ----

def lines(text):
    """A layer as text: D folder, F file [content], S link target, H hard-link target."""
    t = Tar()
    for line in text.strip().splitlines():
        kind, name, *rest = line.split()
        word = rest[0] if rest else ""
        if kind == "D":
            t.dir(name)
        elif kind == "F":
            t.file(name, word)
        elif kind == "S":
            t.link(name, word)
        else:
            assert kind == "H", line
            t.hard(name, word)
    return t.bytes()


def simple(name, *layers, verdict=None):
    """A case whose layers are lines."""
    case(name, [lines(la) for la in layers], verdict or Umoci())
