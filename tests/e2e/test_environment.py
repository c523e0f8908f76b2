"""What the machine lacks: exit 3, the thing that is missing, and the command that installs it."""

import os
import shutil
import subprocess
import unittest

import harness
from harness import E2E, ROOT, without


class Missing(E2E):
    def config(self):
        return self.home.config("here", [("a", ["true"])])

    def refused(self, got, *patterns):
        self.ends(got, 3, *patterns)
        self.assertEqual(self.home.versions("here"), {})
        self.assertEqual(self.home.left(), [])

    def test_no_qemu(self):
        got = self.home.build(self.config(), "--isolation", "vm", prefix=without("qemu-system-x86_64"))
        self.refused(got, r"qemu-system-x86_64", r"apt-get install .*qemu-system-x86")

    def test_no_qemu_where_the_settings_say(self):
        got = self.home.build(self.config(), "--isolation", "vm", env={"CAPSULE_BUILD_QEMU": "/nowhere/my-qemu"})
        self.refused(got, r"qemu: /nowhere/my-qemu: No such file", r"(?i)correct `qemu` in the settings")

    def test_no_runtime_for_containers(self):
        got = self.home.build(self.config(), "--isolation", "container", prefix=without("crun", "runc"))
        self.refused(got, r"crun|runc", r"apt-get install .*(crun|runc)")

    def test_no_network_helper(self):
        got = self.home.build(self.config(), "--isolation", "vm", prefix=without("slirp4netns"))
        self.refused(got, r"slirp4netns", r"apt-get install .*slirp4netns")

    def test_no_mmdebstrap(self):
        home = self.new_home("empty", warm=False)
        got = home.build(home.config("here", [("a", ["true"])]), "--isolation", "vm",
                         prefix=without("mmdebstrap"))
        self.ends(got, 3, r"mmdebstrap", r"apt-get install .*mmdebstrap")

    def test_no_kernel(self):
        got = self.home.build(self.config(), "--isolation", "vm", "--kernel", self.folder / "no-vmlinuz")
        self.refused(got, r"no-vmlinuz", r"kernel")

    def test_no_agent(self):
        bare = self.folder / "bare"
        bare.mkdir()
        for program in (harness.PROGRAM, harness.JOB):
            shutil.copy(program, bare)
        got = subprocess.run([bare / "capsule-build", "--isolation", "vm", self.config()],
                             env=harness.environment(self.home.path), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, timeout=300)
        self.assertEqual(got.returncode, 3, got.stdout)
        self.assertIn("capsule-agent", got.stdout)

    def within(self, script, *args):
        """Runs the program after @script in a mount namespace of its own."""
        unshare = ["unshare", "-m"] if ROOT else ["unshare", "-rm"]
        return self.home.build(self.config(), *args, seconds=300,
                               prefix=[*unshare, "sh", "-ec", script + '\nexec "$@"', "sh"])

    def test_no_space(self):
        home = self.home.path
        aside = self.folder / "aside"
        self.assertFalse(aside.exists())
        got = self.within(f"mkdir {aside}; mount -t tmpfs -o size=700m tmpfs {aside}; "
                          f"cp -a {home}/. {aside}/; mount --bind {aside} {home}")
        self.refused(got, r"free|space", r"CAPSULE_BUILD_HOME")

    def test_the_disk_fills_up_while_a_command_writes(self):
        self.needs_root()
        home = self.new_home("small")
        small = home.folder / "small"
        config = home.config("here", [("a", ["echo begun; cat /dev/zero > /big"])])
        got = home.build(config, "--isolation", "container", "--no-boot-check", seconds=300,
                         prefix=["unshare", "-m", "sh", "-ec",
                                 f"mkdir {small}; mount -t tmpfs -o size=1300m tmpfs {small}; cp -a {home.path}/. {small}/; "
                                 f'mount --bind {small} {home.path}\nexec "$@"', "sh"])
        self.ends(got, 3, r"(?i)no space left", r"(?i)free some space")
        self.assertEqual(home.versions("here"), {})

    def test_no_permission_to_write(self):
        home = self.new_home("read-only", warm=False)
        home.path.mkdir()
        unshare = ["unshare", "-m"] if ROOT else ["unshare", "-rm"]
        got = home.build(home.config("here", [("a", ["true"])]),
                         prefix=[*unshare, "sh", "-ec",
                                 f'mount --bind {home.path} {home.path}; mount -o remount,ro,bind {home.path}\nexec "$@"', "sh"])
        self.ends(got, 3, str(home.path), r"Read-only file system", r"writable|CAPSULE_BUILD_HOME")

    def test_home_of_somebody_else(self):
        self.needs_root()
        if subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "test", "-x", harness.PROGRAM]).returncode:
            self.skipTest("the build folder is not readable by other users")
        home = self.new_home("theirs", warm=False)
        home.path.mkdir()
        os.chmod(home.path, 0o700)
        config = home.config("here", [("a", ["true"])])
        os.chmod(self.folder, 0o755)
        os.chmod(home.folder, 0o755)
        got = home.build(config, prefix=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        self.ends(got, 3, str(home.path), r"(?i)permission denied")


class Doctor(E2E):
    def test_doctor_says_what_there_is(self):
        got = self.home.run("doctor")
        self.assertIn(got.rc, (0, 3), str(got))
        for what in ("qemu-system-x86_64", "kvm", "mmdebstrap", "space", "kernel"):
            self.assertRegex(got.out, rf"(?i){what}", str(got))

    def test_doctor_looks_at_the_qemu_that_is_named(self):
        named = self.folder / "my-qemu"
        named.write_text("#!/bin/sh\necho QEMU emulator version 0.1 of mine\n")
        named.chmod(0o755)
        got = self.home.run("doctor", env={"CAPSULE_BUILD_QEMU": str(named)})
        self.assertRegex(got.out, r"qemu-system-x86_64 +QEMU emulator version 0\.1 of mine", str(got))

    def test_doctor_says_what_to_install(self):
        got = self.home.run("doctor", prefix=without("qemu-system-x86_64", "mmdebstrap"))
        self.ends(got, 3, r"apt-get install .*qemu-system-x86", r"apt-get install .*mmdebstrap")
        self.assertEqual(self.home.left(), [])


if __name__ == "__main__":
    unittest.main()
