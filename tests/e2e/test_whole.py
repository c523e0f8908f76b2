"""The whole path, once per builder: build, look at it, boot it, change it, build again."""

import json
import re
import subprocess
import unittest

import harness
from harness import E2E, http_get, perl_server


class Whole:
    """The tests; a subclass names the builder."""

    builder = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config_file = cls.write("b")
        cls.first = cls.home.build(cls.config_file, "--isolation", cls.builder)

    @classmethod
    def write(cls, last, port=8080, **fields):
        return cls.home.config(
            "whole",
            [("tools", ["echo to-stdout; echo to-stderr >&2",
                        {"type": "exec", "args": ["sh", "-c", "id -un; pwd; umask"], "run_as_root": True},
                        {"args": ["printf", "%s|", "two words", "$HOME"]}]),
             ("app", ["id -un; echo $HOME; echo first > ~/first",
                      {"type": "shell", "args": ["bash", "-lc", f"echo {last} > ~/last"]}])],
            config={"tier": "s", "runner_user": "app"},
            start_command={"command": perl_server(port), "port": port, "health_path": "/health",
                           "env": {"COLOUR": "green"}},
            **fields)

    def test_01_first_build_succeeds(self):
        self.ok(self.first)
        self.assertEqual(self.first.status, "success")

    def test_02_the_builder_and_why_are_in_the_log(self):
        self.assertRegex(self.first.notes, rf"isolation: {self.builder}")

    def test_03_commands_run_in_order_as_their_user(self):
        out = [s["output"] for s in self.first.steps(phase="recipe")]
        self.assertEqual(len(out), 5, str(self.first))
        self.assertEqual(sorted(out[0].split()), ["to-stderr", "to-stdout"])
        self.assertEqual(out[1].split()[0], "root")
        self.assertEqual(out[1].split()[2], "0022")
        self.assertEqual(out[2], "two words|$HOME|")
        self.assertEqual(out[3].split(), ["app", "/home/app"])

    def test_04_events_count_without_gaps(self):
        self.assertEqual([e["seq"] for e in self.first.events], list(range(1, len(self.first.events) + 1)))
        self.assertEqual(self.first.events[-1]["type"], "build-status")
        plan = self.first.of("plan")
        self.assertEqual(plan[0]["total_steps"], len(self.first.of("step-start")))
        self.assertEqual([(l["name"], l["cached"]) for l in plan[0]["layers"]], [("tools", False), ("app", False)])

    def test_05_streams_are_told_apart(self):
        streams = {harness.output_of(e).decode().strip(): e["stream"] for e in self.first.of("output")}
        self.assertEqual(streams.get("to-stdout"), "stdout")
        self.assertEqual(streams.get("to-stderr"), "stderr")

    def test_06_it_was_boot_checked_before_it_was_published(self):
        phases = [s["phase"] for s in self.first.steps()]
        self.assertLess(phases.index("boot-check"), phases.index("publish"))
        self.assertLess(phases.index("flatten"), phases.index("boot-check"))
        self.assertRegex(self.first.notes, r"GET /health on port 8080 answered 200")

    def test_07_the_file_system_is_clean(self):
        got = subprocess.run(["/sbin/e2fsck", "-fn", str(self.home.image("whole"))],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(got.returncode, 0, got.stdout)
        # five passes, a summary, and nothing to say in between
        said = [l for l in got.stdout.splitlines() if not re.match(r"Pass \d|e2fsck |.*: \d+/\d+ files", l)]
        self.assertEqual([l for l in said if l.strip()], [])

    def test_08_logs_show_the_same(self):
        id_ = self.home.builds()[-1]["id"]
        got = self.ok(self.home.run("logs", id_))
        self.assertIn("to-stdout", got.text)
        self.assertIn("to-stderr", got.text)
        newest = self.ok(self.home.run("logs", "--progress", "json", id_, cls=harness.Build))
        self.assertEqual(newest.events, self.first.events)
        # -f on a build that has ended prints it and ends
        self.assertIn("to-stdout", self.ok(self.home.run("logs", "-f", id_, seconds=60)).text)

    def test_09_builds_lists_it(self):
        b = self.home.builds()[-1]
        self.assertEqual((b["name"], b["status"]), ("whole", "success"))
        self.ends(self.home.run("builds"), 0, b["id"], "whole", "success")

    def test_10_show_names_what_was_published(self):
        got = self.ok(self.home.run("show", "whole"))
        m = self.home.versions("whole")[1]
        self.assertIn("whole", got.out)
        self.assertIn(m["workload_key"], got.out)
        self.assertIn("minimal-debian", got.out)
        doc = json.loads(self.ok(self.home.run("show", "whole", "--json")).out)
        self.assertEqual(doc["workload_key"], m["workload_key"])
        self.assertRegex(doc["workload_key"], r"^[0-9a-f]{16}$")

    def test_11_exec_in_the_booted_image(self):
        got = self.home.run("boot", "whole", "--exec", "sh", "-c",
                            "cat /home/app/first /home/app/last; hostname; echo told >&2; exit 7")
        self.assertEqual(got.rc, 7, str(got))
        self.assertEqual(got.out.split(), ["first", "b", "whole"], str(got))
        self.assertIn("told", got.err)

    def test_12_boot_forwards_a_port_and_stops_on_ctrl_c(self):
        port = harness.free_port()
        p = self.home.start("boot", "whole", "--forward", f"{port}:8080")
        try:
            p.wait_for(r"is ready")
            status, body = http_get(port, "/hello")
            self.assertEqual(status, 200)
            self.assertRegex(body, r"^path /hello user [1-9]\d*$")  # not as root
            p.interrupt()
            got = p.end(60)
        finally:
            p.kill()
        self.assertIn(got.rc, (0, 130), str(got))
        self.assertEqual(self.home.left(), [])

    def test_13_booting_did_not_change_the_image(self):
        self.ok(self.home.run("boot", "whole", "--exec", "sh", "-c", "rm /home/app/first; echo x > /home/app/last"))
        self.ends(self.home.run("boot", "whole", "--exec", "cat", "/home/app/first"), 0, "first")

    def test_20_a_second_run_starts_no_machine_and_says_so(self):
        again = self.ok(self.home.build(self.config_file, "--isolation", self.builder))
        self.assertEqual(again.commands_run(), [])
        self.assertEqual(again.phases_run() - {"resolve"}, set(), str(again))
        self.assertRegex(again.notes, r"nothing changed: .* no machine was started")
        self.assertEqual(again.of("plan")[0]["total_steps"], 1)
        self.assertEqual(list(self.home.versions("whole")), [1])
        plain = self.ok(self.home.run(self.config_file, "--isolation", self.builder))
        self.assertRegex(plain.text, r"no machine was started")

    def test_21_a_second_run_needs_no_builder_at_all(self):
        none = harness.without("qemu-system-x86_64", "crun", "runc", "slirp4netns", "mmdebstrap")
        self.ok(self.home.build(self.config_file, "--isolation", self.builder, prefix=none))

    def test_30_a_changed_port_runs_no_command_but_is_finished_checked_and_published(self):
        got = self.ok(self.home.build(self.write("b", port=8081), "--isolation", self.builder))
        self.assertEqual(got.commands_run(), [])
        self.assertLessEqual({"flatten", "boot-check", "publish"}, got.phases_run())
        self.assertRegex(got.notes, r"GET /health on port 8081 answered 200")
        self.assertEqual(sorted(self.home.versions("whole")), [1, 2])

    def test_31_going_back_moves_the_pointer_to_the_version_that_is_there(self):
        got = self.ok(self.home.build(self.write("b"), "--isolation", self.builder))
        self.assertEqual(got.phases_run() - {"resolve"}, set(), str(got))
        doc = json.loads(self.ok(self.home.run("show", "whole", "--json")).out)
        self.assertEqual(doc["version"], 1)

    def test_40_a_changed_last_layer_runs_that_layer_alone(self):
        got = self.ok(self.home.build(self.write("changed"), "--isolation", self.builder))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"app"})
        self.assertEqual([(l["name"], l["cached"]) for l in got.of("plan")[0]["layers"]],
                         [("tools", True), ("app", False)])
        self.assertEqual(got.of("plan")[0]["total_steps"], len(got.of("step-start")))
        self.ends(self.home.run("boot", "whole", "--exec", "cat", "/home/app/first", "/home/app/last"), 0,
                  "first\nchanged")


class WholeContainer(Whole, E2E):
    builder = "container"


class WholeVm(Whole, E2E):
    builder = "vm"


class Once(E2E):
    """boot --once, the way ./dev run shows that a result boots; and the warning for what is not done yet."""

    def test_once_and_warning(self):
        config = self.home.config(
            "once", [("one", ["true"])], start_command={"command": perl_server(80), "port": 80})
        doc = json.loads(config.read_text())
        doc["config"]["ttl"] = 60
        config.write_text(json.dumps(doc))
        got = self.ok(self.home.build(config, "--no-boot-check"))
        warnings = [e["text"] for e in got.of("warning")]
        self.assertTrue(any(re.search(r"ttl.*not supported yet", w) for w in warnings), str(got))
        self.ends(self.home.run("boot", "once", "--once"), 0, r"is ready.*port 80")
        self.assertEqual(self.home.left(), [])


if __name__ == "__main__":
    unittest.main()
