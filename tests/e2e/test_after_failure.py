"""What a failed command leaves: `shell` looks at it, `resume` goes on from it; and it goes with time."""

import fcntl
import json
import os
import pty
import select
import struct
import termios
import time
import unittest

import harness
from harness import E2E, PROGRAM, environment
from test_contexts import Repository


class Terminal:
    """The program on a terminal of its own, as a person has it."""

    def __init__(self, home, *args, rows=31, cols=97):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [str(PROGRAM), *args], environment(home.path, {"TERM": "vt220"}))
        self.resize(rows, cols)
        self.said = ""

    def resize(self, rows, cols):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def keys(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, text, seconds=120):
        """Until @text was said; what came since the last call is dropped up to there."""
        end = time.monotonic() + seconds
        while text not in self.said:
            if time.monotonic() > end:
                raise AssertionError(f"no {text!r} in {self.said!r}")
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.said += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended without {text!r}: {self.said!r}")
        self.said = self.said.split(text, 1)[1]

    def end(self):
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


FIRST = ["echo one >> /srv/ran", {"type": "env", "args": ["WORD=from env"]}, {"type": "workdir", "args": ["/srv/dir"]},
         {"type": "user", "args": ["daemon"]}]
# It fails as long as nothing has mended /srv/ran's neighbour, and leaves something half done.
BROKEN = "echo half > /tmp/half; echo $WORD; exit 7"


