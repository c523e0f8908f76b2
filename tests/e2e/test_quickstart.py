"""The quickstart of the Capsule SDK, word for word, on a Debian base in both builders.

    RunnerConfig("my-runner").with_base_image(...).with_commands(["apt-get update", "apt-get install -y python3"])
"""

import unittest

from harness import E2E

QUICKSTART = ["apt-get update", "apt-get install -y python3"]


class Quickstart:
    builder = None

    def test_commands_word_for_word(self):
        config = self.home.config("my-runner", [("workload", QUICKSTART)])
        got = self.ok(self.home.build(config, "--isolation", self.builder, seconds=1700))
        self.assertEqual([cmd for _, cmd in got.commands_run() if cmd in QUICKSTART], QUICKSTART)
        self.ends(self.home.run("boot", "my-runner", "--exec", "python3", "-c", "print(6 * 7)"), 0, r"^42\n")
        # the same commands as the older field
        old = self.folder / "old.yaml"
        old.write_text("workload:\n  display_name: my-runner\n  base_image: minimal-debian\n"
                       "  config: {tier: s}\n  snapshot_commands:\n"
                       + "".join(f"  - {c}\n" for c in QUICKSTART))
        again = self.ok(self.home.build(old, "--isolation", self.builder))
        self.assertEqual(again.commands_run(), [])


class QuickstartContainer(Quickstart, E2E):
    builder = "container"


class QuickstartVm(Quickstart, E2E):
    builder = "vm"


if __name__ == "__main__":
    unittest.main()
