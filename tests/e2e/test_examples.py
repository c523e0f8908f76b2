"""Every example builds, boots and answers as its README says."""

import json
import unittest

import harness
from harness import E2E, SOURCE, http_get

EXAMPLES = sorted(p.parent.name for p in (SOURCE / "examples").glob("*/onboard.yaml"))


class Examples(E2E):
    def test_every_example_is_valid_and_has_a_readme(self):
        self.assertIn("hello", EXAMPLES)
        for name in EXAMPLES:
            with self.subTest(name):
                self.ok(self.home.run("validate", SOURCE / "examples" / name / "onboard.yaml"))
                self.assertTrue((SOURCE / "examples" / name / "README.md").exists())

    def test_hello(self):
        self.ok(self.home.build(SOURCE / "examples" / "hello" / "onboard.yaml"))
        port = harness.free_port()
        p = self.home.start("boot", "hello", "--forward", f"{port}:8080")
        try:
            p.wait_for(r"is ready")
            self.assertEqual(http_get(port, "/health"), (200, "ok\n"))
            status, body = http_get(port, "/")
            self.assertEqual(status, 200)
            self.assertIn("hello", body)
            status, body = http_get(port, "/echo/some/path?x=1")
            echoed = json.loads(body)
            self.assertEqual((status, echoed["method"], echoed["path"]), (200, "GET", "/echo/some/path?x=1"))
            self.assertEqual(http_get(port, "/nothing")[0], 404)
            p.interrupt()
            p.end(60)
        finally:
            p.kill()


if __name__ == "__main__":
    unittest.main()
