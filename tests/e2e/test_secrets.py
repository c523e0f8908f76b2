"""Secrets reach commands, and nothing else: no log, no store, no database, no process list."""

import base64
import json
import os
import subprocess
import zlib
from pathlib import Path

import harness
from harness import E2E

TOKEN = "s3cret-token-value"
ALL = "bearer-of-all-layers"
FILE = "//registry.example/:_authToken=f1le-t0ken\nsecond-line-of-it\n"


def forms(value):
    """The value, and what base64 makes of it wherever it stands."""
    out = [value.encode()]
    for before in range(3):
        code = base64.b64encode(b"x" * before + value.encode())
        out.append(code[-(-before * 8 // 6):(before + len(value)) * 8 // 6])
    return out


def holds(data, values):
    return [f for v in values for f in forms(v) if f in data]


def data_of(path):
    """The bytes of a file but its holes: a kept disk is 64 GiB of them."""
    out, at = [], 0
    with open(path, "rb") as f:
        while at < os.fstat(f.fileno()).st_size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole
                break
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            out.append(os.pread(f.fileno(), end - at, at))
            at = end
    return b"".join(out)


def blobs_of(path):
    """The bytes of a file, and of what is packed in it, behind a head (of a saved machine) or not."""
    data = data_of(path)
    yield data
    at = data.find(b"\x28\xb5\x2f\xfd", 0, 1 << 16)
    if at == 0 or (at > 0 and "saved" in path.parts):
        yield subprocess.run(["zstd", "-dcq"], input=data[at:], check=True, stdout=subprocess.PIPE).stdout
    if data[:2] == b"\x1f\x8b":
        yield zlib.decompress(data, 31)


class Secrets:
    builder = None
    print_in_all_ways = [
        'echo "is: $NPM_TOKEN."',
        # in two writes, with a pause that is longer than output waits to be sent on
        'printf %s "${NPM_TOKEN%????}"; sleep 0.3; printf "%s\\n" "${NPM_TOKEN#??????????????}"',
        'printf %s "$NPM_TOKEN" | base64; printf "user:%s" "$NPM_TOKEN" | base64; echo "$NPM_TOKEN" | base64',
        'echo "$NPM_TOKEN" >&2; echo "all: $ALL, $PART"',
        'stat -c "mode %a %U" /root/.npmrc; cat /root/.npmrc; tail -n1 /root/.npmrc | base64; base64 -w 64 /root/.npmrc',
    ]

    def config(self, version="1", more=(), name="hidden"):
        path = self.folder / f"{name}.yaml"
        self.home.config(name, [("one", [*self.print_in_all_ways, *more]),
                                ("two", ['echo "two: ${NPM_TOKEN-unset} $PART"; ls -A /root | grep npm; true'])],
                         file=path, credentials={"secrets": [{"name": "npm", "env": "HOST_TOKEN"},
                                                             {"name": "npmrc", "path": str(self.folder / "host-npmrc")}],
                                                 "env": {"ALL": "${HOST_ALL}", "PART": "Bearer ${HOST_ALL}"}})
        doc = json.loads(path.read_text())
        doc["layers"][0]["secrets"] = [{"id": "npm", "env": "NPM_TOKEN", "version": version},
                                       {"id": "npmrc", "path": "/root/.npmrc"}]
        (self.folder / "host-npmrc").write_text(FILE)
        path.write_text(json.dumps(doc))
        return path

    def build(self, config, token=TOKEN, *args):
        return self.home.build(config, "--isolation", self.builder, "--no-boot-check", *args,
                               env={"HOST_TOKEN": token, "HOST_ALL": ALL})

    def nothing_holds(self, values):
        found = []
        for path in self.home.path.rglob("*"):
            if path.is_file() and not path.is_symlink() and "kernels" not in path.parts:
                found += [f"{path}: {f}" for data in blobs_of(path) for f in holds(data, values)]
        self.assertEqual(found, [])

    def test_1_nothing_of_it_is_kept(self):
        got = self.ok(self.build(self.config()))
        self.assertNotRegex(got.notes, r"not masked|not supported")
        self.assertIn("is: ***.", got.output("one"))
        self.assertIn("all: ***, ***", got.output("one"))
        self.assertRegex(got.output("one"), r"mode 400 root\n\*\*\*\n\*\*\*\n")
        self.assertEqual(got.output("two"), "two: unset ***\n")
        self.assertEqual([p for p in harness.tar_entries(self.home.cached_layer("one")) if "root" in p], [])
        self.assertEqual(holds(got.raw + got.err.encode(), [TOKEN, ALL, *FILE.split()]), [])
        self.nothing_holds([TOKEN, ALL, *FILE.split()])

    def test_2_the_version_decides_and_not_the_value(self):
        again = self.ok(self.build(self.config(), "another-value"))
        self.assertEqual(again.commands_run(), [])
        # nobody needs it then
        bare = self.ok(self.home.build(self.config(), "--isolation", self.builder, "--no-boot-check",
                                       env={"HOST_ALL": ALL, "HOST_TOKEN": ""}))
        self.assertEqual(bare.commands_run(), [])
        newer = self.ok(self.build(self.config("2"), "another-value"))
        self.assertEqual({layer for layer, _ in newer.commands_run()}, {"one", "two"})
        self.nothing_holds(["another-value"])

    def test_3_failures_do_not_say_it(self):
        config = self.config("3", ['echo "$NPM_TOKEN is refused" >&2; exit 7'], name="fails")
        got = self.build(config)
        self.ends(got, 1)
        self.assertRegex(got.error, r"exit code 7")
        self.assertIn("*** is refused", got.error)
        self.assertEqual(holds(got.raw + got.err.encode(), [TOKEN, ALL]), [])
        self.nothing_holds([TOKEN, ALL])

    def watch(self, running, seen):
        """Command lines of everything below the build's processes, while its step waits."""
        for p in Path("/proc").glob("[0-9]*"):
            try:
                line = (p / "cmdline").read_bytes()
                environ = (p / "environ").read_bytes()
                children = (p / "comm").read_text().strip()
                limits = (p / "limits").read_text()
            except OSError:
                continue
            if holds(line, [TOKEN]):
                seen.append(f"arguments of {p.name}: {line}")
            if children in ("capsule-build-j", "qemu-system-x86", "slirp4netns", "runc", "crun") and \
                    str(self.home.path).encode() in line + environ:
                if holds(environ, [TOKEN]):
                    seen.append(f"environment of {p.name}: {children}")
                self.watched.add(children)
                core = next(x for x in limits.splitlines() if x.startswith("Max core file size"))
                if core.split()[5] not in ("0", "1"):
                    seen.append(f"{children} may leave a core: {core}")


class SecretsContainer(Secrets, E2E):
    builder = "container"

    def test_4_process_lists_and_cores(self):
        self.watched, seen = set(), []
        config = self.config("4", ["echo now; sleep 5; ulimit -c unlimited 2>/dev/null; echo core=$(ulimit -c)"], name="listed")
        running = self.home.start("--progress", "json", "--isolation", self.builder, "--no-boot-check", config,
                                  env={"HOST_TOKEN": TOKEN, "HOST_ALL": ALL})
        try:
            running.wait_for(r'"now\\n"')
            self.watch(running, seen)
            got = self.ok(running.end(cls=harness.Build))
        finally:
            running.kill()
        self.assertEqual(seen, [])
        self.assertIn("capsule-build-j", self.watched)
        self.assertRegex(got.output("one"), r"core=[01]\b")

    def test_5_a_command_that_keeps_one_is_warned_of(self):
        got = self.ok(self.build(self.config("leaks", ["mkdir -p /srv/app; echo \"token=$NPM_TOKEN\" > /srv/app/conf"], name="leaks")))
        self.assertRegex(got.notes, r"srv/app/conf holds the value of secret npm\b")
        with self.assertRaises(AssertionError):  # the search finds one where it is
            self.nothing_holds([TOKEN])

    def test_6_what_a_failure_keeps_has_none_and_a_resume_reads_them_anew(self):
        config = self.config("6", [f'test "$NPM_TOKEN" = {TOKEN[:6]}"{TOKEN[6:]}" && test -s /root/.npmrc'], name="wrong")
        wrong = "a-token-that-is-old"
        self.ends(self.build(config, wrong), 1)
        self.nothing_holds([wrong, ALL, *FILE.split()])
        left = self.home.run("shell", "wrong", prefix=["sh", "-c", 'echo "ls -A /root; env" | exec "$@"', "sh"])
        self.assertNotRegex(left.out, r"npmrc|NPM_TOKEN|ALL=")
        got = self.ok(self.home.run("resume", "--progress", "json", "--no-boot-check", "wrong", cls=harness.Build,
                                    env={"HOST_TOKEN": TOKEN, "HOST_ALL": ALL}))
        self.assertEqual(len([c for c in got.commands_run() if c[0] == "one"]), 1)
        self.assertEqual([p for p in harness.tar_entries(harness.tar_of(self.home.blob(
            self.home.manifest("wrong")["layers"][-3]["digest"]))) if "root" in p], [])

    def test_7_one_that_is_not_there_is_named(self):
        got = self.home.build(self.config("5"), "--isolation", self.builder, env={"HOST_ALL": ALL})
        self.ends(got, 2)
        self.assertRegex(got.error, r"layer one: secret npm: the variable HOST_TOKEN is not set")
        self.assertEqual(got.phases_run() - {"resolve"}, set())


    def test_8_a_host_whose_name_holds_one_is_recorded_without_it(self):
        host = harness.mirror_host()
        config = self.config("8", ["exec 3<>/dev/tcp/$NPM_TOKEN/80"], name="host")
        self.ok(self.build(config, host))
        kept = "".join(p.read_text() for p in self.home.path.rglob("*.json"))
        self.assertIn("***:80/tcp", kept)
        self.assertNotIn(f"{host}:80", kept)


class SecretsVm(Secrets, E2E):
    builder = "vm"
    test_3_failures_do_not_say_it = None  # what is said is the same code for both
