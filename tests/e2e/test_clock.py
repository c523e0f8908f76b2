"""The machine's clock is set back while a build runs: nothing waits for the time to come again, and nobody is given up."""

import os
from datetime import datetime
from pathlib import Path

from harness import E2E, Build

CLOCK = Path(os.environ["CB_BUILD_DIR"]) / "tests" / "e2e" / "libclock_back.so"


class ClockSetBack(E2E):
    def test_in_the_middle_of_a_command(self):
        switch = self.folder / "an-hour-ago"
        env = {"LD_PRELOAD": str(CLOCK), "CLOCK_BACK": str(switch)}
        config = self.home.config("clock", [("one", ["echo now-waiting; sleep 5; echo went-on", "date > /srv/date"])])
        p = self.home.start("--progress", "json", "--no-boot-check", config, env=env)
        try:
            p.wait_for("now-waiting")
            switch.touch()
            # for this one the build's last sign of life lies in the future, or was an hour ago
            self.assertEqual([b["status"] for b in self.home.builds()], ["running"])
            got = self.ok(p.end(120, Build))
        finally:
            p.kill()
        self.assertIn("went-on", got.output())
        times = [datetime.fromisoformat(e["ts"].replace("Z", "+00:00")) for e in got.events]
        jumps = [(b - a).total_seconds() for a, b in zip(times, times[1:])]
        self.assertLess(min(jumps), -3500)  # it was set back, and in the log too
        self.assertEqual([e["seq"] for e in got.events], list(range(1, len(got.events) + 1)))
        elapsed = [e["elapsed_ms"] for e in got.of("step-end")]
        self.assertTrue(all(0 <= ms < 120000 for ms in elapsed), elapsed)
        again = self.ok(self.home.build(config, "--no-boot-check", env=env))
        self.assertIn("nothing changed", again.notes)
        switch.unlink()
        self.ok(self.home.build(config, "--no-boot-check"))
        self.assertEqual(list(self.home.versions("clock")), [1])


if __name__ == "__main__":
    import unittest
    unittest.main()
