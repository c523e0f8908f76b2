"""Commands of every type that builds act on, tries and the healthcheck: alike in both builders, and in the image."""

from harness import E2E

KEEP = "echo up; mkdir -p /run/svc; echo $A$OWN > /run/svc/a; exec sleep 100000"
# fails twice, each time on the files as they were before it: what counts the attempts is the one thing that is kept
# outside of the layer's files
FLAKY = ("test ! -e /srv/half; echo half > /srv/half; rm /srv/kept; mkdir -p /dev/shm; cat /run/svc/a; "
         "test \"$(cat /proc/sys/kernel/random/uuid | tr -dc 0-3 | head -c 1)\" = 0; mv /srv/half /srv/whole")


def command(kind, *args, **more):
    return {"type": kind, "args": list(args), **more}


class Types:
    builder = None

    def layers(self, last="true"):
        return [
            ("one", [command("env", "A=b", "SP=c d"), command("workdir", "/srv/app"), command("user", "nobody"),
                     'echo "$A|$SP|$(pwd)|$(id -un)|$HOME|$TERM"', command("user", "root"), "echo x > /srv/kept",
                     command("start", "bash", "-c", KEEP, env_variables={"OWN": "-own"}, name="service"),
                     'test "$(cat /run/svc/a)" = b-own',
                     command("shell", "bash", "-c", FLAKY, max_retries=100, name="flaky"),
                     'ls /srv; test ! -e /srv/kept; test -e /srv/whole']),
            ("two", ['echo "two: $A|$(pwd)|$(id -un)|$(cat /run/svc/a)|$(ls /srv)"', last]),
        ]

    def build(self, name, *args, last="true", **fields):
        return self.home.build(self.home.config(name, self.layers(last), **fields), "--isolation", self.builder, *args)

    def test_1_types_tries_and_what_goes_on(self):
        got = self.ok(self.build("types", "--no-boot-check"))
        self.assertIn("b|c d|/srv/app|nobody|/nonexistent|dumb", got.output("one"))
        self.assertIn("two: b|/srv/app|root|b-own|app", got.output("two").replace("\n", " "))
        self.assertIn("whole", got.output("two"))
        commands = self.home.manifest("types")["boot"]["commands"]
        self.assertEqual([(c["type"], c["args"][0], c["user"], c["workdir"]) for c in commands],
                         [("start", "bash", "root", "/srv/app")])
        self.assertEqual(self.home.manifest("types")["workdir"], "/srv/app")
        self.assertIn("A=b", self.home.manifest("types")["default_env"])

    def test_2_what_a_cached_layer_started_runs_in_the_next(self):
        got = self.ok(self.build("types", "--no-boot-check", last="cat /run/svc/a > /srv/seen; cat /srv/seen"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"two"})
        self.assertIn("b-own", got.output("two"))

    def test_3_what_does_not_start_fails(self):
        config = self.home.config("dies", [("one", [command("start", "bash", "-c", "echo why not; exit 4")])])
        got = self.home.build(config, "--isolation", self.builder, "--no-boot-check")
        self.ends(got, 1)
        self.assertRegex(got.error, r"layer one: command 1 of 1 ended with exit code 4, and was to go on running")
        self.assertIn("why not", got.error)

    def test_4_the_last_try_is_the_failure(self):
        config = self.home.config("never", [("one", [command("shell", "bash", "-c", "echo no; exit 5", max_retries=1)])])
        got = self.home.build(config, "--isolation", self.builder, "--no-boot-check")
        self.ends(got, 1)
        self.assertRegex(got.error, r"ended with exit code 5 at attempt 2")
        self.assertRegex(str(got), r"attempt 1 of 2 ended with exit code 5")


class TypesContainer(Types, E2E):
    builder = "container"

    def test_5_the_image_starts_it_and_is_checked(self):
        check = "--interval=500ms --timeout=20s test \"$(cat /run/svc/a)\" = b-own && echo looks fine"
        got = self.ok(self.build("types", healthcheck=check))
        self.assertRegex(str(got), r"the healthcheck passed at run")
        self.assertIn("looks fine", str(got))
        bad = self.build("types", healthcheck="--interval=100ms --retries=2 echo it hurts; false")
        self.ends(bad, 1)
        self.assertRegex(bad.error, r"the healthcheck did not pass \(2 runs; the last one ended with exit code 1\)")
        self.assertIn("it hurts", bad.error)

    def test_6_the_images_own_command(self):
        def build(base):
            return self.home.build(self.home.config("own", base=base, start_command="image"), "--no-boot-check")
        self.ok(build("minimal-debian"))
        self.assertEqual(self.home.manifest("own")["boot"]["start_argv"], self.home.manifest("own")["cmd"])
        got = build("scratch")
        self.ends(got, 2)
        self.assertRegex(got.error, "scratch has neither an entrypoint nor a command")


class TypesVm(Types, E2E):
    builder = "vm"
    test_3_what_does_not_start_fails = None  # the same code on the host; the agent's part is in unit/builder/try
    test_4_the_last_try_is_the_failure = None
