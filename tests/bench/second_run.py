"""What a person waits for at a terminal when nothing changed, and what the parts weigh."""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
import harness  # noqa: E402
from harness import AGENT, PROGRAM, Build, Home, Layout, Registry, base_tar, clone_home, warm_home  # noqa: E402


def row(what, value, goal=""):
    print(f"{what} | {value} | {goal}", flush=True)


def median_ms(call, times):
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        took.append((time.perf_counter() - begin) * 1000)
    return f"{statistics.median(took):.1f} ms"


def must(result):
    if result.rc:
        raise SystemExit(str(result))
    return result


def job_of(pid):
    """The run-job child of a process."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"run-job" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def memory_kib(pid):
    """RssAnon + RssShmem: what is really its own, without mapped files."""
    with contextlib.suppress(OSError):
        return sum(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                   if line.startswith(("RssAnon", "RssShmem")))
    return 0


def peak_of_build(home, config, *args):
    """Runs a build and samples its child's memory every 2 ms; (peak in MiB, the build)."""
    p = home.start("--progress", "json", "--no-boot-check", *args, config)
    job, peak = None, 0
    while p.proc.poll() is None:
        job = job or job_of(p.pid)
        peak = max(peak, memory_kib(job)) if job else peak
        time.sleep(0.002)
    return peak / 1024, must(p.end(cls=Build))


def big_image(folder, registry):
    """minimal-debian and a second layer of 700 MiB in 20,000 files and one of 300 MiB."""
    layout = Layout(folder).add_layer(base_tar().read_bytes())
    block = os.urandom(1 << 20)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for i in range(20000):
            m = tarfile.TarInfo(f"srv/many/{i % 100}/{i}")
            m.size = 20000
            t.addfile(m, io.BytesIO(block[i:i + 20000]))
        m = tarfile.TarInfo("srv/large")
        m.size = 300 << 20
        t.addfile(m, io.BytesIO(block * 300))
    layout.add_layer(out.getvalue())
    layout.finish(Env=["PATH=/usr/bin:/bin"])
    return registry.push(layout, "big")


def flatten_against_umoci(folder, home, layout):
    """The flatten step of a build from cached blobs, against umoci unpack + mke2fs -d on the same image."""
    config = home.config("flat", [], base="minimal-debian")
    ours, theirs = [], []
    for i in range(3):
        got = must(home.build(config, "--no-boot-check", "--force"))
        ours.append(sum(s["elapsed_ms"] for s in got.steps(phase="flatten")) / 1000)
        bundle, image = folder / f"bundle-{i}", folder / f"image-{i}"
        begin = time.perf_counter()
        subprocess.run(["umoci", "unpack", "--image", f"{layout.folder}:latest", bundle], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", bundle / "rootfs", image, "1G"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs.append(time.perf_counter() - begin)
    a, b = statistics.median(ours), statistics.median(theirs)
    row("flatten minimal-debian from cached blobs", f"{a:.2f} s", f"umoci unpack + mke2fs -d {b:.2f} s")
    row("  that is faster by", f"{b / a if a else 0:.1f}x", "at least 3x")


def main():
    with tempfile.TemporaryDirectory(prefix="cb-bench-", dir="/var/tmp") as tmp:
        folder = Path(tmp)
        (folder / "dir").mkdir()
        clone_home(warm_home(), folder / "dir" / "home")
        home = Home(folder / "dir" / "home")
        config = home.config("bench", [("one", ["true"]), ("two", ["echo two > /srv/two"])])
        begin = time.perf_counter()
        first = must(home.build(config, "--no-boot-check"))
        row("first build, two small layers, base cached", f"{time.perf_counter() - begin:.1f} s", "no boot check")
        for s in first.steps():
            if s.get("elapsed_ms", 0) and s["elapsed_ms"] > 200:
                row(f"  {s['phase']}: {(s.get('cmd') or '')[:50]}", f"{s['elapsed_ms'] / 1000:.2f} s")
        row("second run, nothing changed", median_ms(lambda: must(home.run(config, "--no-boot-check")), 15),
            "under 100 ms")
        row("validate", median_ms(lambda: must(home.run("validate", config)), 15))
        row("an empty program, for comparison", median_ms(lambda: subprocess.run(["/bin/true"]), 15))
        row("capsule-agent", f"{AGENT.stat().st_size / 1024:.0f} KiB", "under 200 KiB")
        row("capsule-build", f"{PROGRAM.stat().st_size / 1024:.0f} KiB")
        if harness.SANITIZED:
            return
        registry = Registry(folder / "registry")
        try:
            ref = big_image(folder / "big", registry)
            for what, base in (("minimal-debian", "minimal-debian"), ("an image of 1 GiB, pulled", ref)):
                # another command each time, so that the whole of it runs
                c = home.config("peak", [("x", [f"echo {what} > /srv/x; head -c 100000000 /dev/urandom > /srv/y"])], base=base)
                mib, _ = peak_of_build(home, c)
                row(f"peak of run-job (anon + shmem), {what}", f"{mib:.1f} MiB", "under 64 MiB")
        finally:
            registry.stop()
        flatten_against_umoci(folder, home, harness.debian_layout(folder / "debian"))


if __name__ == "__main__":
    main()
