"""What an image promises beyond its content: the same bytes wherever and whenever it is made, bytes shared between sizes and
with the base, folders of any size, room to grow, and a kernel that has nothing to say about it.

usage: proofs.py FLATTEN_TOOL

The kernel is asked only by root, and where loop devices and its log can be had."""
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

CHUNK = 1 << 20
TOOL = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else None
os.environ["PATH"] += ":/usr/sbin:/sbin"


def header(name, size, kind=b"0", mtime=1_700_000_000):
    h = tarfile.TarInfo(name)
    h.size, h.mtime, h.type = size, mtime, kind
    h.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return h.tobuf(tarfile.USTAR_FORMAT)


def write_tar(path, files):
    """@files: (name, bytes)."""
    with open(path, "wb") as out:
        for name, data in files:
            out.write(header(name, len(data)) + data + bytes(-len(data) % 512))
        out.write(bytes(1024))


def base_files(rnd):
    """About 200 MiB in 3000 files, as a distribution lies: small ones, some large, in some hundred folders."""
    for i in range(3000):
        size = rnd.randrange(200, 8000) if i % 10 else rnd.randrange(100_000, 1_200_000)
        yield f"usr/lib/package-{i // 12}/file-{i}", rnd.randbytes(size)
    yield "var/lib/dpkg/status", rnd.randbytes(400_000)
    yield "etc/ld.so.cache", rnd.randbytes(20_000)


def install_files(rnd):
    """What installing two packages does: new folders, names in old ones, the databases anew."""
    for i in range(120):
        yield f"usr/lib/new-package-{i // 20}/file-{i}", rnd.randbytes(rnd.randrange(200, 90_000))
    for i in range(0, 240, 30):
        yield f"usr/lib/package-{i}/plugin", rnd.randbytes(3000)
    yield "var/lib/dpkg/status", rnd.randbytes(410_000)
    yield "etc/ld.so.cache", rnd.randbytes(21_000)


