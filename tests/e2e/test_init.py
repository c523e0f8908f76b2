"""What boots an image: its own init as process 1, with the agent as a service of it; its own kernel. Booting is a virtual
machine's in either builder: so this is in one."""

import hashlib
import json
import shutil
import unittest

import harness
from harness import E2E, http_get

# A service that is there before the start command and says when it is stopped.
GREETER = """[Unit]
Before=capsule-agent.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'echo the greeter was stopped > /dev/console'
[Install]
WantedBy=multi-user.target
"""

GREETER_SCRIPT = """#!/sbin/openrc-run
start() { return 0; }
stop() { echo the greeter was stopped > /dev/console; }
"""

# The harness's server, which also ends when it is asked to.
SERVER = ["perl", "-MIO::Socket::INET", "-e",
          '$s = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die $!; '
          'while ($c = $s->accept) { $l = <$c>; while (<$c>) { last if /^\\r?\\n$/ } '
          'print $c "HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n"; close $c; exit 0 if $l =~ m{^GET /quit} }']

UP = ('test "$(cat /proc/1/comm)" = systemd && systemctl is-active greeter capsule-agent && test "$(hostname)" = sysd '
      '&& test "$(cat /etc/machine-id)" != "$(cat /built-in-id)"')


# A machine of tier xs: one CPU, and of 512 MiB what the kernel does not keep for itself.
XS = "test $(nproc) = 1 && awk '/^MemTotal/ {exit !($2 > 380000 && $2 < 524288)}' /proc/meminfo"


class Boots(E2E):
    def boots_and_ends(self, name):
        """The start command ends when it is asked to, and with it the machine, through its init."""
        port = harness.free_port()
        p = self.home.start("boot", name, "--forward", f"{port}:8080")
        try:
            p.wait_for(r"is ready")
            self.assertEqual(http_get(port, "/quit")[0], 200)
            got = p.end(120)
        finally:
            p.kill()
        self.assertEqual(got.rc, 0, str(got))
        self.assertIn("the start command ended with exit status 0", got.text)
        self.assertIn("the greeter was stopped", got.text)
        self.assertEqual(self.home.left(), [])


class Systemd(Boots):
    def test_it_boots_with_it_and_ends_with_it(self):
        config = self.home.config(
            "sysd", [("init", ["apt-get update && apt-get install -y --no-install-recommends systemd-sysv",
                               "cat /etc/machine-id > /built-in-id",
                               f"cat > /etc/systemd/system/greeter.service <<'EOF'\n{GREETER}EOF",
                               "systemctl enable greeter"])],
            config={"tier": "s", "init": "systemd"}, start_command={"command": SERVER, "port": 8080, "health_path": "/"},
            init_commands=["echo a boot command under $(cat /proc/1/comm)"], healthcheck=UP)
        built = self.ok(self.home.build(config, "--isolation", "container"))
        self.assertNotIn("without effect", built.notes)
        check = built.steps(phase="boot-check")[0]["output"]
        self.assertRegex(check, r"a boot command under systemd\nactive\nactive\n")
        self.assertEqual(self.home.manifest("sysd")["boot"]["init"], "systemd")
        self.boots_and_ends("sysd")


class OpenRC(Boots):
    def test_it_boots_with_it_and_ends_with_it(self):
        config = self.home.config(
            "openrc", [("init", ["apt-get update && apt-get install -y --no-install-recommends openrc",
                                 f"cat > /etc/init.d/greeter <<'EOF'\n{GREETER_SCRIPT}EOF",
                                 "chmod 755 /etc/init.d/greeter; rc-update add greeter default"])],
            config={"tier": "s", "init": "openrc"}, start_command={"command": SERVER, "port": 8080, "health_path": "/"},
            init_commands=["echo a boot command under $(cat /proc/1/comm)"],
            healthcheck="rc-service greeter status && test \"$(hostname)\" = openrc")
        built = self.ok(self.home.build(config, "--isolation", "container"))
        self.assertIn("a boot command under openrc-init\n", built.steps(phase="boot-check")[0]["output"])
        self.assertEqual(self.home.manifest("openrc")["boot"]["init"], "openrc")
        self.boots_and_ends("openrc")


class NeverUp(E2E):
    def test_the_console_of_a_boot_that_fails_is_shown(self):
        program = "#!/bin/sh\necho 'I am no init, and I say so'\nexit 7\n"
        config = self.home.config(
            "never", [("init", [f"mkdir -p /usr/lib/systemd; printf %s \"{program}\" > /usr/lib/systemd/systemd",
                                "cp /bin/true /usr/bin/systemctl; chmod 755 /usr/lib/systemd/systemd"])],
            config={"tier": "xs", "init": "systemd"})
        got = self.home.build(config, "--isolation", "container")
        self.ends(got, 1, r"the image did not boot: QEMU: the guest's kernel panicked: Attempted to kill init! exitcode=0x0*700")
        self.assertRegex(got.error, r"(?s)last lines of the console:\n.*I am no init, and I say so\n.*Kernel panic")
        self.assertEqual(self.home.versions("never"), {})
        self.assertEqual(self.home.left(), [])


