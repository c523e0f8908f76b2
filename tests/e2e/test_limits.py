"""What commands use has limits, each of which ends as a clear failure of that step; and what they used is told."""

from harness import E2E, output_of


class Limits:
    builder = None

    def build(self, name, *commands, settings=None, **fields):
        args = ["--isolation", self.builder, "--no-boot-check"]
        if settings:
            file = self.home.folder / f"{name}-settings.yaml"
            file.write_text(settings)
            args += ["--config", file]
        return self.home.build(self.home.config(name, [("one", list(commands))], **fields), *args)

    def test_output_is_cut_in_the_middle(self):
        big = "seq 1 1000000; echo 'the end' >&2; exit 3"
        got = self.build("loud", big, settings="step_output_mib: 1\n")
        self.ends(got, 1)
        self.assertIn("the end", got.error)
        outputs = got.of("output")
        marks = [e for e in outputs if e.get("left_out")]
        self.assertEqual(len(marks), 1, marks)
        self.assertRegex(marks[0]["data"], r"^… [0-9.]+ MiB of output left out …\n$")
        kept = b"".join(output_of(e) for e in outputs if not e.get("left_out"))
        total = len("".join(f"{i}\n" for i in range(1, 1000001)) + "the end\n")
        self.assertEqual(len(kept) + marks[0]["left_out"], total)
        self.assertLess(len(kept), (1 << 20) + 8192)
        self.assertTrue(kept.startswith(b"1\n2\n3\n"))
        self.assertTrue(kept.endswith(b"999999\n1000000\nthe end\n"), kept[-100:])
        self.assertEqual(kept.count(b"\n\n"), 0)
        end = got.of("step-end")[-1]
        self.assertEqual(end["record"]["error"]["error_type"], "exit")

    def test_what_a_command_used_is_told(self):
        busy = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
        got = self.ok(self.build("used", {"type": "shell", "args": ["bash", "-c", busy], "name": "busy"},
                                 {"type": "shell", "args": ["true"], "ram": "900GiB"}))
        ends = [e for e in got.of("step-end") if e.get("record")]
        records = [e["record"] for e in ends]
        self.assertEqual(len(records), 2)
        first = records[0]
        self.assertEqual([first["success"], first["result"], first["error"]], [True, None, None])
        x = first["execution"]
        self.assertEqual([x["task_name"], x["retries"], x["host_requests"]], ["busy", 0, []])
        self.assertGreater(x["cpu_ms"], 50)
        self.assertGreater(x["ram_used"], 40000000)
        self.assertLess(x["ram_used"], 400000000)
        self.assertEqual(x["duration_ms"], ends[0]["elapsed_ms"])
        self.assertLess(records[1]["execution"]["cpu_ms"], x["cpu_ms"])
        self.assertRegex(got.notes, r"`ram` of 921600 MiB is more than this builder can give: 1[789]\d\d MiB")


    def fails(self, name, command, pattern, kind, settings=None):
        """The command fails for @pattern, its log and record say so, and another build goes well on the same machine."""
        got = self.build(name, command, "echo went-on", settings=settings)
        self.ends(got, 1)
        self.assertRegex(got.error, r"layer one: command 1 of 2 " + pattern)
        end = got.of("step-end")[-1]
        self.assertEqual((end["ok"], end["record"]["success"]), (False, False))
        self.assertNotEqual(end["exit"], 0)
        self.assertEqual(end["record"]["error"]["error_type"], kind)
        self.assertNotIn("went-on", got.output())
        return got

    def test_a_memory_hog(self):
        hog = {"type": "shell", "args": ["bash", "-c", "echo eating; head -c 400M /dev/zero | tail > /dev/null; echo fed"],
               "ram": "64MiB"}
        got = self.fails("hog", hog, r"was killed: out of memory \(limit 64\.0 MiB\)", "out_of_memory")
        self.assertIn("eating", got.output())
        if self.builder == "vm":  # where the kernel ends a whole group at once
            self.assertNotIn("fed", got.output())

    def test_a_fork_bomb(self):
        # the first returns at once: what it left running is what has to be noticed. The second is cheap to emulate
        bomb = ("bomb() { bomb | bomb & }; bomb; echo lit" if self.builder == "container" else
                "for i in $(seq 3000); do sleep 1000 & done; wait")
        self.fails("bomb", bomb, r"was killed: it reached the limit of 2048 processes",
                   "process_limit")

    def test_a_disk_filler(self):
        self.fails("filler", "head -c 2G /dev/zero > /srv/big", r"ended with exit code 1: the builder's disk \([0-9.]+ MiB\) is full",
                   "disk_full", settings="disk_gb: 1\n")

    def test_a_file_that_does_not_fit_in_memory(self):
        got = self.build("huge", "head -c 100M /dev/zero > /dev/shm/x")
        self.ends(got, 1, r"No space left on device", r"what it wrote did not fit: the builder's disk has `disk_gb`")

    def test_a_process_that_ignores_signals_runs_out_of_time(self):
        deaf = {"type": "shell", "args": ["bash", "-c", "trap '' TERM INT HUP; while :; do sleep 0.2; done"], "timeout": "1s"}
        got = self.fails("deaf", deaf, r"ran into its time limit of 1 s", "timeout")
        self.assertLess(got.of("step-end")[-1]["elapsed_ms"], 30000)

    def test_a_daemon_that_ignores_signals_is_left_behind(self):
        daemon = ("setsid setsid bash -c 'trap \"\" TERM HUP INT; touch /run/up; sleep 1000' & "
                  "until test -e /run/up; do sleep 0.1; done; echo left")
        got = self.ok(self.build("daemon", daemon, "pgrep -f 'sleep 1000' || ls /proc | grep -c '^[0-9]'"))
        self.assertIn("left", got.output())  # a layer ends with it killed, and the class looks for remains

    def test_only_the_files_that_are_named(self):
        look = ("echo new > data/x && cat data/x; cat /srv/shut || echo shut; echo y > /usr/local/y || echo read-only; "
                "bash -c 'ls /root' || echo shut-below; id -un; echo hush > /dev/null")
        got = self.ok(self.build("files", "mkdir -p /srv/data; echo secret > /srv/shut; chmod 777 /srv/data",
                                 {"type": "workdir", "args": ["/srv"]},
                                 {"type": "shell", "args": ["bash", "-c", look], "allowed_files": ["./data"]},
                                 "cat /srv/data/x /srv/shut"))
        said = got.output().split()
        for word in ("new", "shut", "read-only", "shut-below", "root"):
            self.assertIn(word, said)
        self.assertEqual(said.count("secret"), 1)  # the last command's
        self.assertNotIn("does not hold", got.notes)
        got = self.build("nothing", {"type": "shell", "args": ["true"], "allowed_files": ["/nowhere"]})
        self.ends(got, 1)
        self.assertIn("capsule: allowed_files: /nowhere: No such file or directory", got.error)

    def test_cpu_time_is_shared_out(self):
        spin = "end=$((SECONDS+3)); while [ $SECONDS -lt $end ]; do :; done"
        got = self.ok(self.build("slow", {"type": "shell", "args": ["bash", "-c", spin], "compute": 10}))
        x = got.of("step-end")[[bool(e.get("record")) for e in got.of("step-end")].index(True)]["record"]["execution"]
        self.assertLess(x["cpu_ms"], x["duration_ms"] * 0.2 + 100)


class LimitsContainer(Limits, E2E):
    builder = "container"


class LimitsVm(Limits, E2E):
    builder = "vm"


if __name__ == "__main__":
    import unittest
    unittest.main()
