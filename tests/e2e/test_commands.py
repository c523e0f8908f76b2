"""Commands that say no, start commands that do not come up: exit 1, evidence, nothing published."""

import re
import unittest

from harness import E2E, perl_server


class FailingCommand:
    builder = None

    def build(self, name, second):
        config = self.home.config(name, [("good", ["echo kept > /srv/kept"]), ("bad", [second])])
        return self.home.build(config, "--isolation", self.builder, "--no-boot-check")

    def failed(self, got, name, *patterns):
        self.ends(got, 1)
        self.assertEqual(got.status, "failed")
        for p in ("layer bad", *patterns):
            self.assertRegex(got.error, p, str(got))
        self.assertEqual(self.home.versions(name), {})
        self.assertEqual(self.home.left([b["id"] for b in self.home.builds()]), [])
        b = self.home.builds()[0]
        self.assertEqual((b["name"], b["status"]), (name, "failed"))

    def test_exit_code_and_last_lines(self):
        got = self.build("exits", "for i in $(seq 30); do echo line-$i; done; exit 3")
        self.failed(got, "exits", r"exit code 3", r"for i in \$\(seq 30\)",
                    "\n".join(f"line-{i}" for i in range(11, 31)))
        self.assertNotRegex(got.error, r"line-10\b")
        self.assertEqual(got.steps(phase="recipe")[-1]["exit"], 3)
        # the same text is what a person sees
        plain = self.home.run("--isolation", self.builder, "--no-boot-check", self.folder / "home-dir" / "exits.yaml")
        self.ends(plain, 1, r"layer bad", r"exit code 3", r"line-30")

    def test_signal(self):
        self.failed(self.build("killed", "echo before; kill -9 $$"), "killed", r"SIGKILL", r"before")

    def test_the_earlier_layer_stays_cached(self):
        self.build("mended", "exit 1")
        got = self.ok(self.build("mended", "cat /srv/kept"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"bad"})
        self.assertEqual(got.output("bad").split()[:1], ["kept"])

    def test_a_program_that_is_not_there(self):
        self.failed(self.build("absent", {"type": "exec", "args": ["/no/such/program"]}), "absent",
                    r"/no/such/program", r"exit code 127|No such file")

    def test_time_limit(self):
        got = self.build("slow", {"type": "shell", "args": ["sleep", "1000"], "timeout": "2s"})
        self.failed(got, "slow", r"time limit")


class FailingCommandContainer(FailingCommand, E2E):
    builder = "container"


class FailingCommandVm(FailingCommand, E2E):
    builder = "vm"


class NotReady(E2E):
    """The boot check says no. The layers stay cached, so the next try is short."""

    def build(self, start, *args):
        config = self.home.config("unready", [("a", ["echo cached > /srv/a"])], start_command=start)
        return self.home.build(config, *args)

    def failed(self, got, *patterns):
        self.ends(got, 1)
        self.assertEqual(got.status, "failed")
        for p in patterns:
            self.assertRegex(got.error, p, str(got))
        self.assertRegex(got.error, r"(?i)console")
        self.assertEqual(self.home.versions("unready"), {})
        self.assertEqual(self.home.left(), [])

    def not_in_time(self, start, sign):
        """A build that is given too little time, and how much that was. How long a guest takes to come so far that
        its failure shows @sign is not known (it may be emulated, on a busy machine): it is given more until it does."""
        for seconds in (15, 60, 240):
            got = self.build(start, "--boot-timeout", str(seconds))
            if re.search(sign, got.error or ""):
                break
        return got, seconds

    def test_1_the_start_command_exits(self):
        self.failed(self.build({"command": ["sh", "-c", "echo the last words; exit 4"], "port": 8080}),
                    r"exit(ed)?( with)?( code)? 4", r"the last words")

    def test_1_what_was_published_unchecked_is_not_up_to_date_for_a_checked_build(self):
        config = self.home.config("unchecked", [("a", ["echo cached > /srv/a"])],
                                  start_command={"command": ["sh", "-c", "exit 4"], "port": 8080})
        self.ok(self.home.build(config, "--no-boot-check"))
        again = self.ok(self.home.build(config, "--no-boot-check"))
        self.assertEqual(again.phases_run() - {"resolve"}, set())
        self.ends(self.home.build(config), 1)
        self.assertEqual(sorted(self.home.versions("unchecked")), [1])

    def test_2_nothing_answers_in_time(self):
        got, _ = self.not_in_time({"command": ["sh", "-c", "echo waiting; exec sleep 1000"], "port": 8080}, r"8080")
        self.failed(got, r"8080", r"waiting")
        self.assertEqual(got.commands_run(), [])

    def test_3_the_health_path_says_no(self):
        server = perl_server(8080)
        server[-1] = server[-1].replace("200 OK", "503 Not yet")
        got, seconds = self.not_in_time({"command": server, "port": 8080, "health_path": "/health"}, r"503")
        self.failed(got, r"503", r"/health")
        self.assertRegex(got.of("build-status")[-1]["hint"], rf"health_path.*longer than {seconds} s")

    def test_4_mended_it_is_published_without_running_a_command(self):
        got = self.ok(self.build({"command": perl_server(8080), "port": 8080}))
        self.assertEqual(got.commands_run(), [])
        self.assertEqual(list(self.home.versions("unready")), [1])

    def test_5_a_failed_check_leaves_the_version_in_use(self):
        self.failed_again = self.build({"command": ["false"], "port": 8080})
        self.ends(self.failed_again, 1)
        self.assertEqual(list(self.home.versions("unready")), [1])
        self.ends(self.home.run("show", "unready"), 0, re.escape("unready"))


if __name__ == "__main__":
    unittest.main()