class Missing(E2E):
    def test_an_image_without_it_is_refused_before_any_boot(self):
        for init, lacks, package in (("systemd", "/usr/lib/systemd/systemd", "systemd-sysv"), ("openrc", "/sbin/openrc-run", "openrc")):
            with self.subTest(init=init):
                config = self.home.config("nothing", [], config={"tier": "s", "init": init})
                got = self.home.build(config, "--isolation", "container")
                self.ends(got, 2, rf"init: {init}: the image has no {lacks}", rf"apt-get install .*{package}")
                self.assertNotIn("boot-check", got.phases_run())
                self.assertEqual(self.home.versions("nothing"), {})


class Kernel(E2E):
    """The harness's kernel under another name, in an image."""

    def put(self, folder, modules=True):
        """Writes boot/ and lib/modules/ there; the release and the digest of the kernel."""
        release = json.loads((self.home.path / "kernels" / "current.json").read_text())["release"]
        given = self.home.path / "kernels" / release
        ours = release[:-2] + "zz"
        image = bytearray((given / "vmlinuz").read_bytes())
        at = int.from_bytes(image[0x20e:0x210], "little") + 0x200
        self.assertEqual(image[at:at + len(release)].decode(), release)
        image[at:at + len(ours)] = ours.encode()  # in its head alone: uname says what it said
        (folder / "boot").mkdir(parents=True)
        (folder / "boot" / f"vmlinuz-{ours}").write_bytes(image)
        if modules:
            below = ("arch/x86/crypto", "crypto", "drivers/block", "drivers/char", "drivers/net", "drivers/virtio", "fs", "lib")
            for part in below:
                if (given / "lib/modules" / release / "kernel" / part).exists():
                    shutil.copytree(given / "lib/modules" / release / "kernel" / part,
                                    folder / "lib/modules" / ours / "kernel" / part, ignore=shutil.ignore_patterns("ethernet"))
            shutil.copy(given / "lib/modules" / release / "modules.builtin", folder / "lib/modules" / ours)
        return ours, "sha256:" + hashlib.sha256(image).hexdigest()

    def config(self, name, context):
        layers = [{"name": "kernel", "init_commands": ["mkdir -p /lib/modules && cp -r /given/boot / && "
                                                       "if [ -d /given/lib ]; then cp -r /given/lib/modules/* /lib/modules; fi"],
                   "context": [{"src": context, "dst": "/given"}]}]
        path = self.home.folder / f"{name}.yaml"
        path.write_text(json.dumps({"display_name": name, "base_image": "minimal-debian", "layers": layers,
                                    "config": {"tier": "xs", "kernel": "image"}, "healthcheck": XS}))
        return path

    def test_its_own_kernel_boots_it(self):
        release, digest = self.put(self.home.folder / "whole")
        config = self.config("own", "whole")
        built = self.ok(self.home.build(config, "--isolation", "container"))
        self.assertNotIn("without effect", built.notes)
        self.assertIn(f"kernel {release} is the image's /boot/vmlinuz-{release}", built.notes)
        self.assertIn("boot-check", built.phases_run())
        kernel = self.home.manifest("own")["kernel"]
        self.assertEqual((kernel["digest"], kernel["release"], kernel["from"]), (digest, release, f"/boot/vmlinuz-{release}"))
        self.assertEqual(hashlib.sha256(self.home.blob(digest).read_bytes()).hexdigest(), digest[7:])
        self.assertIn(f"the image's /boot/vmlinuz-{release}", self.ok(self.home.run("show", "own")).out)
        with self.subTest("another kernel of builders changes nothing of it"):
            other = self.home.folder / "other-vmlinuz"
            shutil.copy(self.home.folder / "whole" / "boot" / f"vmlinuz-{release}", other)
            again = self.ok(self.home.build(config, "--isolation", "container", "--kernel", other))
            self.assertIn("nothing changed: own version 1 is up to date", again.notes)
        with self.subTest("it is what is exported"):
            out = self.home.folder / "out.ext4"
            self.ok(self.home.run("export", "own", "--format", "ext4", "-o", out, "--with-kernel", self.home.folder / "out"))
            self.assertEqual(hashlib.sha256((self.home.folder / "out" / "vmlinuz").read_bytes()).hexdigest(), digest[7:])

    def test_what_is_missing_is_said_before_any_boot(self):
        release, _ = self.put(self.home.folder / "bare", modules=False)
        got = self.home.build(self.config("bare", "bare"), "--isolation", "container")
        self.ends(got, 2, rf"kernel: image: /boot/vmlinuz-{release} is kernel {release}, and the image has no /lib/modules/{release}",
                  "linux-image-amd64")
        config = self.home.config("none", [], config={"tier": "s", "kernel": "image"})
        got = self.home.build(config, "--isolation", "container")
        self.ends(got, 2, r"kernel: image: the image has no kernel", "linux-image-amd64")
        self.assertNotIn("boot-check", got.phases_run())
        self.assertEqual(self.home.versions("none"), {})


if __name__ == "__main__":
    unittest.main()
