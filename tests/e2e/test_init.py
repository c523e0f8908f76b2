"""An image whose own init is process 1, with the agent as a service of it. Booting is a virtual machine's in either
builder: so this is in one."""

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

# The harness's server, which also ends when it is asked to.
SERVER = ["perl", "-MIO::Socket::INET", "-e",
          '$s = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die $!; '
          'while ($c = $s->accept) { $l = <$c>; while (<$c>) { last if /^\\r?\\n$/ } '
          'print $c "HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n"; close $c; exit 0 if $l =~ m{^GET /quit} }']

UP = ('test "$(cat /proc/1/comm)" = systemd && systemctl is-active greeter capsule-agent && test "$(hostname)" = sysd '
      '&& test "$(cat /etc/machine-id)" != "$(cat /built-in-id)"')


class Systemd(E2E):
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

        port = harness.free_port()
        p = self.home.start("boot", "sysd", "--forward", f"{port}:8080")
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


class Missing(E2E):
    def test_an_image_without_it_is_refused_before_any_boot(self):
        config = self.home.config("nothing", [], config={"tier": "s", "init": "systemd"})
        got = self.home.build(config, "--isolation", "container")
        self.ends(got, 2, r"init: systemd: the image has no /usr/lib/systemd/systemd", r"apt-get install .*systemd-sysv")
        self.assertNotIn("boot-check", got.phases_run())
        self.assertEqual(self.home.versions("nothing"), {})


if __name__ == "__main__":
    unittest.main()
