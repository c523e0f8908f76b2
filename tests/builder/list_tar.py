"""Lists a layer tar at an offset of a file, one line an entry, for the tests to compare.

usage: list_tar.py FILE OFFSET LENGTH
"""
import hashlib
import io
import sys
import tarfile

path, offset, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "rb") as f:
    f.seek(offset)
    data = f.read(length)
assert len(data) == length, "the output is shorter than the diff"
kinds = {b"0": "file", b"1": "link", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo"}
with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=2) as tar:
    for m in tar:
        words = [kinds[m.type], "%04o" % m.mode, "%d:%d" % (m.uid, m.gid), m.name]
        if m.issym() or m.islnk():
            words.append("-> " + m.linkname)
        if m.ischr() or m.isblk():
            words.append("%d,%d" % (m.devmajor, m.devminor))
        if m.isreg():
            content = tar.extractfile(m).read()
            short = content.decode("utf-8", "backslashreplace").rstrip("\n")
            words.append("'%s'" % short if len(content) <= 64 else "%d %s" % (m.size, hashlib.sha256(content).hexdigest()[:8]))
        for key in sorted(m.pax_headers):
            if key.startswith("SCHILY.xattr.") or key == "GNU.sparse.realsize":
                words.append("%s=%r" % (key, m.pax_headers[key]))
        if "mtime" in sys.argv[4:]:
            words.append("mtime=%s" % m.pax_headers.get("mtime", int(m.mtime)))
        sys.stdout.buffer.write(" ".join(words).encode("utf-8", "surrogateescape") + b"\n")
