"""check_programs.py FOLDER: the two programs of a build. capsule-build is a supervisor: nothing that parses an
image or talks to a registry is linked to it. Neither program works with one of another build, and each says so."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

BUILD = Path(sys.argv.pop(1)).resolve()
FRONT, JOB = BUILD / "capsule-build", BUILD / "capsule-build-job"
# What a supervisor needs: the config, the queue, digests; and of the system the C library (and what sanitizers bring).
MAY_LINK = {"libyaml-0", "libjansson", "libsqlite3", "libcrypto", "libc", "libm", "ld-linux-x86-64",
            "libasan", "libubsan", "libgcc_s", "libpthread", "libdl", "librt"}
# Functions of ours that read hostile bytes: none is in the supervisor.
PARSERS = re.compile(r"\b(registry_open|tar_read\w*|tar_apply\w*|flatten\w*|inflate\w*|oci_\w+_parse|session_\w+|store_layer_import)\b")


def needed(program):
    out = subprocess.run(["readelf", "-dW", program], check=True, capture_output=True, text=True).stdout
    return {m.split(".so")[0] for m in re.findall(r"\(NEEDED\).*\[(.+?)\]", out)}


def functions(program):
    out = subprocess.run(["nm", "--defined-only", program], check=True, capture_output=True, text=True).stdout
    return {line.split()[2] for line in out.splitlines() if line.split()[1] in "tT"}


def run(program, *args, **env):
    return subprocess.run([program, *args], capture_output=True, text=True, timeout=120,
                          env={k: v for k, v in os.environ.items() if not k.startswith("CAPSULE_BUILD")} | env)


class Programs(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(dir=BUILD))  # where programs can be started: /tmp may be noexec
        self.addCleanup(shutil.rmtree, self.folder)

    def test_the_supervisor_links_no_parser(self):
        self.assertLessEqual(needed(FRONT), MAY_LINK)
        self.assertIn("libcurl", needed(JOB))
        self.assertFalse([f for f in functions(FRONT) if PARSERS.fullmatch(f)])
        self.assertTrue([f for f in functions(JOB) if PARSERS.fullmatch(f)])

    def test_one_command_line(self):
        self.assertEqual(run(FRONT, "plan", "--help").stdout, run(FRONT, "--help").stdout)
        got = run(FRONT, "plan")
        self.assertEqual((got.returncode, got.stderr.splitlines()[0]),
                         (2, "capsule-build: usage: capsule-build plan FILE [--explain]"))
        got = run(FRONT, "plan", "--follow")
        self.assertEqual((got.returncode, got.stderr.splitlines()[0]),
                         (2, "capsule-build: --follow: no such option of `plan`"))

    def test_what_was_probably_meant(self):
        for args, said in (
                (("vaildate", "x.yaml"), "vaildate: there is no such command, and no such file; "
                                         "did you mean `capsule-build validate`?"),
                (("xyzzy",), "xyzzy: there is no such command, and no such file"),
                (("nosuch.yaml", "more"), "more: one word too many; usage: capsule-build build FILE"),
                (("plan", "--explian", "x.yaml"), "--explian: no such option of `plan`; did you mean `--explain`?"),
                (("build", "x.yaml", "--progess=json"), "--progess=json: no such option of `build`; "
                                                        "did you mean `--progress`?")):
            got = run(FRONT, *args)
            self.assertEqual((got.returncode, got.stderr.splitlines()[0]), (2, "capsule-build: " + said))

    def test_not_by_hand(self):
        for args in ((), ("plan", "x.yaml"), ("validate", "x.yaml")):
            got = run(JOB, *args)
            self.assertEqual(got.returncode, 2)
            self.assertIn("a part of capsule-build, which starts it", got.stderr)

    def test_missing(self):
        shutil.copy(FRONT, self.folder)
        home = self.folder / "home"
        config = self.folder / "onboard.yaml"
        config.write_text("name: abc\nbase_image: minimal-debian\n")
        for args in (("plan", config), ("doctor",), (config,)):
            got = run(self.folder / "capsule-build", *args, CAPSULE_BUILD_HOME=str(home))
            self.assertEqual(got.returncode, 3, got.stderr)
            self.assertIn("capsule-build-job was not found", got.stderr)
            self.assertIn("beside capsule-build", got.stderr)
        got = run(self.folder / "capsule-build", "validate", config)
        self.assertEqual(got.returncode, 0, got.stderr)

    def test_in_libexec(self):
        (self.folder / "bin").mkdir()
        (self.folder / "libexec/capsule-build").mkdir(parents=True)
        shutil.copy(FRONT, self.folder / "bin")
        shutil.copy(JOB, self.folder / "libexec/capsule-build")
        got = run(self.folder / "bin/capsule-build", "plan")
        self.assertEqual((got.returncode, got.stderr.splitlines()[0]),
                         (2, "capsule-build: usage: capsule-build plan FILE [--explain]"))

    def test_of_another_build(self):
        got = run(JOB, "plan", "x.yaml", CAPSULE_BUILD_FRONT="0.0.1-abc")
        self.assertEqual(got.returncode, 3)
        self.assertRegex(got.stderr, r"capsule-build is 0\.0\.1-abc and its capsule-build-job is \S+: they must be of one build")

    def test_a_build_says_that_the_programs_differ(self):
        # one byte of the name of its build is another one: what an upgrade of one program alone leaves
        name = re.search(rb"\d+\.\d+\.\d+-[0-9a-f]{12}\0", JOB.read_bytes())[0]
        other = name[:-2] + (b"0" if name[-2:-1] != b"0" else b"1") + b"\0"
        shutil.copy(JOB, self.folder)
        front = self.folder / "capsule-build"
        front.write_bytes(FRONT.read_bytes().replace(name, other))
        front.chmod(0o755)
        config = self.folder / "onboard.yaml"
        config.write_text("name: abc\nbase_image: minimal-debian\n")
        for args in (("plan", config), (config,)):
            got = run(front, *args, CAPSULE_BUILD_HOME=str(self.folder / "home"))
            self.assertEqual(got.returncode, 3, got.stdout + got.stderr)
            self.assertIn("they must be of one build", got.stdout + got.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