class AfterFailure:
    builder = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.layers = [("good", ["echo good >> /srv/good"]),
                      ("bad", [*FIRST, {"type": "shell", "args": ["sh", "-c", BROKEN], "name": "the broken one",
                                        "env_variables": {"OWN": "its own"}}, "echo after > /tmp/after"])]
        cls.config_file = cls.home.config("fails", cls.layers)
        cls.built = cls.home.build(cls.config_file, "--isolation", cls.builder, "--no-boot-check")
        cls.failed = cls.home.builds()[0]["id"]

    def shell(self, script, build=None):
        got = self.home.run("shell", build or self.failed, prefix=["sh", "-c", 'printf %s "$0" | "$@"', script])
        return got

    def test_01_the_build_says_how_to_look(self):
        self.ends(self.built, 1)
        self.assertIn(f"`capsule-build shell {self.failed}` looks at it", self.built.notes)
        self.assertIn(f"`capsule-build resume {self.failed}` goes on from it", self.built.notes)
        folder = self.home.path / "failed" / self.failed
        self.assertEqual(sorted(p.name for p in folder.iterdir()), ["lower.ext4", "scratch.ext4", "state.json"])
        self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
        self.assertEqual((folder / "scratch.ext4").stat().st_mode & 0o777, 0o600)

    def test_02_a_shell_has_the_commands_files_user_folder_and_environment(self):
        got = self.ok(self.shell("cat /srv/good /srv/ran /tmp/half; pwd; id -un; echo \"$WORD, $OWN, $HOME\"; "
                                 "ls /tmp/after 2>&1; tty || true"))
        self.assertEqual(got.out.splitlines()[:6],
                         ["good", "one", "half", "/srv/dir", "daemon", "from env, its own, /usr/sbin"])
        self.assertIn("No such file", got.out)
        self.assertIn("not a tty", got.out)

    def test_03_its_exit_code_and_both_streams_pass(self):
        got = self.shell("echo to out; echo to err >&2; exit 43")
        self.ends(got, 43)
        self.assertEqual(got.out, "to out\n")
        self.assertIn("to err\n", got.err)

    def test_04_what_it_changes_is_thrown_away(self):
        self.ok(self.shell("rm /tmp/half; echo made > /tmp/made; cat /tmp/made"))
        got = self.ok(self.shell("cat /tmp/half; ls /tmp/made || true"))
        self.assertEqual(got.out, "half\n")

    def test_05_much_input_arrives_whole(self):
        lines = "".join(f"echo {i} of the lines >> /tmp/lines\n" for i in range(3000))
        got = self.ok(self.shell(lines[:60000].rpartition("\n")[0] + "\nwc -l < /tmp/lines\n"))
        self.assertEqual(got.out.split(), [str(lines[:60000].count("\n"))])

    def test_06_a_terminal(self):
        t = Terminal(self.home, "shell", "fails")
        t.wait_for("what you change here is thrown away")
        t.keys("echo $TERM size: $(stty size) $(tty)\n")
        t.wait_for("vt220 size: 31 97 /dev/pts/")
        t.resize(40, 120)
        t.keys("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo re''sized\n")
        t.wait_for("resized")
        t.keys("trap 'echo he''ard' INT; sleep 1000\n")
        t.wait_for("sleep 1000\r\n")
        time_out = time.monotonic() + 60
        while "heard" not in t.said and time.monotonic() < time_out:  # the sleep may not have begun
            t.keys("\x03")
            try:
                t.wait_for("heard", seconds=1)
                break
            except AssertionError:
                pass
        t.keys("exit 5\n")
        self.assertEqual(t.end(), 5)

    def test_07_resume_runs_the_failed_command_and_those_after_it(self):
        # nothing mends the command itself: it fails once more, and its own state is kept in turn
        got = self.home.run("--progress", "json", "resume", self.failed, cls=harness.Build)
        self.ends(got, 2)  # options come after the subcommand
        got = self.home.run("resume", "--progress", "json", self.failed, cls=harness.Build)
        self.ends(got, 1)
        self.assertEqual(got.commands_run(), [("bad", "the broken one")], str(got))
        self.assertIn(f"layer bad goes on from command 5 of 6 (the broken one), where build {self.failed} failed", got.notes)
        again = self.home.builds()[0]["id"]
        self.assertNotEqual(again, self.failed)
        self.assertEqual(self.ok(self.shell("cat /srv/good /srv/ran", again)).out, "good\none\n")

    def test_08_what_is_kept_goes_when_it_is_too_much(self):
        df = json.loads(self.ok(self.home.run("df", "--json")).out)
        self.assertGreaterEqual(df["failed_states"]["count"], 2)
        self.assertGreater(df["failed_states"]["bytes"], 0)
        self.assertIn("states of failed commands", self.ok(self.home.run("df")).out)
        got = json.loads(self.ok(self.home.run("gc", "--min-age", "0", "--dry-run", "--json")).out)
        self.assertEqual(got["failed_states"]["count"], df["failed_states"]["count"])
        self.assertTrue((self.home.path / "failed" / self.failed).exists())
        self.ok(self.home.run("gc", "--min-age", "0"))
        self.assertEqual(list((self.home.path / "failed").iterdir()), [])
        self.ends(self.shell("true"), 1, r"of build \w+ of fails no state is kept: .* \(3 are kept, for a week\)")

    def test_09_without_a_state_resume_runs_the_layer_from_its_start(self):
        got = self.home.run("resume", "--progress", "json", self.failed, cls=harness.Build)
        self.ends(got, 1)
        self.assertRegex(got.notes, r"layer bad runs from its start: its state is not kept")
        self.assertEqual(got.commands_run()[0], ("bad", "echo one >> /srv/ran"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"bad"})

    def test_10_no_more_than_the_settings_say(self):
        none = self.folder / "none.yaml"
        none.write_text("keep_failed: 0\n")
        got = self.home.build(self.config_file, "--config", none, "--isolation", self.builder, "--no-boot-check")
        self.ends(got, 1)
        self.assertNotIn("capsule-build shell", got.notes)
        one = self.folder / "one.yaml"
        one.write_text("keep_failed: 1\n")
        for _ in range(2):
            self.home.build(self.config_file, "--config", one, "--isolation", self.builder, "--no-boot-check")
        self.assertEqual([p.name for p in (self.home.path / "failed").iterdir()], [self.home.builds()[0]["id"]])


