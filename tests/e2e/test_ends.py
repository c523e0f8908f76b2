"""Ends that nobody planned: Ctrl-C, kill -9 of every process of ours, two calls at once."""

import json
import os
import re
import signal
import subprocess
import time
import unittest
from pathlib import Path

from harness import PROGRAM, SANITIZED, Build, E2E, environment, tar_entries, wait_until

# The promise is 2 s; the sanitizers' own work at a program's end is not part of it.
CTRL_C_SECONDS = 2 if not SANITIZED else 6


class Ends:
    builder = None

    def config(self, name, wait="sleep 600"):
        return self.home.config(name, [("first", [f"echo {name} > /srv/first"]),
                                       ("second", [f"cat /srv/first; echo now-waiting; {wait}; echo went-on"])])

    def start(self, config):
        return self.home.start("--progress", "plain", "--isolation", self.builder, "--no-boot-check", config)

    def job(self, p):
        """The run-job that the program @p started."""
        found = []
        for line in self.home.left_processes():
            pid = re.match(r"process (\d+): .*\brun-job\b", line)
            if pid and re.search(rf"\nPPid:\t{p.pid}\n", Path(f"/proc/{pid[1]}/status").read_text()):
                found.append(int(pid[1]))
        self.assertEqual(len(found), 1, "\n".join(self.home.left_processes()))
        return found[0]

    def machine(self):
        """QEMU, or what the runtime started in the container (its first process)."""
        if self.builder == "vm":
            lines = self.home.left_processes()
            found = [int(m[1]) for m in (re.match(r"process (\d+): \S*qemu-system", x) for x in lines) if m]
        else:
            found = self.home.container_processes(self.ids()[0])
        self.assertTrue(found, "\n".join(self.home.left_processes()))
        return found[0]

    def ids(self):
        return [b["id"] for b in self.home.builds()]

    def nothing_is_left(self, seconds=10):
        ids = self.ids()
        wait_until(lambda: not self.home.left(ids), lambda: "\n".join(self.home.left(ids)), seconds)

    def test_ctrl_c(self):
        p = self.start(self.config("interrupted"))
        try:
            p.wait_for(r"now-waiting")
            begin = time.monotonic()
            p.interrupt()
            got = p.end(60)
            took = time.monotonic() - begin
        finally:
            p.kill()
        self.assertEqual(got.rc, 130, str(got))
        # 130 means that all is gone, not that it soon will be
        self.assertEqual(self.home.left(self.ids()), [])
        self.assertLess(took, CTRL_C_SECONDS, str(got))
        self.assertEqual(self.home.builds()[0]["status"], "cancelled")
        self.assertEqual(self.home.versions("interrupted"), {})

    def test_a_reader_that_stopped_reading_holds_nothing_up(self):
        config = self.home.config("unread", [("loud", ["seq 1 300000; echo now-waiting; sleep 600"])])
        argv = [str(PROGRAM), "--progress", "plain", "--isolation", self.builder, "--no-boot-check", str(config)]
        p = subprocess.Popen(argv, env=environment(self.home.path), cwd=self.home.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            # all of the output is stored although nobody reads the pipe
            wait_until(lambda: self.home.builds() and "now-waiting" in
                       self.home.run("logs", self.home.builds()[0]["id"]).out, lambda: str(self.home.builds()), 60)
            p.send_signal(signal.SIGINT)  # heard, too: the build is cancelled
            wait_until(lambda: self.home.builds()[0]["status"] == "cancelled", lambda: str(self.home.builds()), 10)
            p.send_signal(signal.SIGINT)
            self.assertEqual(p.wait(10), 130)
        finally:
            p.kill()
            p.wait()
            p.stdout.close()
        self.assertEqual(self.home.left(self.ids()), [])

    def test_terminate_is_the_same(self):
        p = self.start(self.config("terminated"))
        try:
            p.wait_for(r"now-waiting")
            os.kill(p.pid, signal.SIGTERM)
            got = p.end(60)
        finally:
            p.kill()
        self.assertIn(got.rc, (130, 143), str(got))
        self.assertEqual(self.home.left(self.ids()), [])

    def test_kill_9_of_the_command_line(self):
        p = self.start(self.config("abandoned"))
        try:
            p.wait_for(r"now-waiting")
            os.kill(p.pid, signal.SIGKILL)
            p.proc.wait()
        finally:
            p.kill()
        # child, machine and runtime die with it ...
        ids = self.ids()
        wait_until(lambda: not self.home.left_processes(ids), lambda: "\n".join(self.home.left_processes(ids)), 20)
        # ... and the next start cleans up what is left, and goes on from what is cached
        got = self.ok(self.home.build(self.config("abandoned", wait="true"), "--isolation", self.builder,
                                      "--no-boot-check"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"second"})
        self.nothing_is_left()
        old = self.home.builds()[1]
        self.assertEqual((old["name"], old["status"]), ("abandoned", "failed"))
        self.assertRegex(old["error"], r"abandoned")

    def test_kill_9_of_the_job(self):
        p = self.start(self.config("murdered"))
        try:
            p.wait_for(r"now-waiting")
            os.kill(self.job(p), signal.SIGKILL)
            got = p.end(60)
        finally:
            p.kill()
        self.ends(got, 1, r"SIGKILL")
        self.nothing_is_left()
        b = self.home.builds()[0]
        self.assertEqual(b["status"], "failed")
        self.assertRegex(b["error"], r"SIGKILL")
        self.assertIn("now-waiting", self.ok(self.home.run("logs", b["id"])).text)
        again = self.ok(self.home.build(self.config("murdered", wait="true"), "--isolation", self.builder,
                                        "--no-boot-check"))
        self.assertEqual({layer for layer, _ in again.commands_run()}, {"second"})

    def test_kill_9_of_the_machine(self):
        p = self.start(self.config("broken"))
        try:
            p.wait_for(r"now-waiting")
            os.kill(self.machine(), signal.SIGKILL)
            got = p.end(60)
        finally:
            p.kill()
        self.ends(got, 1, r"(?i)SIGKILL|killed|ended")
        self.nothing_is_left()

    def test_the_agent_does_not_outlive_a_stopped_supervisor_that_is_killed(self):
        p = self.start(self.config("stopped"))
        try:
            p.wait_for(r"now-waiting")
            os.kill(p.pid, signal.SIGSTOP)
            os.kill(p.pid, signal.SIGKILL)
            p.proc.wait()
            wait_until(lambda: not self.home.left_processes(), lambda: "\n".join(self.home.left_processes()), 20)
        finally:
            p.kill()
        self.ok(self.home.run("builds"))
        self.ok(self.home.build(self.config("stopped", wait="true"), "--isolation", self.builder, "--no-boot-check"))
        self.nothing_is_left()


class EndsContainer(Ends, E2E):
    builder = "container"


class EndsVm(Ends, E2E):
    builder = "vm"


class Attach(E2E):
    """A second identical call is a reader of the first one's build."""

    def waiting(self, name):
        """A config whose command goes on when a file appears: in the guest, so by time there."""
        return self.home.config(name, [("wait", ["echo now-waiting; sleep 12; echo went-on"])])

    def start(self, config):
        return self.home.start("--progress", "json", "--no-boot-check", config)

    def test_both_end_well_and_there_is_one_build(self):
        config = self.waiting("twice")
        one = self.start(config)
        two = None
        try:
            one.wait_for(r"now-waiting")
            two = self.start(config)
            first, second = one.end(cls=Build), two.end(cls=Build)
        finally:
            one.kill()
            if two:
                two.kill()
        self.ok(first)
        self.ok(second)
        self.assertEqual(first.events, second.events)
        self.assertEqual([b["status"] for b in self.home.builds() if b["name"] == "twice"], ["success"])
        self.assertEqual(list(self.home.versions("twice")), [1])

    def test_started_at_the_same_moment(self):
        config = self.home.config("moment", [("a", ["sleep 1"])])
        calls = [self.start(config) for _ in range(4)]
        try:
            got = [c.end(cls=Build) for c in calls]
        finally:
            for c in calls:
                c.kill()
        for g in got:
            self.ok(g)
        self.assertEqual(list(self.home.versions("moment")), [1])

    def test_ctrl_c_of_the_second_detaches(self):
        config = self.waiting("detached")
        one = self.start(config)
        two = None
        try:
            one.wait_for(r"now-waiting")
            two = self.start(config)
            two.wait_for(r"now-waiting")
            two.interrupt()
            self.assertEqual(two.end(20).rc, 130)
            self.ok(one.end(cls=Build))
        finally:
            one.kill()
            if two:
                two.kill()

    def test_another_config_is_another_build(self):
        one = self.start(self.waiting("left-one"))
        try:
            one.wait_for(r"now-waiting")
            other = self.ok(self.home.build(self.home.config("right-one", [("b", ["echo quick"])]), "--no-boot-check"))
            self.assertNotIn("now-waiting", other.out)
            self.ok(one.end(cls=Build))
        finally:
            one.kill()
        self.assertEqual({b["name"] for b in self.home.builds()} & {"left-one", "right-one"}, {"left-one", "right-one"})

    def test_logs_follow_a_running_build(self):
        one = self.start(self.waiting("followed"))
        follower = None
        try:
            one.wait_for(r"now-waiting")
            follower = self.home.start("logs", "-f", "followed")
            follower.wait_for(r"now-waiting")
            self.assertIsNone(one.proc.poll())
            got = follower.end(300)
            self.ends(got, 0, r"went-on")
            self.ok(one.end(cls=Build))
        finally:
            one.kill()
            if follower:
                follower.kill()


class Interrupted(E2E):
    """Ctrl-C while something else than a command is going on. None of these builds could end by itself: the start
    command never becomes ready and a command never ends, so a slow look at the log changes nothing."""

    def interrupted(self, name, line, *args):
        config = self.home.config(name, [("wait", ["echo now-waiting; sleep 3600"])] if "machine" in name else [],
                                  start_command={"command": ["sleep", "3600"], "port": 8080})
        p = self.home.start("--progress", "plain", "--boot-timeout", "3600", *args, config)
        try:
            p.wait_for(line)
            p.interrupt()
            got = p.end(120)
        finally:
            p.kill()
        self.assertEqual(got.rc, 130, str(got))
        ids = [b["id"] for b in self.home.builds()]
        self.assertEqual(self.home.left(ids), [], str(got))  # at once: 130 means that all is gone
        self.assertEqual(self.home.builds()[0]["status"], "cancelled", str(got))
        self.assertEqual(self.home.versions(name), {})
        return got

    def test_while_a_base_is_made(self):
        before = self.home.run("plan", "--json", self.home.config("before", [("a", ["id"])])).out
        self.interrupted("base-made", r"making minimal-debian from", "--clean")
        # the base that was there still is
        after = self.home.run("plan", "--json", self.home.config("before", [("a", ["id"])])).out
        self.assertEqual(json.loads(after)["lock"], json.loads(before)["lock"])

    def test_while_the_image_is_written(self):
        self.interrupted("image-written", r"flatten all layers into one ext4 image")

    def test_while_a_machine_starts(self):
        self.interrupted("machine-vm", r"start the vm", "--isolation", "vm")

    def test_while_a_container_starts(self):
        self.needs_root()
        self.interrupted("machine-container", r"start the container", "--isolation", "container")

    def test_while_the_boot_check_runs(self):
        self.interrupted("boot-checked", r"boot the image and wait until it is ready")


class Store(E2E):
    """The store is usable after any end: what is in tmp/ and partial/ is swept or continued."""

    def test_leftovers_of_dead_processes_are_swept(self):
        dead = subprocess.Popen(["true"])
        dead.wait()
        probe = self.home.path / "tmp" / f"kvm-probe-{dead.pid}-abcdef"
        probe.mkdir(parents=True)
        (probe / "initramfs").write_text("x")
        config = self.home.config("swept", [("a", ["true"])])
        self.ok(self.home.build(config, "--no-boot-check"))
        self.assertEqual(list((self.home.store / "tmp").iterdir()), [])
        self.assertFalse(probe.exists())
        for p in (self.home.store / "blobs").rglob("*"):
            if p.is_file():
                self.assertRegex(p.name, r"^[0-9a-f]{64}$")

    def test_a_diff_is_not_reused_on_another_result_below_it(self):
        """A forced build that was stopped half way has made a lower layer anew, and not the one on it."""
        layers = [("dice", ["head -c 16 /dev/urandom | base64 > /srv/dice"]),
                  ("copy", ["echo copying; sleep 12; cp /srv/dice /srv/copy"])]
        self.ok(self.home.build(self.home.config("dice", layers), "--no-boot-check"))
        p = self.home.start("--force", "--no-boot-check", self.home.config("dice", layers))
        try:
            p.wait_for(r"\n +\| copying")
            p.interrupt()
            self.assertEqual(p.end(60).rc, 130)
        finally:
            p.kill()
        config = self.home.config("dice", layers, config={"tier": "xs"})
        got = self.ok(self.home.build(config, "--no-boot-check"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"copy"})
        self.assertRegex(got.notes, r"layer copy is not reused: what it was made on is not what the layers below it give")
        rolled = [tar_entries(self.home.cached_layer(n)) for n in ("dice", "copy")]
        self.assertEqual(rolled[0]["srv/dice"]["content"], rolled[1]["srv/copy"]["content"])

    def test_a_lost_blob_of_a_cached_layer_is_made_anew(self):
        config = self.home.config("lost", [("a", ["echo a > /srv/a"]), ("b", ["cat /srv/a"])])
        self.ok(self.home.build(config, "--no-boot-check"))
        victim = self.home.manifest("lost")["layers"][self.home.layer_names("lost").index("a")]
        Path(self.home.blob(victim["digest"])).unlink()
        got = self.ok(self.home.build(config, "--no-boot-check"))
        self.assertIn("a", {layer for layer, _ in got.commands_run()})


if __name__ == "__main__":
    unittest.main()
