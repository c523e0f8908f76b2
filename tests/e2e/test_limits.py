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
        got = self.ok(self.build("used", {"type": "shell", "args": ["bash", "-c", busy], "name": "busy"}, "true"))
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


class LimitsContainer(Limits, E2E):
    builder = "container"


class LimitsVm(Limits, E2E):
    builder = "vm"


if __name__ == "__main__":
    import unittest
    unittest.main()