class AfterFailureContainer(AfterFailure, E2E):
    builder = "container"

    def test_11_a_resumed_build_is_published(self):
        """The failed command succeeds the second time: what it finds outside of the image has changed."""
        server = harness.Listener()
        self.addCleanup(server.close)
        config = self.home.config("mends", [
            ("one", ["echo one >> /srv/ran", "echo try >> /srv/tries; test $(wc -l < /srv/tries) = 2",
                     "echo three >> /srv/ran"]),
            ("two", ["cat /srv/ran /srv/tries"])])
        first = self.home.build(config, "--isolation", self.builder, "--no-boot-check")
        self.ends(first, 1)
        build = self.home.builds()[0]["id"]
        got = self.ok(self.home.run("resume", "--progress", "json", "--no-boot-check", "mends", cls=harness.Build))
        self.assertEqual([layer for layer, _ in got.commands_run()], ["one", "one", "two"])
        self.assertEqual(got.output("two").split(), ["one", "three", "try", "try"])
        self.assertIn(f"(as in build {build})", got.notes)
        self.assertEqual(list(self.home.versions("mends")), [1])
        self.assertFalse((self.home.path / "failed" / build).exists())
        self.ends(self.home.run("shell", "mends"), 2, r"build \w+ of mends did not fail")
        self.ends(self.home.run("resume", "mends"), 2, r"build \w+ of mends did not fail")
        self.ends(self.home.run("shell", "nobody"), 1, r"nobody")

    def test_12_a_command_that_may_be_tried_again_is_resumed_from_before_it(self):
        config = self.home.config("tries", [("one", [
            {"type": "start", "args": ["sh", "-c", "echo up > /run/up; exec sleep 1000"]},
            {"type": "shell", "args": ["sh", "-c", "echo x >> /srv/x; test -e /srv/flag"], "max_retries": 1}])])
        self.ends(self.home.build(config, "--isolation", self.builder, "--no-boot-check"), 1)
        # the shell shows the last attempt, with what `start` keeps running
        self.assertEqual(self.ok(self.shell("cat /srv/x /run/up", "tries")).out, "x\nup\n")
        got = self.home.run("resume", "--progress", "json", "tries", cls=harness.Build)
        self.ends(got, 1)
        self.assertEqual(self.ok(self.shell("cat /srv/x", "tries")).out, "x\n")


    def test_13_the_lock_is_the_old_one(self):
        """A branch that moves meanwhile: a new build would take what it means now, a resumed one does not."""
        repo = Repository(self.folder / "repo")
        old = repo.commit("one", word="old\n")
        path = self.home.config("moves")
        doc = json.loads(path.read_text())
        doc["layers"] = [{"name": "src", "context": [{"git": repo.url, "dst": "/srv/src"}], "init_commands": [
            "echo x >> /srv/tries; cat /srv/src/word; test $(wc -l < /srv/tries) = 2"]}]
        path.write_text(json.dumps(doc))
        self.ends(self.home.build(path, "--isolation", self.builder, "--no-boot-check"), 1)
        repo.commit("two", word="new\n")
        got = self.ok(self.home.run("resume", "--progress", "json", "moves", cls=harness.Build))
        self.assertEqual(got.output("src").split(), ["old"], str(got))
        lock = self.home.manifest("moves")["lock"]
        self.assertEqual([g["commit"] for g in lock["git"]], [old])


    def test_14_that_containers_start_is_tried_once(self):
        probe = self.home.path / "container-probe"
        kept = probe.read_text()
        probe.write_text("of another runtime\n")
        self.ok(self.home.build(self.home.config("tried", [("a", ["true"])]), "--isolation", self.builder, "--no-boot-check"))
        self.assertEqual(probe.read_text(), kept)


class AfterFailureVm(AfterFailure, E2E):
    builder = "vm"

    def test_06b_a_container_does_not_mount_what_a_machine_wrote(self):
        self.needs_root()
        got = self.home.run("resume", "--progress", "json", "--isolation", "container", self.failed, cls=harness.Build)
        self.ends(got, 3)
        self.assertEqual(got.commands_run(), [])
        self.assertRegex(got.error, r"what build \w+ left was written by a virtual machine")


if __name__ == "__main__":
    unittest.main()
