"""plan: what a build would do, before and after one, in words and as JSON; --locked; where settings come from."""

import http.client
import http.server
import json
import os
import re
import subprocess
import threading
import unittest
import urllib.parse

import yaml

import harness
from harness import E2E, SOURCE, Layout, Registry, debian_layout, free_port, make_tar

FIELDS = {"schema_version", "file", "config", "settings", "name", "workload_key", "layers", "lock", "platform",
          "template_key", "published", "action", "unknown", "warnings", "unsupported"}
DIGEST = r"^sha256:[0-9a-f]{64}$"


def files_of(home):
    """Everything that a home holds: {path: content, or the size of a large file}. Reading notes when something was
    used last, and who reads holds the store's lock: neither is kept knowledge."""
    return {str(p.relative_to(home.path)): p.read_bytes() if p.stat().st_size < 1 << 16 else p.stat().st_size
            for p in home.path.rglob("*") if p.is_file() and p.name != "lock"}


class Plans(E2E):
    def plan(self, config, *args, home=None, **kw):
        got = self.ok((home or self.home).run("plan", "--json", "--explain", *args, config, **kw))
        return json.loads(got.out)

    def why(self, plan):
        return {l["name"]: l.get("why") for l in plan["layers"] if l["name"] != "_platform"}

    def build(self, config, *args):
        return self.ok(self.home.build(config, "--no-boot-check", *args))


