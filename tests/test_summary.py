"""What summary.py makes of two runs: a handful of ctests is really run twice, as ./dev test does it."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SUMMARY = Path(__file__).resolve().parent / "summary.py"

GOOD = 'add_test(good "true")\n'
BAD = 'add_test(bad "false")\n'
ONCE = 'add_test(once "sh" "-c" "test -e m1 || { touch m1; exit 1; }")\n'
SKIP = 'add_test(skip "sh" "-c" "exit 77")\nset_tests_properties(skip PROPERTIES SKIP_RETURN_CODE 77)\n'
MISSING = 'add_test(missing "/nonexistent/program")\n'
FIXTURE = ('add_test(first "sh" "-c" "test -e m2 || { touch m2; exit 1; }")\n'
           'set_tests_properties(first PROPERTIES FIXTURES_SETUP x)\n'
           'add_test(second "true")\nset_tests_properties(second PROPERTIES FIXTURES_REQUIRED x)\n')
# prints as a cmocka program does: two tests, one of which fails the first time
COUNTED = ('add_test(counted "sh" "-c" "echo \'[==========] 2 test(s) run.\'; test -e m3 || '
           '{ touch m3; echo \'[  FAILED  ] 1 test(s), listed below:\'; exit 1; }")\n')


class Summary(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def ctest(self, dir, *args):
        return subprocess.run(["ctest", "--test-dir", dir, *args], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode

    def run_tests(self, tests, name="build", again=True):
        dir = self.folder / name
        dir.mkdir()
        (dir / "CTestTestfile.cmake").write_text(tests)
        if self.ctest(dir, "-j2", "--output-junit", "junit.xml") and again:
            self.ctest(dir, "-j1", "--rerun-failed", "--output-junit", "again.xml")
        return dir / "junit.xml"

    def summary(self, *paths, **env):
        p = subprocess.run([sys.executable, "-B", SUMMARY, *paths], capture_output=True, text=True,
                           env={k: v for k, v in os.environ.items() if k != "CI"} | env)
        self.assertEqual(p.stderr, "")
        return p.returncode, p.stdout.splitlines()

    def test_all_good(self):
        rc, lines = self.summary(self.run_tests(GOOD + FIXTURE.replace("exit 1", "exit 0")))
        self.assertEqual((rc, lines[-1]), (0, "3 passed, 0 failed"))
        self.assertFalse([x for x in lines if "flaky" in x])

    def test_flaky(self):
        rc, lines = self.summary(self.run_tests(GOOD + ONCE))
        self.assertEqual((rc, lines[-1]), (0, "2 passed, 0 failed"))
        self.assertIn("flaky: once (build) failed once under load and passed alone", lines)

    def test_broken(self):
        rc, lines = self.summary(self.run_tests(GOOD + ONCE + BAD))
        self.assertEqual((rc, lines[-1]), (1, "2 passed, 1 failed"))
        self.assertIn("failed: bad (build), twice", lines)
        self.assertIn("flaky: once (build) failed once under load and passed alone", lines)

    def test_without_a_second_run(self):
        rc, lines = self.summary(self.run_tests(GOOD + ONCE, again=False))
        self.assertEqual((rc, lines[-1]), (1, "1 passed, 1 failed"))
        self.assertIn("failed: once (build)", lines)

    def test_a_second_run_that_broke_off(self):
        first = self.run_tests(GOOD + ONCE)
        (first.parent / "again.xml").write_text("<testsuite><testca")
        rc, lines = self.summary(first)
        self.assertEqual((rc, lines[-1]), (1, "1 passed, 1 failed"))

    def test_counted_one_by_one(self):
        rc, lines = self.summary(self.run_tests(GOOD + COUNTED))
        self.assertEqual((rc, lines[-1]), (0, "3 passed, 0 failed"))
        self.assertIn("flaky: counted (build) failed once under load and passed alone", lines)

    def test_a_fixture_that_was_flaky(self):
        rc, lines = self.summary(self.run_tests(FIXTURE))
        self.assertEqual((rc, lines[-1]), (0, "2 passed, 0 failed"))
        self.assertEqual([x for x in lines if "flaky" in x],
                         ["flaky: first (build) failed once under load and passed alone"])

    def test_what_cannot_be_run_has_failed(self):
        rc, lines = self.summary(self.run_tests(GOOD + MISSING))
        self.assertEqual((rc, lines[-1]), (1, "1 passed, 1 failed"))

    def test_skipped(self):
        path = self.run_tests(GOOD + SKIP)
        rc, lines = self.summary(path)
        self.assertEqual((rc, lines[-1]), (0, "1 passed, 0 failed, 1 skipped"))
        self.assertIn("skipped: skip (build)", lines)
        self.assertEqual(self.summary(path, CI="true")[0], 1)

    def test_two_builds(self):
        rc, lines = self.summary(self.run_tests(GOOD), self.run_tests(ONCE, "build-asan"), self.folder / "x/junit.xml")
        self.assertEqual((rc, lines[-1]), (1, "2 passed, 1 failed"))
        self.assertIn("flaky: once (build-asan) failed once under load and passed alone", lines)


if __name__ == "__main__":
    unittest.main(verbosity=2)
