"""`./dev bench layers`: from an image in a registry on the loopback to an ext4 image of 8 GiB, beside what people use
for it: skopeo + umoci + mke2fs, and buildah + mke2fs, in the same run, and beside the floor (bench_floor: the same
fetch, digests, inflate and write without a file system). docs/performance.md says what the rows mean.

usage: layers.py [--registry ADDRESS] [--rounds N] [IMAGE...]
--registry: a running registry that has debian-min, python-dev and many-files; else one is started and they are made.
Needs root (the peers do)."""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
import images  # noqa: E402

BUILD = Path(os.environ.get("CB_BUILD_DIR", "build")).resolve() / "tests/bench"
CACHE = Path(os.environ.get("CAPSULE_BUILD_TEST_CACHE", ".cache/tests")).resolve() / "bench"
SIZE_MIB = 8192


def row(what, value, goal=""):
    print(f"{what} | {value} | {goal}", flush=True)


class Took:
    """One timed piece of work: seconds, seconds with what it wrote synced as well, MiB written, peak MiB."""

    def __init__(self):
        self.seconds = self.written = self.peak = 0.0
        self.synced = 0.0
        self.out = ""

    def run(self, argv, env=None, sample=False):
        begin = time.perf_counter()
        p = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        stop = threading.Event()
        watcher = threading.Thread(target=self.watch, args=(p.pid, stop)) if sample else None
        if watcher:
            watcher.start()
        out, err = p.stdout.read(), p.stderr.read()
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        self.seconds += time.perf_counter() - begin
        if watcher:
            stop.set()
            watcher.join()
        if p.returncode:
            raise SystemExit(f"{' '.join(map(str, argv))}: exit {p.returncode}\n{out}{err}")
        self.written += usage.ru_oublock / 2048
        self.out = out
        return self

    def watch(self, pid, stop):
        """RssAnon + RssShmem, every 2 ms: what is the process's own, without mapped files."""
        while not stop.wait(0.002):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                return
            kib = sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))
            self.peak = max(self.peak, kib / 1024)

    def sync(self, folder):
        begin = time.perf_counter()
        subprocess.run(["sync", "-f", folder], check=True)
        self.synced = self.seconds + time.perf_counter() - begin
        return self


def drop_caches():
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


class Bench:
    def __init__(self, folder, addr, maker):
        self.folder, self.addr, self.maker = Path(folder), addr, maker
        (self.folder / "home").mkdir()
        self.env = {**os.environ, "CAPSULE_BUILD_HOME": str(self.folder / "home"),
                    "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        conf = self.folder / "storage.conf"
        conf.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/graph"\n'
                        f'runroot = "{self.folder}/run"\n')
        self.buildah_env = {**self.env, "CONTAINERS_STORAGE_CONF": str(conf)}

    def path(self, name):
        return self.folder / name

    def remove(self, *names):
        for name in names:
            path = self.path(name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # --- ours ---
    def ours(self, name, how, sample=False):
        """With what the store has (image_tool.c says how). What it prints is in .said."""
        self.remove("ours.ext4")
        t = Took().run([BUILD / "bench_image", self.path("store"), SIZE_MIB, f"{self.addr}/{name}:latest", how,
                        self.path("ours.ext4")], self.env, sample)
        t.said = json.loads(t.out)
        return t.sync(self.folder)

    def ours_cold(self, name):
        self.remove("store")
        drop_caches()
        return self.ours(name, "publish")

    def ours_blobs(self, name):
        """Only the blobs and notes are kept."""
        for sub in self.path("store").iterdir():
            if sub.name not in ("blobs", "refs"):
                shutil.rmtree(sub) if sub.is_dir() else sub.unlink()
        drop_caches()
        return self.ours(name, "publish")

    def ours_cached(self, name, how):
        drop_caches()
        return self.ours(name, how)

    def ours_chunks(self, name):
        """Of the image that ours() made last: (seconds, what the tool said, MiB written)."""
        self.remove("store/chunks", "store/images")
        drop_caches()
        t = Took().run([BUILD / "bench_image", self.path("store"), SIZE_MIB, name, "chunks", self.path("ours.ext4")])
        t.said = json.loads(t.out)
        return t

    def ours_update(self, name):
        """On the image that ours() made last."""
        t = Took().run([BUILD / "bench_image", self.path("store"), SIZE_MIB, name, "update", self.path("ours.ext4")])
        return json.loads(t.out)

    # --- the peers ---
    def mke2fs(self, took, tree):
        self.remove("peer.ext4")
        took.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, self.path("peer.ext4"), f"{SIZE_MIB}M"], self.env)
        took.sync(self.folder)
        self.remove("peer.ext4")
        return took

    def umoci(self, name, cold):
        if cold:
            self.remove("oci")
        drop_caches()
        t = Took()
        if cold:
            t.run(["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false",
                   f"docker://{self.addr}/{name}:latest", f"oci:{self.path('oci')}:latest"], self.env)
        t.run(["umoci", "unpack", "--image", f"{self.path('oci')}:latest", self.path("bundle")], self.env)
        self.mke2fs(t, self.path("bundle/rootfs"))
        self.remove("bundle")
        return t

    def buildah(self, name, cold):
        def b(*args):
            return ["buildah", "--log-level", "error", *args]
        if cold:
            subprocess.run(b("rmi", "-a", "-f"), env=self.buildah_env, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, check=False)
        drop_caches()
        t = Took()
        t.run(b("from", "--tls-verify=false", f"{self.addr}/{name}:latest"), self.buildah_env)
        container = t.out.strip()
        t.run(b("mount", container), self.buildah_env)
        self.mke2fs(t, t.out.strip())
        subprocess.run(b("rm", container), env=self.buildah_env, stdout=subprocess.DEVNULL, check=True)
        return t

    def floor(self, name):
        self.remove("floor")
        self.path("floor").mkdir()
        drop_caches()
        t = Took().run([BUILD / "bench_floor", self.path("floor"), f"http://{self.addr}/v2/{name}",
                        *images.layer_digests(self.addr, name)])
        t.seconds = float(t.out)
        t.sync(self.folder)
        self.remove("floor")
        return t