def chunks(path):
    """{index: digest} of the chunks that are not all zero."""
    out, zero = {}, bytes(CHUNK)
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA) // CHUNK * CHUNK
            except OSError:
                break
            f.seek(at)
            data = f.read(CHUNK)
            if data != zero[:len(data)]:
                out[at // CHUNK] = hashlib.sha256(data).digest()
            at += CHUNK
    return out


def flatten(image, mib, *layers, how="flatten", **kw):
    """The digest."""
    Path(image).unlink(missing_ok=True)
    done = subprocess.run([TOOL, how, str(image), str(mib), *map(str, layers)], check=True, capture_output=True,
                          text=True, **kw)
    return next(line for line in done.stdout.splitlines() if line.startswith("sha256:"))


class Proofs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="cb-proofs-", dir=os.environ.get("TMPDIR", "/var/tmp"))
        cls.addClassCleanup(folder.cleanup)
        cls.work = Path(folder.name)
        rnd = random.Random(4)
        cls.base, cls.install, cls.names = (cls.work / n for n in ("base.tar", "install.tar", "names.tar"))
        write_tar(cls.base, base_files(rnd))
        write_tar(cls.install, install_files(rnd))
        write_tar(cls.names, ((f"one/name-{i:06}", b"") for i in range(100_000)))

    def fsck(self, image):
        done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_the_place_and_the_hour_make_no_difference(self):
        one, two = self.work / "one", self.work / "another place/and deeper"
        one.mkdir()
        two.mkdir(parents=True)
        first = flatten(one / "image", 2048, self.install, cwd="/", umask=0o022)
        second = flatten(two / "image", 2048, self.install, cwd=two, umask=0o077,
                         env={"TZ": "Pacific/Auckland", "LC_ALL": "C.UTF-8", "E2FSPROGS_FAKE_TIME": "1000000000",
                              "SOURCE_DATE_EPOCH": "1", "HOME": "/nonexistent", "PATH": "/bin"})
        self.assertEqual(first, second)

    def test_sizes_share_their_data(self):
        flatten(self.work / "small", 2048, self.base)
        flatten(self.work / "large", 8192, self.base)
        small, large = chunks(self.work / "small"), chunks(self.work / "large")
        differ = [i for i in small.keys() | large.keys() if small.get(i) != large.get(i)]
        print(f"{len(small)} and {len(large)} chunks, {len(differ)} differ")
        # What lies in front of the first file, and the starts of groups: copies of the superblock, bitmaps.
        first_file, group = 25122 // 256, 128
        self.assertEqual([i for i in differ if i > first_file and i % group > 2], [])
        self.assertLess(len(differ), 20)
        self.assertGreater(len(small), 180)

    def test_a_base_is_not_stored_again(self):
        flatten(self.work / "below", 8192, self.base)
        flatten(self.work / "above", 8192, self.base, self.install)
        below, above = chunks(self.work / "below"), chunks(self.work / "above")
        new = sum(1 for i in above if below.get(i) != above[i])
        own = self.install.stat().st_size / CHUNK
        again = (new - own) / len(below)
        print(f"{len(below)} chunks, {new} new for {own:.1f} MiB: {100 * again:.1f} % of the base again")
        self.assertLess(again, 0.10)  # a base of a third of python-dev: docs/image.md has real ones

    def test_a_folder_of_100000_names(self):
        image = self.work / "names"
        flatten(image, 1024, self.names)
        self.fsck(image)
        stat = subprocess.run(["debugfs", "-R", "htree_dump /one", image], capture_output=True, text=True, check=True)
        self.assertIn("Number of entries (count)", stat.stdout)
        self.assertEqual(self.mounted(image, "one"), 100_000)

    def test_it_grows(self):
        image = self.work / "grows"
        flatten(image, 1024, self.install)
        os.truncate(image, 20 << 30)
        subprocess.run(["resize2fs", image], check=True, capture_output=True)
        self.fsck(image)
        dump = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
        self.assertIn(f"Block count:              {20 << 18}\n", dump)
        for word in ("metadata_csum", "has_journal", "dir_index", "resize_inode"):
            self.assertIn(word, dump)

    def test_the_kernel_has_nothing_to_say(self):
        image = self.work / "quiet"
        flatten(image, 2048, self.base, how="learn")
        flatten(image, 4096, self.base, self.install, how="onto")
        self.fsck(image)
        self.assertEqual(self.mounted(image, "usr/lib"), 250 + 6)

    def test_on_a_file_system_that_shares_blocks(self):
        """XFS: the same bytes, an image from an image costs next to nothing, and holes are not filled with the room
        that XFS gives a growing file in advance."""
        if os.geteuid() != 0 or not shutil.which("mkfs.xfs", path=os.environ["PATH"]):
            self.skipTest("only root may mount, and mkfs.xfs is needed")
        holes = self.work / "holes.tar"
        write_tar(holes, [("holes", b"".join((b"x" if i % 10 == 0 else b"\0") * CHUNK for i in range(300)))])
        disk, root = self.work / "xfs", self.work / "xfs-mnt"
        root.mkdir()
        with open(disk, "wb") as f:
            f.truncate(3 << 30)
        subprocess.run(["mkfs.xfs", "-q", disk], check=True)
        script = '''mount -o loop "$1" "$2" || exit 77
            cd "$2" && "$3" learn image 2048 "$4" >&2 && rm image && sync -f . && df --output=used -B1 . | tail -1 &&
            "$3" onto image 4096 "$4" | grep sha256: && sync -f . && df --output=used -B1 . | tail -1 &&
            "$3" flatten holes 2048 "$5"'''
        done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", disk, root, TOOL,
                               self.base, holes], capture_output=True, text=True, check=False)
        if done.returncode == 77:
            self.skipTest(f"no mounts here: {done.stderr}")
        self.assertEqual(done.returncode, 0, done.stderr)
        before, digest, after, sums = done.stdout.splitlines()[:4]
        self.assertEqual(digest, flatten(self.work / "elsewhere", 4096, self.base))
        self.assertLess(int(after) - int(before), 16 << 20)
        allocated = int(sums.split(", ")[2].split()[0])
        self.assertGreater(allocated, 30 << 20)
        self.assertLess(allocated, 50 << 20)

    def mounted(self, image, folder):
        """How many names the kernel finds in @folder, once it has written to the image without a complaint."""
        if os.geteuid() != 0 or not os.access("/dev/kmsg", os.R_OK):
            self.skipTest("only root may mount, and read the kernel's log")
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, log)
        os.lseek(log, 0, os.SEEK_END)
        try:
            done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            self.skipTest(f"no loop device: {e}")
        loop = done.stdout.strip()
        root = self.work / "mnt"
        root.mkdir(exist_ok=True)
        # In a namespace of its own: one that somebody else makes meanwhile would hold the mount, and umount would end
        # with the image half written.
        script = 'mount -t ext4 "$1" "$2" || exit 77; ls -fA "$2/$3" | grep -vxc "\\.\\.\\?" && : > "$2/written"; umount "$2"'
        try:
            done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", loop, root,
                                   folder], capture_output=True, text=True, check=False)
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)
        if done.returncode == 77:
            self.skipTest(f"no mounts here: {done.stderr}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.fsck(image)
        said = []
        while True:
            try:
                line = os.read(log, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # it was overwritten: others were loud
                continue
            level = int(line.split(",", 1)[0]) & 7
            if level <= 4 and f"({os.path.basename(loop)})" in line:
                said.append(line)
        self.assertEqual(said, [])
        return int(done.stdout)


if __name__ == "__main__":
    unittest.main()
