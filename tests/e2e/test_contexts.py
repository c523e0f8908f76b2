"""What layers take from outside: files beside the config and commands of type copy, in both builders."""

import hashlib
import json
import os
import socket

from harness import E2E


def command(kind, *args, **more):
    return {"type": kind, "args": list(args), **more}


SHOW = "find /srv -mindepth 1 -printf '%P %y %m %u:%g %l\\n' | sort"


class Files:
    builder = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = cls.folder / "project"
        app = cls.made / "app"
        (app / "deep" / "er").mkdir(parents=True)
        (app / "empty").mkdir()
        (app / "main.py").write_text("print('one')\n")
        (app / "deep" / "er" / "data").write_bytes(os.urandom(700_000))
        (app / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (app / "run.sh").chmod(0o755)
        (app / "secret.key").write_text("hidden")
        (app / "outside").symlink_to("../../../etc/shadow")
        (app / "inside").symlink_to("deep/er")
        os.utime(app / "main.py", (1_600_000_000, 1_600_000_000))
        (cls.made / "one.conf").write_text("1\n")
        (cls.made / "two.conf").write_text("2\n")
        (cls.made / ".dockerignore").write_text("# comment\n**/*.key\nnode_modules\n")

    def config(self, layers, name="files", **fields):
        doc = {"display_name": name, "base_image": "minimal-debian", "config": {"tier": "s"}, "layers": layers, **fields}
        path = self.made / f"{name}.yaml"
        path.write_text(json.dumps(doc))
        return path

    def build(self, config, *args):
        return self.home.build(config, "--isolation", self.builder, "--no-boot-check", *args)

    def layers(self):
        return [
            {"name": "deps", "init_commands": ["mkdir -p /srv/there; ln -s /srv/there /srv/link; echo deps"]},
            {"name": "app", "context": [{"src": "app", "dst": "/srv/app"}, {"src": "one.conf", "dst": "/srv/link/"}],
             "init_commands": [
                 command("user", "nobody"), command("copy", "--chmod=640", "*.conf", "/srv/etc/"),
                 command("copy", "one.conf", "/srv/as", run_as_root=True),
                 command("copy", "--chown=daemon:games", "app/run.sh", "/srv/link"),
                 command("user", "root"), SHOW, "/srv/app/run.sh; cat /srv/as", "sha256sum < /srv/app/deep/er/data",
                 "stat -c %Y /srv/app/main.py"]},
            {"name": "last", "init_commands": ["cat /srv/app/main.py"]},
        ]

    EXPECTED = """\
app d 755 root:root
app/deep d 755 root:root
app/deep/er d 755 root:root
app/deep/er/data f 644 root:root
app/empty d 755 root:root
app/inside l 777 root:root deep/er
app/main.py f 644 root:root
app/outside l 777 root:root ../../../etc/shadow
app/run.sh f 755 root:root
as f 644 root:root
etc d 750 nobody:nogroup
etc/one.conf f 640 nobody:nogroup
etc/two.conf f 640 nobody:nogroup
link l 777 root:root /srv/there
there d 755 root:root
there/one.conf f 644 root:root
there/run.sh f 755 daemon:games
"""

    def test_1_files_are_there(self):
        for p in [self.made, *self.made.rglob("*")]:
            if not p.is_symlink():
                p.chmod(0o755 if p.is_dir() or p.suffix == ".sh" else 0o644)
        got = self.ok(self.build(self.config(self.layers())))
        lines = [line.strip() for line in got.output("app").splitlines()]
        for want in self.EXPECTED.splitlines():
            self.assertIn(want, lines)
        self.assertNotIn("secret.key", got.output("app"))
        self.assertIn("ran", lines)
        self.assertIn("1600000000", lines)
        self.assertIn("context app -> /srv/app", [s["cmd"] for s in got.steps(layer="app")])
        self.assertIn(hashlib.sha256((self.made / "app/deep/er/data").read_bytes()).hexdigest() + "  -", lines)

    def test_2_what_rebuilds(self):
        config = self.config(self.layers())
        self.assertEqual(self.ok(self.build(config)).commands_run(), [])
        # what no layer takes, and times: nothing changes
        (self.made / "app" / "other.key").write_text("also hidden")
        os.utime(self.made / "app" / "main.py")
        got = self.ok(self.build(config))
        self.assertEqual(got.commands_run(), [])
        # a file: from its layer on
        (self.made / "app" / "main.py").write_text("print('two')\n")
        plan = json.loads(self.home.run("plan", "--explain", "--json", config).out)
        app = plan["layers"][2]
        self.assertEqual(app["why"], "context 1 changed")
        self.assertEqual([c["src"] for c in app["context"]], ["app", "one.conf"])
        self.assertRegex(app["context"][0]["digest"], r"^sha256:[0-9a-f]{64}$")
        self.assertEqual([c["command"] for c in app["copies"]], [2, 3, 4])
        got = self.ok(self.build(config))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"app", "last"})
        self.assertIn("layer app is not reused: context 1 changed", got.notes)
        self.assertIn("print('two')", got.output("last"))


class FilesContainer(Files, E2E):
    builder = "container"

    def test_3_copies_and_their_reasons(self):
        (self.made / "two.conf").write_text("3\n")
        plan = json.loads(self.home.run("plan", "--explain", "--json", self.config(self.layers())).out)
        self.assertEqual(plan["layers"][2]["why"], "what is copied by command 2 changed")

    def test_4_refusals(self):
        def fails(layer, rc, text):
            got = self.build(self.config([{"name": "a", "init_commands": ["true"], **layer}], "bad"))
            self.ends(got, rc)
            self.assertRegex(got.error, text)
        fails({"context": [{"src": "nothing", "dst": "/srv"}]}, 2,
              r"layer a: context: nothing: there is no such file or folder beside the config")
        fails({"context": [{"src": "app/secret.key", "dst": "/srv"}]}, 2, r"secret\.key: \.dockerignore leaves it out")
        fails({"context": [{"src": "app/inside/data", "dst": "/srv/x"}]}, 2, r"goes through a symbolic link")
        fails({"init_commands": [command("copy", "*.nothing", "/srv/")]}, 2,
              r"command 1 of 1: copy: \*\.nothing: nothing beside the config fits")
        fails({"context": [{"src": "one.conf", "dst": "/run/x"}]}, 1, r"layer a: context one\.conf -> /run/x: .*mounted")
        fails({"init_commands": [command("copy", "app", "/etc/passwd/x")]}, 1, r"not a folder in the image")
        fails({"init_commands": [command("copy", "--chown=nosuch", "app", "/srv")]}, 1, r"user \"nosuch\" is not in")
        special = self.made / "app" / "sock"
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(special))
            fails({"context": [{"src": "app", "dst": "/srv"}]}, 2, r"app/sock: a socket cannot be copied")
        special.unlink()

    def test_5_the_whole_folder_onto_an_empty_image(self):
        got = self.build(self.config([{"name": "a", "context": [{"src": ".", "dst": "/"}],
                                       "init_commands": [command("copy", "one.conf", "/x/y/z")]}], "empty",
                                     base_image="scratch"))
        self.ok(got)
        names = self.home.cached_layer("a")
        self.assertIn(b"x/y/z", names)
        self.assertIn(b"app/main.py", names)
        self.assertNotIn(b"secret.key", names)


class FilesVm(Files, E2E):
    builder = "vm"
    test_2_what_rebuilds = None  # the same code on the host