def median(list_of_took, field="seconds"):
    return statistics.median(getattr(t, field) for t in list_of_took)


GOALS = {"debian-min": 4, "python-dev": 7, "many-files": 10}


def compare(what, name, ours, peers, goal):
    best = min(peers, key=lambda k: median(peers[k]))
    mine = median(ours)
    row(f"{name}, {what}", f"{mine:.2f} s" if mine >= 1 else f"{mine:.3f} s", "")
    for peer, took in peers.items():
        row(f"  {peer}", f"{median(took):.2f} s", "")
    row("  times faster than the best", f"{median(peers[best]) / mine:.1f}", f"at least {goal}")
    synced = min(median(t, "synced") for t in peers.values())
    row("  the same with everything synced on both sides",
        f"{median(ours, 'synced'):.2f} against {synced:.2f} s: {synced / median(ours, 'synced'):.1f}", "")


def measure(bench, name, rounds):
    cold, blobs, copied, extended, floor = [], [], [], [], []
    umoci, umoci_cached, buildah, buildah_cached = [], [], [], []
    for i in range(rounds):
        print(f"{name}, round {i + 1} of {rounds} ...", file=sys.stderr, flush=True)
        cold.append(bench.ours_cold(name))
        floor.append(bench.floor(name))
        blobs.append(bench.ours_blobs(name))
        copied.append(bench.ours_cached(name, "copy"))
        extended.append(bench.ours_cached(name, "extend"))
        umoci.append(bench.umoci(name, True))
        umoci_cached.append(bench.umoci(name, False))
        buildah.append(bench.buildah(name, True))
        buildah_cached.append(bench.buildah(name, False))
    goal = GOALS.get(name, 4)
    compare("registry to ext4", name, cold, {"skopeo + umoci + mke2fs": umoci, "buildah + mke2fs": buildah}, goal)
    row("  the floor (no file system)", f"{median(floor):.2f} s", "")
    row("  ours to the floor", f"{median(cold) / median(floor):.2f}", "at most 1.25")
    cached = {"umoci + mke2fs": umoci_cached, "buildah + mke2fs": buildah_cached}
    compare("blobs cached", name, blobs, cached, goal)
    compare("layers cached, their bytes in another image", name, copied, cached, 20)
    compare("layers cached, an image of them in another size", name, extended, cached, 20)
    allocated = cold[0].said["allocated"] / (1 << 20)
    row(f"{name}, image: allocated", f"{allocated:.0f} MiB", "")
    row("  written, blobs cached", f"{median(blobs, 'written'):.0f} MiB: {median(blobs, 'written') / allocated:.2f}",
        "at most 1.1")
    row("  written by umoci + mke2fs", f"{median(umoci_cached, 'written'):.0f} MiB", "")
    bench.remove("store")
    row("  peak memory (anon + shmem), cold", f"{bench.ours(name, 'publish', sample=True).peak:.0f} MiB", "under 64 MiB")
    bench.ours(name, "copy")
    chunks = bench.ours_chunks(name)
    row(f"{name}, its {chunks.said['added']} chunks stored (zstd, synced; when it is published)",
        f"{chunks.said['seconds']:.2f} s", "")
    row("  written for them", f"{chunks.said['bytes'] / (1 << 20):.0f} MiB: "
        f"{chunks.said['bytes'] / (1 << 20) / allocated:.2f} of what it takes", "")
    said = bench.ours_update(name)
    row(f"{name}, hashing its {said['chunks']} chunks", f"{said['whole'] * 1000:.0f} ms", "")
    row(f"  again when {said['changed']} have changed", f"{said['part'] * 1000:.1f} ms: "
        f"{said['part'] / said['whole'] * 100:.1f} %", "under 5 %")


