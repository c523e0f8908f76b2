"""A guest that means harm: an agent of somebody else's in the place of ours (tests/builder/hostile_agent.c), which lies
about frames, hands over layers of its own making, and goes away when it likes. Each time the build fails for a reason that
says so, nothing is left, and the next build on the same machine goes well."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import harness
from harness import PROGRAM, E2E

sys.path.insert(0, str(Path(__file__).parents[1] / "layers"))
import corpus  # noqa: E402

HOSTILE = Path(os.environ["CB_BUILD_DIR"]) / "tests" / "builder" / "hostile_agent"


class Hostile:
    builder = None

    def program(self, trick, tar=b""):
        """capsule-build of another installation: the same, but for its agent."""
        where = Path(tempfile.mkdtemp(prefix="bin-", dir=self.folder))
        for name in ("capsule-build", "capsule-build-job"):
            shutil.copy2(PROGRAM.parent / name, where / name)
        agent = where / "capsule-agent"
        agent.write_bytes(HOSTILE.read_bytes() + tar + f"\nTRICK {trick} {len(tar)}\n".encode())
        agent.chmod(0o755)
        return where / "capsule-build"

    def build(self, name, trick, tar=b""):
        config = self.home.config(name, [("one", [f"echo {name}"])])
        argv = [str(self.program(trick, tar)), "--progress", "json", "--isolation", self.builder, "--no-boot-check", str(config)]
        p = harness.Running(argv, harness.environment(self.home.path), self.home.folder, self.home.folder)
        try:
            return p.end(120, harness.Build)
        finally:
            p.kill()

    def fails(self, trick, pattern, status=1, tar=b"", name=None):
        name = name or f"{trick}-{self.builder}"
        got = self.build(name, trick, tar)
        self.ends(got, status)
        self.assertRegex(got.error, pattern)
        self.assertEqual(got.status, "failed")
        self.assertEqual(self.home.versions(name), {})
        return got

    def worker_lives_on(self):
        honest = self.home.config(f"honest-{self.builder}", [("one", ["echo well > /srv/x; cat /srv/x"])])
        self.ok(self.home.build(honest, "--isolation", self.builder, "--no-boot-check"))
        for blob in (self.home.store / "blobs" / "sha256").iterdir():
            self.assertEqual(harness.sha256(blob.read_bytes()), "sha256:" + blob.name)


class HostileContainer(Hostile, E2E):
    builder = "container"

    def test_frames_that_are_none(self):
        self.needs_root()
        for trick, words in (("garbage", "the builder sent bytes that are not a frame"),
                             ("length", "the builder sent bytes that are not a frame"),
                             ("number", "the builder sent the end of another step"),
                             ("type", "the builder sent an answer of the wrong kind"),
                             ("half", "the builder ended"),
                             ("far", "take out its changes: .*the builder sent a number out of range|outside its disk|impossible"),
                             ("long", "outside its disk|a number out of range")):
            with self.subTest(trick):
                self.fails(trick, words)
        self.worker_lives_on()

    def test_layers_of_its_own_making(self):
        self.needs_root()
        cases = {c.name: c for c in corpus.cases()}
        for name in ("dotdot-inside", "hardlink-missing", "cut-in-data", "size-beyond-all", "sparse-map-endless", "no-tar"):
            with self.subTest(name):
                bad = cases[name].layers()[cases[name].verdict.layer - 1][1]
                got = self.fails("layer", r"layer one|layer \d of \d", tar=bad, name=name)
                self.assertIn(got.of("build-status")[-1]["class"], ("CORRUPT", "UNTRUSTED", "LIMIT"))
        # one that is a layer is taken as one, wherever it comes from
        self.ok(self.build("taken", "layer", cases["modes"].layers()[0][1]))
        self.worker_lives_on()

    def test_a_file_of_accounts_that_nobody_reads(self):
        """What is written to a pipe waits for its reader: whoever makes the user must not."""
        self.needs_root()
        shell = lambda text: {"args": ["bash", "-c", text], "run_as_root": True}
        pipe = ("pipe", [shell("sed -i /:1000:/d /etc/passwd; rm -f /etc/shadow; mkfifo /etc/shadow")])
        build = lambda layers: self.home.build(self.home.config("accounts", layers, config={"runner_user": "runner"}),
                                               "--isolation", self.builder, "--no-boot-check", seconds=120)
        self.ok(build([pipe]))
        self.ends(build([pipe, ("next", [shell("true")])]), 1, "layer next: .*/etc/shadow")


class HostileVm(Hostile, E2E):
    builder = "vm"

    def test_a_guest_that_goes_away(self):
        for trick, words in (("panic", r"Kernel panic - not syncing: Attempted to kill init"),
                             ("off", r"QEMU: powered off: layer one: command 1 of 1"),
                             ("exit", r"(?s)QEMU: the guest's kernel panicked: Attempted to kill init!.*: layer one: command 1 of 1.*"
                                      r"Kernel panic - not syncing")):
            with self.subTest(trick):
                self.fails(trick, words)
        self.worker_lives_on()

    def test_frames_and_layers(self):
        self.fails("garbage", "the builder sent bytes that are not a frame")
        self.fails("layer", r"layer one", tar=b"x" * 1000, name="no-tar")
        self.worker_lives_on()


if __name__ == "__main__":
    import unittest
    unittest.main()
