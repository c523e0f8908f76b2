"""Layers to an ext4 image: flatten_tool against `umoci unpack` and `mke2fs -d` on the same image in the same run.

Arguments that are files are the image's layers; without any it is a minbase Debian, made once with mmdebstrap.
Root is needed for umoci to keep owners and devices."""

import gzip
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "layers"))
from compare_umoci import write_layout  # noqa: E402

BUILD = Path(os.environ.get("CB_BUILD_DIR", "build"))
CACHE = Path(os.environ.get("CAPSULE_BUILD_TEST_CACHE", ".cache/tests")) / "bench"
TOOL = BUILD / "tests/layers/flatten_tool"
ROUNDS = 3


def row(what, value, goal=""):
    print(f"{what} | {value} | {goal}", flush=True)


def minbase():
    path = CACHE / "minbase.tar.gz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        tar = CACHE / "minbase.tar"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", tar], check=True)
        part = path.with_suffix(".part")
        with open(tar, "rb") as src, gzip.open(part, "wb", 6) as dst:
            shutil.copyfileobj(src, dst, 1 << 20)
        part.rename(path)
        tar.unlink()
    return path


def many_files(path, count):
    """A tar of small files, by hand: tarfile takes minutes."""
    with open(path, "wb") as out:
        for i in range(count):
            h = bytearray(512)
            for at, text in ((0, f"dir{i // 50:05}/some-file-name-{i:07}.js"), (100, "0000644"), (108, "0000000"),
                             (116, "0000000"), (124, "00000000012"), (136, "14530000000"), (148, " " * 8),
                             (156, "0"), (257, "ustar\0" + "00")):
                h[at:at + len(text)] = text.encode()
            h[148:155] = b"%06o\0" % sum(h)
            out.write(h + b"%010d" % i + bytes(502))
        out.write(bytes(1024))


def run_tool(image, layers):
    """Seconds inside flatten() and the peak resident size of the process in MiB."""
    Path(image).unlink(missing_ok=True)
    text = subprocess.run([TOOL, "flatten", image, "0", *layers], check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(re.search(r"([0-9.]+) s$", text, re.M)[1]), int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1024


def run_peers(work, layout):
    shutil.rmtree(work / "bundle", ignore_errors=True)
    image = work / "peer.ext4"
    image.unlink(missing_ok=True)
    begin = time.perf_counter()
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", work / "bundle"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    between = time.perf_counter()
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", work / "bundle/rootfs", image, "8G"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return between - begin, time.perf_counter() - between


def main():
    paths = [Path(a) for a in sys.argv[1:] if os.path.isfile(a)] or [minbase()]
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    with tempfile.TemporaryDirectory(prefix="cb-bench-", dir="/var/tmp") as name:
        work = Path(name)
        layers = []
        for p in paths:
            data = p.read_bytes()
            layers.append(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        write_layout(str(work / "oci"), layers)
        run_tool(work / "ours.ext4", paths)  # fills its store
        ours, unpack, mkfs, peak = [], [], [], 0
        for _ in range(ROUNDS):
            seconds, rss = run_tool(work / "ours.ext4", paths)
            ours.append(seconds)
            peak = max(peak, rss)
            a, b = run_peers(work, work / "oci")
            unpack.append(a)
            mkfs.append(b)
        mine = statistics.median(ours)
        theirs = statistics.median(a + b for a, b in zip(unpack, mkfs))
        row("flatten from cached blobs", f"{mine * 1000:.0f} ms")
        row("  umoci unpack + mke2fs -d",
            f"{statistics.median(unpack) * 1000:.0f} + {statistics.median(mkfs) * 1000:.0f} ms")
        row("  times faster", f"{theirs / mine:.1f}", "at least 3")
        row("  peak memory, libraries included", f"{peak:.0f} MiB", "under 64 MiB")
        many_files(work / "many.tar", 100000)
        seconds, rss = run_tool(work / "many.ext4", [work / "many.tar"])
        row("flatten 100,000 small files", f"{seconds * 1000:.0f} ms")
        row("  peak memory, libraries included", f"{rss:.0f} MiB", "under 64 MiB")


if __name__ == "__main__":
    main()
