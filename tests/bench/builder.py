"""How fast a builder is there, what a command and a layer cost, and how output and diffs come out.

Times are of the events that a build stores (milliseconds), so they are what a person at a terminal sees. With words, only
those parts: `./dev bench builder first layers output diff warm`.
"""

import re
import shutil
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from harness import Home, clone_home, perl_server, warm_home  # noqa: E402
from second_run import must, row  # noqa: E402

BUILDERS = ("vm", "container")
TIMES = 5
LINES = 200
MB = 10 ** 6


def ms(event):
    ts = event["ts"]
    return ts if isinstance(ts, (int, float)) else datetime.fromisoformat(ts.replace("Z", "+00:00")).timestamp() * 1000


def seconds(values):
    return f"{statistics.median(values):.2f} s"


def kvm_works(home):
    return "KVM works" in home.run("doctor").out


class Bench:
    def __init__(self, folder):
        (folder / "dir").mkdir()
        clone_home(warm_home(), folder / "dir" / "home")
        self.home = Home(folder / "dir" / "home")
        self.n = 0

    def build(self, builder, layers, *args, **fields):
        """A build of layers that nobody has built before, on a base that is there."""
        self.n += 1
        (name, commands), *others = layers
        layers = [(name, [f"{commands[0]} # {self.n}", *commands[1:]]), *others]
        config = self.home.config(f"bench-{self.n}", layers, **fields)
        return must(self.home.build(config, "--isolation", builder, *args))

    def first_byte(self, builder):
        """From the moment that the job is taken to the first byte that its first command writes."""
        got = self.build(builder, [("one", ["echo here"])], "--no-boot-check")
        taken = next(e for e in got.of("build-status") if e["status"] == "running")
        return (ms(got.of("output")[0]) - ms(taken)) / 1000, got

    def first(self):
        kvm = kvm_works(self.home)
        how = "KVM" if kvm else "emulated"
        self.first_byte("container")  # what stands on the disk is warm for all that follow
        cold = []
        for _ in range(TIMES):
            shutil.rmtree(self.home.path / "saved", ignore_errors=True)
            cold.append(self.first_byte("vm")[0])
        saved = [self.first_byte("vm") for _ in range(TIMES)]
        if not all("that was saved went on" in got.notes for _, got in saved):
            raise SystemExit("a builder machine that was saved was not used")
        row(f"first byte of the first command, vm, booted ({how})", seconds(cold), f"under {'0.5' if kvm else '3'} s")
        row("first byte of the first command, vm, saved", seconds([t for t, _ in saved]), "under 0.5 s")
        row("first byte of the first command, container", seconds([self.first_byte("container")[0] for _ in range(TIMES)]),
            "under 0.15 s")

    def layers(self):
        for builder in BUILDERS:
            def took(n):
                got = self.build(builder, [(f"layer-{i}", ["true"]) for i in range(n)], "--no-boot-check")
                steps = [s for s in got.steps() if s["phase"] in ("recipe", "post-build") and not s.get("cached")]
                begin = next(ms(e) for e in got.events if e["type"] == "step-start" and e["step"] == steps[0]["step"])
                end = next(ms(e) for e in got.events if e["type"] == "step-end" and e["step"] == steps[-1]["step"])
                return (end - begin) / 1000
            one = statistics.median(took(1) for _ in range(3))
            ten = statistics.median(took(10) for _ in range(3))
            row(f"each of ten layers of `true` over one, {builder}", f"{(ten - one) / 9:.3f} s", "under 0.2 s")

    def output(self):
        kvm = kvm_works(self.home)
        for builder in BUILDERS:
            size = 100 if builder == "vm" and not kvm else 400
            got = self.build(builder, [("one", [f"dd if=/dev/zero bs=1M count={size} 2>/dev/null"])], "--no-boot-check")
            took = next(s["elapsed_ms"] for s in got.steps(phase="recipe") if "dd" in s["cmd"]) / 1000
            goal = "at least 100 MB/s" if kvm else "at least 20 MB/s"
            row(f"output of a command, {builder}", f"{size * 1.048576 / took:.0f} MB/s", goal if builder == "vm" else "")
            row(f"from a line's write to its event, {builder}", f"{self.latency(builder):.0f} ms", "under 20 ms")

    def latency(self, builder):
        """Median over lines that say when they were written. The guest's clock is the host's, to the millisecond that
        it was set with."""
        script = (f"perl -MTime::HiRes=time,sleep -e '$|=1; for (1..{LINES}) "
                  "{ printf \"at %.0f\\n\", time * 1000; sleep 0.03 }'")
        got = self.build(builder, [("one", [script])], "--no-boot-check")
        late = []
        for e in got.of("output"):
            late += [ms(e) - float(line.split()[1]) for line in e["data"].splitlines() if line.startswith("at ")]
        if len(late) != LINES:
            raise SystemExit(f"{len(late)} lines of {LINES}")
        return statistics.median(late)

    def diff(self):
        for builder in BUILDERS:
            got = self.build(builder, [("one", ["dd if=/dev/urandom of=/srv/random bs=1M count=8 2>/dev/null",
                                                "for i in $(seq 25); do cat /srv/random; done > /srv/big; rm /srv/random; "
                                                "sync"])], "--no-boot-check")
            write = next(s["elapsed_ms"] for s in got.steps(phase="recipe") if "seq 25" in s["cmd"]) / 1000
            out = got.steps(phase="post-build")[0]["elapsed_ms"] / 1000
            row(f"writing 200 MB, {builder}", f"{write:.1f} s")
            row(f"  taking that out as a layer, {builder}", f"{out:.1f} s", f"under {2 * write:.1f} s: twice as long")

    def warm(self):
        server = perl_server(8080)
        script = "sleep 2; exec " + " ".join("'" + a.replace("'", "'\\''") + "'" for a in server)
        self.build("container", [("one", ["true"])], start_command={
            "command": ["sh", "-c", script], "port": 8080, "health_path": "/"}, config={"tier": "s", "snapshot": "warm"})
        name = f"bench-{self.n}"

        def ready(*args):
            took = []
            for _ in range(3):
                got = must(self.home.run("boot", name, "--once", *args))
                took.append(float(re.search(r"is ready after ([\d.]+) s", got.text).group(1)))
            return statistics.median(took)
        row("a boot is ready (a server that takes 2 s to start)", f"{ready():.1f} s")
        row("  the same resumed from the saved machine", f"{ready('--warm'):.2f} s", "under 1 s")


def main():
    parts = sys.argv[1:] or ["first", "layers", "output", "diff", "warm"]
    with tempfile.TemporaryDirectory(prefix="cb-bench-", dir="/var/tmp") as tmp:
        bench = Bench(Path(tmp))
        for part in parts:
            getattr(bench, part)()


if __name__ == "__main__":
    main()