class BeforeAndAfter(Plans):
    """One config on its way through several builds."""

    def write(self, **changes):
        layers = [{"name": "deps", "init_commands": ["echo one > /one", "echo two > /two"]},
                  {"name": "app", "init_commands": ["echo app > /app"], "env": {"MODE": "a"}}]
        doc = {"display_name": "planned", "base_image": "minimal-debian", "layers": layers, "config": {"tier": "s"}}
        path = self.folder / "planned.yaml"
        if "command" in changes:
            layers[0]["init_commands"][1] = changes.pop("command")
        if "mode" in changes:
            layers[1]["env"]["MODE"] = changes.pop("mode")
        if "extra" in changes:
            layers.insert(1, {"name": "extra", "init_commands": [changes.pop("extra")]})
        doc["config"].update(changes)
        path.write_text(json.dumps(doc))
        return path

    def test_a_config_on_its_way(self):
        path = self.write()
        before = files_of(self.home)
        p = self.plan(path)
        self.assertEqual(files_of(self.home), before)  # nothing is kept: minimal-debian has its lock
        self.assertEqual(set(p), FIELDS | {"why"})
        self.assertEqual((p["schema_version"], p["name"], p["action"]), (1, "planned", "build"))
        self.assertRegex(p["workload_key"], r"^[0-9a-f]{16}$")
        self.assertEqual([l["name"] for l in p["layers"]], ["_platform", "deps", "app"])
        for l in p["layers"]:
            self.assertRegex(l["declared"], DIGEST)
            self.assertRegex(l["key"], DIGEST)
        self.assertEqual([l["cached"] for l in p["layers"]], [True, False, False])
        self.assertEqual([l["commands"] for l in p["layers"]], [0, 2, 1])
        self.assertEqual(self.why(p), {"deps": "not built before", "app": "not built before"})
        self.assertEqual((p["published"], p["unknown"], p["warnings"], p["unsupported"]), (None, [], [], []))
        self.assertEqual(p["lock"]["base_image"], "minimal-debian")
        self.assertEqual(p["config"]["config"]["auto_rollout"], True)  # a default
        for k in ("kernel", "initramfs", "agent"):
            self.assertRegex(p["platform"][k], DIGEST)

        with self.subTest("the normalised config means the same"):
            again = self.folder / "again.json"
            again.write_text(json.dumps(p["config"]))
            q = self.plan(again)
            self.assertEqual([q[k] for k in ("layers", "workload_key", "template_key")],
                             [p[k] for k in ("layers", "workload_key", "template_key")])

        with self.subTest("the text is the same in YAML"):
            got = self.ok(self.home.run("plan", "--explain", path))
            self.assertEqual(yaml.safe_load(got.out), p)
            self.assertRegex(got.out, r"\n# a build runs 3 commands in 2 layers")

        got = self.build(path)
        self.assertIn("layer deps is not reused: not built before", got.notes)
        m = self.home.manifest("planned")
        self.assertEqual((m["workload_key"], m["template_key"], m["base"]["digest"]),
                         (p["workload_key"], p["template_key"], p["lock"]["manifest"]))
        plan_event = got.of("plan")[0]
        self.assertEqual(["sha256:" + l["key"] for l in plan_event["layers"]], [l["key"] for l in p["layers"][1:]])

        # never booted: a build that boots would make it again, one that does not is done
        p = self.plan(path)
        self.assertEqual((p["action"], p["why"]), ("finish", "version 1 is the same but was never booted"))
        p = self.plan(path, "--no-boot-check")
        self.assertEqual((p["action"], p["published"]), ("none", {"version": 1, "current": True}))
        self.assertEqual([l["cached"] for l in p["layers"]], [True, True, True])
        self.assertNotIn("why", json.dumps(p))

        with self.subTest("what --force and --clean would do again"):
            q = self.plan(path, "--no-boot-check", "--force")
            self.assertEqual((q["action"], q["why"], q["published"]), ("build", "--force", None))
            self.assertEqual([l["cached"] for l in q["layers"]], [True, False, False])
            self.assertEqual(self.why(q), {"deps": "--force", "app": "--force"})
            self.assertEqual([l["key"] for l in q["layers"]], [l["key"] for l in p["layers"]])
            self.assertEqual(q["template_key"], p["template_key"])
            q = self.plan(path, "--no-boot-check", "--clean")
            self.assertEqual((q["action"], q["published"]), ("build", None))
            self.assertEqual([(l["cached"], l["why"], l["key"]) for l in q["layers"]], [(False, "--clean", None)] * 3)
            self.assertRegex(q["unknown"][0], r"minimal-debian is made anew")
            self.assertRegex(self.ok(self.home.run("plan", "--clean", path)).out, r"\n# a build runs 3 commands in 2 layers")
            self.assertEqual(self.plan(path, "--no-boot-check")["action"], "none")  # nothing was lost by asking

        # the lock of a base that was made here
        q = self.plan(path, "--locked", "--no-boot-check", "--pull", "always")
        self.assertEqual((q["action"], q["lock"], q["unknown"]), ("none", p["lock"], []))

        path = self.write(command="echo zwei > /two", mode="b")
        p = self.plan(path)
        self.assertEqual(self.why(p), {"deps": "command 2 changed", "app": "layer deps below it: command 2 changed"})
        self.assertEqual(p["why"], "layer deps: command 2 changed")
        got = self.build(path)
        self.assertIn("layer deps is not reused: command 2 changed", got.notes)
        self.assertEqual(len(re.findall("is not reused", got.notes)), 1)

        path = self.write(command="echo zwei > /two", mode="c")
        p = self.plan(path)
        self.assertEqual(self.why(p), {"deps": None, "app": "env MODE changed"})

        path = self.write(command="echo zwei > /two", mode="b", extra="true")
        p = self.plan(path)
        self.assertEqual(self.why(p), {"deps": None, "extra": "new", "app": "layer extra below it is new"})

        path = self.write(command="echo zwei > /two", mode="b", runner_user="app")
        p = self.plan(path)
        self.assertEqual(self.why(p)["deps"], "runner_user is app now and was not set")

        path = self.write(command="echo zwei > /two", mode="b", tier="m")
        p = self.plan(path, "--no-boot-check")
        self.assertEqual((p["action"], p["why"]), ("finish", "tier changed from s to m"))
        self.assertIn("the image is made anew: tier changed from s to m", self.build(path).notes)

        # a failed build is one too: what it did not finish has no result
        path = self.write(command="false", mode="b", tier="m")
        self.assertEqual(self.home.build(path).rc, 1)
        p = self.plan(path)
        self.assertRegex(self.why(p)["deps"], "nothing changed, but there is no finished result")

        # and --force says itself
        path = self.write(command="echo zwei > /two", mode="b", tier="m")
        got = self.build(path, "--force")
        self.assertIn("layer deps is not reused: --force", got.notes)

    def test_what_is_not_known_yet(self):
        home = self.new_home("bare", warm=False)
        path = self.folder / "early.yaml"
        path.write_text("display_name: early\nbase_image: minimal-debian\n"
                        "layers: [{name: a, init_commands: [id]}]\n")
        got = self.ok(home.run("plan", "--json", "--explain", path))
        p = json.loads(got.out)
        self.assertEqual([(l["key"], l["cached"]) for l in p["layers"]], [(None, False)] * 2)
        self.assertRegex(p["layers"][1]["declared"], DIGEST)
        self.assertEqual((p["template_key"], p["lock"]["manifest"], p["platform"]["kernel"]), (None, None, None))
        self.assertEqual(len(p["unknown"]), 2)
        self.assertRegex(p["unknown"][0], "minimal-debian is not made yet")
        self.assertRegex(p["unknown"][1], "kernel: not downloaded yet")
        self.assertEqual([f for f in files_of(home) if "kernels" in f or "blobs" in f], [])
        # the base image that is there, but would be made anew
        warm = self.plan(path, "--pull", "always")
        self.assertRegex(warm["unknown"][0], "minimal-debian is made anew")
        self.assertIsNone(warm["template_key"])

    def repository(self):
        """(its folder, {name: commit}): a branch, a tag, an annotated tag, and a tag named like a branch."""
        folder = self.folder / "repository"
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        for who in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{who}_NAME": "a", f"GIT_{who}_EMAIL": "a@b", f"GIT_{who}_DATE": "2026-01-01T00:00:00Z"}

        def git(*args):
            return subprocess.run(["git", *args], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout.strip()
        folder.mkdir()
        git("init", "-q", "-b", "main")
        names = {}
        for name in ("one", "two", "three"):
            git("commit", "-q", "--allow-empty", "-m", name)
            names[name] = git("rev-parse", "HEAD")
            if name == "one":
                git("tag", "light")
                git("branch", "side/branch")
            if name == "two":
                git("tag", "-a", "-m", "t", "heavy")
                git("tag", "both")
        git("branch", "both")
        return folder, names

    def test_git_refs_become_commits(self):
        folder, names = self.repository()
        where = f"file://{folder}"
        refs = {"": names["three"], "main": names["three"], "side/branch": names["one"], "light": names["one"],
                "heavy": names["two"], "both": names["three"], "refs/tags/both": names["two"],
                "refs/tags/heavy": names["two"], "c" * 40: "c" * 40, "absent": None}
        sources = [{"git": where, "dst": f"/srv/{i}"} | ({"ref": r} if r else {}) for i, r in enumerate(refs)]
        sources.append({"git": f"file://{self.folder}/nothing", "dst": "/srv/nothing"})
        path = self.folder / "git.json"
        path.write_text(json.dumps({"display_name": "with-git", "base_image": "minimal-debian", "layers": [
            {"name": "a", "init_commands": ["id"], "context": sources}]}))
        p = self.plan(path)
        self.assertEqual([g["commit"] for g in p["lock"]["git"]], [*refs.values(), None])
        self.assertEqual([g["ref"] for g in p["lock"]["git"]], [r or None for r in refs] + [None])
        self.assertEqual(len(p["unknown"]), len(sources))
        self.assertRegex(p["unknown"][0], rf"layer a: commit {names['three']} of {where} was not fetched yet")
        self.assertEqual(p["unknown"][-2], f'layer a: the commit of absent: {where}: it has no branch or tag "absent"')
        self.assertRegex(p["unknown"][-1], r"layer a: the commit of HEAD: file:///.*/nothing: ")
        never = self.plan(path, "--pull", "never")
        self.assertEqual([g["commit"] for g in never["lock"]["git"]], [*refs.values(), None])  # as last seen
        self.assertRegex(never["unknown"][-1], r"nobody may be asked \(--pull never\)")

    def test_what_cannot_be_built_yet(self):
        path = self.folder / "git.yaml"
        path.write_text("display_name: with-git\nbase_image: minimal-debian\nlayers:\n"
                        "- name: a\n  init_commands: [id, {type: gcp-auth, args: [--project, x]}]\n"
                        f"  context: [{{git: 'http://127.0.0.1:{free_port()}/a.git', ref: main, dst: /srv/a}}]\n")
        p = self.plan(path)
        self.assertIsNone(p["lock"]["git"][0]["commit"])
        self.assertRegex("\n".join(p["unknown"]), r"layer a: the commit of main: http://127\.0\.0\.1:\d+/a\.git: .")
        self.assertRegex("\n".join(p["warnings"]), r"git\.yaml:5:\d+: layer a: .*gcp-auth")
        self.assertEqual(p["unsupported"], [])

    def test_refusals(self):
        bad = self.folder / "bad.yaml"
        bad.write_text("base_image: minimal-debian\nlayrs: []\n")
        self.ends(self.home.run("plan", bad), 2, r"bad\.yaml:2:1: .*layrs")
        self.ends(self.home.run("plan"), 2, r"plan FILE")
        self.ends(self.home.run("plan", bad, "--follow"), 2, r"--follow: no such option of `plan`")
        good = self.home.config("locked-early", [("a", ["id"])])
        for call in (("plan", "--locked", good), ("--locked", good)):
            self.ends(self.home.run(*call), 1, r"--locked: locked-early has no published version", r"without --locked")


class MovedTag(Plans):
    """A tag that moves in a real registry."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        cls.ref = cls.registry.push(debian_layout(cls.folder / "first"), "library/debian", "bookworm")
        cls.path = cls.home.config("moving", [("deps", ["echo deps > /deps"]), ("app", ["echo app > /app"])],
                                   base=cls.ref)

    def test_a_tag_that_moves(self):
        before = self.plan(self.path)
        was = before["lock"]["manifest"]
        self.assertFalse(before["layers"][0]["cached"])
        self.build(self.path)
        self.assertTrue(self.plan(self.path)["layers"][0]["cached"])

        self.registry.push(debian_layout(self.folder / "second", Env=["PATH=/usr/bin:/bin"]), "library/debian",
                           "bookworm")
        p = self.plan(self.path)
        now = p["lock"]["manifest"]
        self.assertNotEqual(was, now)
        moved = f"base image: {self.ref} moved from {was} to {now}"
        self.assertEqual(p["layers"][0]["why"], moved)
        self.assertEqual(self.why(p), {"deps": moved, "app": moved})
        self.assertEqual(p["why"], moved)

        # what was locked stays, wherever the tag points
        p = self.plan(self.path, "--locked", "--no-boot-check")
        self.assertEqual((p["lock"]["manifest"], p["action"]), (was, "none"))
        got = self.build(self.path, "--locked")
        self.assertRegex(got.notes, re.escape(was) + r" \(locked by version 1\)")
        self.assertEqual(list(self.home.versions("moving")), [1])
        # also with nobody to ask
        self.registry.stop()
        try:
            p = self.plan(self.path, "--locked", "--no-boot-check")
            self.assertEqual((p["lock"]["manifest"], p["action"]), (was, "none"))
        finally:
            self.registry.start()

        got = self.build(self.path)
        self.assertIn("layer deps is not reused: " + moved, got.notes)
        self.assertEqual(self.home.manifest("moving")["base"]["digest"], now)

        other = self.home.config("moving", [("deps", ["id"])], base="minimal-debian", file=self.folder / "other.yaml")
        for call in (("plan", "--locked", other), ("--locked", other)):
            self.ends(self.home.run(*call), 2, r"version 2 of moving is locked to .*debian:bookworm, not to minimal-debian")

    def test_a_name_that_the_registry_does_not_know(self):
        path = self.home.config("nobody", [("a", ["id"])], base=f"{self.registry.addr}/no/such:tag")
        self.ends(self.home.run("plan", path), 1, r"no/such:tag")
        self.ends(self.home.run("plan", "--pull", "never", path), 1, r"--pull never")


class Examples(Plans):
    """Every example is valid and can be planned; images come from a registry on the loopback."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        layout = Layout(cls.folder / "layout").add_layer(make_tar([("etc/", {"type": "folder"})]))
        layout.finish(Env=["PATH=/usr/bin:/bin"])
        for name, tag in (("library/debian", "bookworm"), ("library/python", "3.12-slim"),
                          ("jupyter/minimal-notebook", "python-3.12")):
            cls.registry.push(layout, name, tag)

    def test_examples_plan(self):
        mirrors = []
        for host in ("docker.io", "quay.io"):
            mirrors += ["--registry-mirror", f"{host}=http://{self.registry.addr}"]
        examples = sorted((SOURCE / "examples").glob("*/onboard.yaml"))
        self.assertGreaterEqual(len(examples), 7)
        for path in examples:
            with self.subTest(path.parent.name):
                self.assertTrue(path.read_text().startswith(
                    "# yaml-language-server: $schema=../../schemas/onboard.schema.json\n"))
                readme = (path.parent / "README.md").read_text()
                self.assertIn(f"capsule-build examples/{path.parent.name}/onboard.yaml", readme)
                self.ok(self.home.run("validate", path))
                got = self.ok(self.home.run("plan", "--json", *mirrors, path))
                p = json.loads(got.out)
                self.assertEqual(p["name"], path.parent.name)
                if p["lock"]["git"]:  # nobody answers here, and a plan fetches nothing
                    self.assertRegex("\n".join(p["unknown"]), r"layer \S+: the commit of \S+: https://")
                    self.assertIsNone(p["template_key"])
                else:
                    self.assertRegex(p["template_key"], DIGEST)
                for field in p["unsupported"]:  # each is named with its place
                    self.assertRegex(got.err, rf"onboard\.yaml:\d+:\d+: warning: {re.escape(field)}: not supported yet")
                for line in re.findall(r"\{src: ([^,}]+)", path.read_text()):
                    self.assertTrue((path.parent / line).exists(), line)
                self.assertEqual(p["warnings"], [])

    def test_hello_uses_nothing_that_has_no_effect(self):
        p = self.plan(SOURCE / "examples" / "hello" / "onboard.yaml")
        self.assertEqual((p["unsupported"], p["warnings"]), ([], []))


class Proxy(http.server.BaseHTTPRequestHandler):
    """An HTTP proxy that leads every request to one address, and writes down what was asked for."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        self.server.asked.append(url.netloc)
        to = http.client.HTTPConnection(self.server.to, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "proxy-connection", "connection")}
        to.request(self.command, url.path, headers={"Host": url.netloc, **headers})
        got = to.getresponse()
        body = got.read()
        self.send_response(got.status)
        for k, v in got.getheaders():
            if k.lower() not in ("connection", "transfer-encoding"):
                self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        to.close()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


class Settings(Plans):
    """/etc < ~/.config < --config < CAPSULE_BUILD_* < flags, field by field; `plan` shows what it came to."""

    def settings(self, *args, env=None, prefix=()):
        path = self.home.config("settled", [("a", ["id"])])
        return self.plan(path, *args, env=env, prefix=prefix)["settings"]

    def mirror(self, n):
        return f"http://127.0.0.1:{n}"

    def file(self, name, **fields):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(fields))
        return path

    def test_defaults(self):
        s = self.settings()
        self.assertEqual(s, {"home": str(self.home.path), "isolation": "auto", "pull": "always", "kernel": None, "qemu": None,
                             "debian_mirror": s["debian_mirror"],
                             "ubuntu_mirror": s["ubuntu_mirror"], "proxy": None, "ca_bundle": None, "allow_host_network": False,
                             "registry_mirrors": {}})

    def test_a_proxy_leads_to_a_registry(self):
        registry = Registry(self.folder / "registry")
        self.addCleanup(registry.stop)
        registry.push(debian_layout(self.folder / "layout"), "debian")
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        proxy.to, proxy.asked = registry.addr, []
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        self.addCleanup(proxy.server_close)
        self.addCleanup(proxy.shutdown)
        # a host that no resolver knows: only the proxy can lead there
        name = "registry.invalid:5000"
        settings = self.file("proxied.yaml", proxy=f"http://127.0.0.1:{proxy.server_port}",
                             registries={name: {"insecure": True}})
        config = self.home.config("proxied", [("a", ["id"])], base=f"{name}/debian:latest")
        env = {k: "" for k in ("no_proxy", "NO_PROXY")}  # as if the caller had none
        p = self.plan(config, "--config", settings, env=env)
        self.assertEqual(p["settings"]["proxy"], f"http://127.0.0.1:{proxy.server_port}")
        self.assertRegex(p["lock"]["manifest"], DIGEST)
        self.assertEqual(set(proxy.asked), {name})
        asked = len(proxy.asked)
        direct = self.home.config("direct", [("a", ["id"])], base=f"{registry.addr}/debian:latest")
        q = self.plan(direct, "--config", settings, env=env)  # this machine itself is asked without it
        self.assertEqual((q["lock"]["manifest"], len(proxy.asked)), (p["lock"]["manifest"], asked))

    def test_files_environment_flags(self):
        user = self.home.folder / ".config" / "capsule-build" / "config.yaml"  # HOME is the folder of the home
        user.parent.mkdir(parents=True, exist_ok=True)
        self.addCleanup(user.unlink)
        user.write_text(yaml.safe_dump({
            "isolation": "vm", "pull": "missing",
            "registries": {"docker.io": {"mirror": self.mirror(1)}, "quay.io": {"mirror": self.mirror(1)},
                           "ghcr.io": {"mirror": self.mirror(1)}, "gcr.io": {"mirror": self.mirror(1)}}}))
        want = {"isolation": "vm", "pull": "missing",
                "mirrors": {h: self.mirror(1) for h in ("docker.io", "quay.io", "ghcr.io", "gcr.io")}}

        def check(*args, env=None):
            s = self.settings(*args, env=env)
            self.assertEqual({"isolation": s["isolation"], "pull": s["pull"], "mirrors": s["registry_mirrors"]}, want)
        check()

        given = self.file("given.yaml", isolation="container",
                          registries={h: {"mirror": self.mirror(2)} for h in ("docker.io", "quay.io", "ghcr.io")})
        want["isolation"] = "container"
        want["mirrors"].update({h: self.mirror(2) for h in ("docker.io", "quay.io", "ghcr.io")})
        flags = ["--config", given]
        check(*flags)

        env = {"CAPSULE_BUILD_PULL": "always", "CAPSULE_BUILD_ISOLATION": "vm",
               "CAPSULE_BUILD_REGISTRY_MIRRORS": f"docker.io={self.mirror(3)},quay.io={self.mirror(3)}"}
        want.update(pull="always", isolation="vm")
        want["mirrors"].update({h: self.mirror(3) for h in ("docker.io", "quay.io")})
        check(*flags, env=env)

        flags += ["--isolation", "auto", "--pull", "never", "--registry-mirror", f"docker.io={self.mirror(4)}"]
        want.update(pull="never", isolation="auto")
        want["mirrors"]["docker.io"] = self.mirror(4)
        check(*flags, env=env)

    def test_etc_comes_first(self):
        self.needs_root()
        etc = self.folder / "etc"
        for d in ("upper/capsule-build", "work"):
            (etc / d).mkdir(parents=True)
        (etc / "upper" / "capsule-build" / "config.yaml").write_text("isolation: container\npull: missing\n")
        # a mount namespace of its own, where /etc has one more folder
        script = (f"mount -t tmpfs none {etc}/work && mkdir {etc}/work/u {etc}/work/w && "
                  f"cp -a {etc}/upper/. {etc}/work/u/ && "
                  f"mount -t overlay -o lowerdir=/etc,upperdir={etc}/work/u,workdir={etc}/work/w none /etc && "
                  'exec "$@"')
        prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
        probe = harness.subprocess.run([*prefix, "test", "-e", "/etc/capsule-build/config.yaml"])
        if probe.returncode != 0:
            self.skipTest("no overlay over /etc in a mount namespace here")
        s = self.settings(prefix=prefix)
        self.assertEqual((s["isolation"], s["pull"]), ("container", "missing"))
        user = self.home.folder / ".config" / "capsule-build" / "config.yaml"
        user.parent.mkdir(parents=True, exist_ok=True)
        self.addCleanup(user.unlink)
        user.write_text("pull: never\n")
        s = self.settings(prefix=prefix)
        self.assertEqual((s["isolation"], s["pull"]), ("container", "never"))

    def test_a_wrong_setting_says_where(self):
        path = self.home.config("settled", [("a", ["id"])])
        bad = self.file("bad.yaml", pull="sometimes")
        self.ends(self.home.run("plan", "--config", bad, path), 2, r"bad\.yaml:1:7: pull: .*always")
        self.ends(self.home.run("plan", path, env={"CAPSULE_BUILD_PULL": "sometimes"}), 2,
                  r"CAPSULE_BUILD_PULL.*always")
        self.ends(self.home.run("plan", "--config", "nowhere.yaml", path), 2, r"nowhere\.yaml")
        self.ends(self.home.run("plan", "--pull", "sometimes", path), 2, r"--pull sometimes")


if __name__ == "__main__":
    unittest.main()