def tar_of_small_files(path, count, folder_of):
    """By hand: tarfile takes minutes."""
    with open(path, "wb") as out:
        for i in range(count):
            h = bytearray(512)
            for at, text in ((0, f"{folder_of(i)}/some-file-name-{i:07}.js"), (100, "0000644"), (108, "0000000"),
                             (116, "0000000"), (124, "00000000012"), (136, "14530000000"), (148, " " * 8),
                             (156, "0"), (257, "ustar\0" + "00")):
                h[at:at + len(text)] = text.encode()
            h[148:155] = b"%06o\0" % sum(h)
            out.write(h + b"%010d" % i + bytes(502))
        out.write(bytes(1024))


def flatten_tar(bench, tar):
    """flatten() alone, its blob in the store: (seconds, what it took)."""
    tool = BUILD.parent / "layers/flatten_tool"
    bench.remove("many.ext4")
    Took().run([tool, "flatten", bench.path("many.ext4"), 0, tar])
    bench.remove("many.ext4")
    t = Took().run([tool, "flatten", bench.path("many.ext4"), 0, tar], sample=True)
    bench.remove("many.ext4", "many.ext4.store")
    return float(re.search(r"([0-9.]+) s$", t.out, re.M)[1]), t


def large_folders(bench):
    tar, tree = bench.path("many.tar"), bench.path("tree/one")
    tar_of_small_files(tar, 100000, lambda i: "one")
    seconds, _ = flatten_tar(bench, tar)
    row("one folder of 100,000 files", f"{seconds:.2f} s", "under 1 s")
    tree.mkdir(parents=True)
    for i in range(20000):
        (tree / f"some-file-name-{i:07}.js").write_text(f"{i:010}")
    t = bench.mke2fs(Took(), tree.parent)
    row("  mke2fs -d with 20,000 in one folder (quadratic)", f"{t.seconds:.2f} s", "")
    bench.remove("tree")
    tar_of_small_files(tar, 1000000, lambda i: f"dir{i // 50:05}")
    seconds, t = flatten_tar(bench, tar)
    row("1,000,000 files in 20,000 folders", f"{seconds:.2f} s", "")
    row("  peak memory (anon + shmem)", f"{t.peak:.0f} MiB", "under 64 MiB")
    bench.remove("many.tar")


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--registry")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("images", nargs="*", default=images.NAMES)
    a = ask.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    if not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        row("the page cache could not be dropped", "all runs are warm")
    with tempfile.TemporaryDirectory(prefix="cb-bench-", dir="/var/tmp") as folder:
        registry, maker = None, images.Maker(CACHE)
        try:
            if not a.registry:
                import harness
                registry = harness.Registry(CACHE / "registry")
                for name in a.images:
                    maker.push(name, registry.addr)
            bench = Bench(folder, a.registry or registry.addr, maker)
            for name in a.images:
                measure(bench, name, a.rounds)
            large_folders(bench)
        finally:
            if registry:
                registry.stop()


if __name__ == "__main__":
    main()
