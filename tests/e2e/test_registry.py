"""Base images from a real registry: HTTP, TLS, a mirror, and everything a registry can get wrong."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import unittest

import harness
from harness import E2E, Layout, Registry, debian_layout, make_tar, perl_server, tar_entries


class FromRegistry(E2E):
    """The whole path, both builders, on an image that was pushed to a registry."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        layout = Layout(cls.folder / "layout").add_layer(harness.base_tar().read_bytes())
        layout.add_layer(make_tar([
            ("usr/local/bin/greet", {"mode": 0o755, "data": b"#!/bin/sh\necho greetings from $GREETER\n"}),
            ("etc/.wh.issue", {}),
            ("srv/", {"type": "folder"}),
            ("srv/data", {"data": b"data\n", "uid": 1000, "gid": 1000})]))
        layout.finish(Env=["PATH=/usr/local/bin:/usr/bin:/bin", "GREETER=the image"], WorkingDir="/srv",
                      Cmd=["greet"])
        cls.ref = cls.registry.push(layout, "team/app", "v1")
        cls.layout = layout

    def whole(self, builder):
        home = self.new_home(builder)
        config = home.config("pulled", [("one", ["greet; pwd; test ! -e /etc/issue; echo more >> data"])],
                             base=self.ref, start_command={"command": perl_server(9000), "port": 9000})
        got = self.ok(home.build(config, "--isolation", builder))
        self.assertEqual(got.output("one").split("\n")[:2], ["greetings from the image", "/srv"])
        self.assertRegex(got.notes, re.escape(self.ref) + r" is sha256:[0-9a-f]{64}")
        m = home.manifest("pulled")
        self.assertEqual([l["digest"] for l in m["layers"][:2]], [l["digest"] for l in self.layout.layers])
        entries = tar_entries(home.cached_layer("one"))
        self.assertEqual(entries["srv/data"]["owner"], (1000, 1000))
        got = self.ends(home.run("boot", "pulled", "--exec", "greet"), 0, "greetings from the image")
        again = self.ok(home.build(config, "--isolation", builder))
        self.assertEqual(again.phases_run() - {"resolve"}, set())

    def test_whole_path_container(self):
        self.whole("container")

    def test_whole_path_vm(self):
        self.whole("vm")


class RegistryCases(E2E):
    """Resolving and fetching alone: no command is needed to see these."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.layout = debian_layout(cls.folder / "layout")
        cls.registry = Registry(cls.folder / "registry")
        cls.addClassCleanup(cls.registry.stop)
        cls.ref = cls.registry.push(cls.layout, "library/debian", "bookworm")

    def setUp(self):
        self.count = getattr(type(self), "count", 0) + 1
        type(self).count = self.count
        self.fresh = self.new_home(f"case-{self.count}")

    def config(self, base, name="case"):
        return self.fresh.config(name, [("a", ["true"])], base=base)

    def build(self, base, *args, **kw):
        """Container where it works: what is looked at is the same."""
        return self.fresh.build(self.config(base), "--no-boot-check", *args, **kw)

    def refused(self, got, *patterns):
        self.ends(got, 1, *patterns)
        self.assertEqual(got.status, "failed")
        self.assertEqual(self.fresh.versions("case"), {})
        self.assertEqual(self.fresh.left(), [])

    def test_a_repository_that_does_not_exist(self):
        ref = f"{self.registry.addr}/no/such:thing"
        self.refused(self.build(ref), re.escape(ref), r"(?i)manifest.unknown|name.unknown|not known")

    def test_a_tag_that_does_not_exist(self):
        ref = f"{self.registry.addr}/library/debian:nope"
        self.refused(self.build(ref), re.escape(ref), r"(?i)manifest.unknown|not known")

    def test_a_digest_that_does_not_exist(self):
        ref = f"{self.registry.addr}/library/debian@sha256:{'0' * 64}"
        self.refused(self.build(ref), re.escape(ref))

    def test_registry_down(self):
        ref = f"127.0.0.1:{harness.free_port()}/library/debian:bookworm"
        self.refused(self.build(ref), re.escape(ref), r"(?i)connect|refused")

    def test_registry_down_later_the_last_lock_is_used_and_said(self):
        other = Registry(self.fresh.folder / "registry")
        self.addCleanup(other.stop)
        ref = other.push(self.layout, "some/image")
        self.ok(self.build(ref))
        other.stop()
        got = self.ok(self.build(ref))
        self.assertRegex(got.text, r"could not be (asked|reached)")
        self.assertEqual(got.commands_run(), [])

    def damaged(self, damage, *patterns):
        """Damages the layer's blob in the registry, sees the build refuse it, mends it, repeats."""
        blob = self.registry.blob_file(self.layout.layers[0]["digest"])
        good = blob.read_bytes()
        try:
            blob.write_bytes(damage(good))
            self.refused(self.build(self.ref), re.escape(self.ref), *patterns)
        finally:
            blob.write_bytes(good)
        self.assertFalse(self.fresh.blob(self.layout.layers[0]["digest"]).exists())
        if not harness.SANITIZED:  # it hashes all of the store
            self.ends(self.fresh.run("verify"), 0)
        self.ok(self.build(self.ref))
        self.assertTrue(self.fresh.blob(self.layout.layers[0]["digest"]).exists())

    def test_wrong_digest(self):
        def flip(b):
            middle = len(b) // 2
            return b[:middle] + bytes([b[middle] ^ 1]) + b[middle + 1:]
        self.damaged(flip, r"sha256:[0-9a-f]{12}", r"(?i)digest|damaged|corrupt")

    def test_truncated_blob(self):
        self.damaged(lambda b: b[:len(b) // 2], r"(?i)truncated|short|ended|bytes|size")

    def test_manifest_that_is_not_what_it_claims(self):
        manifest = json.loads((self.layout.folder / "index.json").read_text())["manifests"][0]["digest"]
        blob = self.registry.blob_file(manifest)
        good = blob.read_bytes()
        try:
            blob.write_bytes(good.replace(b"schemaVersion", b"schemaVersIon"))
            self.refused(self.build(self.ref), re.escape(self.ref))
        finally:
            blob.write_bytes(good)

    def test_mirror_for_a_short_name(self):
        got = self.build("debian:bookworm", "--registry-mirror", f"docker.io=http://{self.registry.addr}")
        self.ok(got)
        self.assertRegex(got.notes, r"debian:bookworm is sha256:")

    def test_mirror_from_a_settings_file(self):
        settings = self.fresh.folder / "settings.yaml"
        settings.write_text(f"registries:\n  docker.io:\n    mirror: http://{self.registry.addr}\n")
        self.ok(self.build("debian:bookworm", "--config", settings))

    def test_pull_never_uses_the_lock_alone(self):
        self.refused(self.build(self.ref, "--pull", "never"), re.escape(self.ref))
        self.ok(self.build(self.ref))
        self.ok(self.build(self.ref, "--pull", "never"))

    def test_a_moved_tag_builds_again(self):
        self.ok(self.build(self.registry.push(self.layout, "moving", "tag")))
        more = Layout(self.fresh.folder / "more").add_layer(harness.base_tar().read_bytes())
        more.add_layer(make_tar([("etc/moved", {"data": b"yes"})])).finish(Env=["PATH=/usr/bin:/bin"])
        ref = self.registry.push(more, "moving", "tag")
        got = self.ok(self.build(ref))
        self.assertEqual([layer for layer, _ in got.commands_run()], ["a"])


class Tls(E2E):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry", tls=True)
        cls.addClassCleanup(cls.registry.stop)
        cls.ref = cls.registry.push(debian_layout(cls.folder / "layout"), "debian")

    def test_a_private_authority_named_in_the_settings(self):
        settings = self.folder / "settings.yaml"
        settings.write_text(f"registries:\n  {json.dumps(self.registry.addr)}:\n    ca_file: {self.registry.ca}\n")
        config = self.home.config("tls", [("a", ["true"])], base=self.ref)
        self.ok(self.home.build(config, "--no-boot-check", "--config", settings))

    def test_an_authority_for_all_hosts(self):
        # what there is of the host itself cannot be reached: a mirror is asked, by HTTPS
        config = self.home.config("tls-all", [("a", ["true"])], base="registry.invalid/debian:latest")
        args = ("--registry-mirror", f"registry.invalid=https://{self.registry.addr}")
        env = {k: "" for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        env["CAPSULE_BUILD_CA_BUNDLE"] = str(self.registry.ca)
        self.ok(self.home.run("plan", config, *args, env=env))
        got = self.home.run("plan", config, *args, env=env | {"CAPSULE_BUILD_CA_BUNDLE": str(self.folder / "none.pem")})
        self.ends(got, 2, r"ca_bundle .*none\.pem cannot be used")
        missing = self.home.config("tls-missing", [("a", ["true"])], base="registry.invalid/other:latest")
        got = self.home.run("plan", missing, *args, env=env)
        self.ends(got, 1, r"registry\.invalid cannot be reached", r"before that, the mirror .* answered 404")

    def refused(self, name, base, *args):
        config = self.home.config(name, [("a", ["true"])], base=base)
        got = self.home.build(config, "--no-boot-check", *args)
        self.assertEqual(self.home.versions(name), {})
        return got

    def test_an_unknown_authority_is_refused(self):
        got = self.refused("tls-refused", "debian:latest", "--registry-mirror", f"docker.io=https://{self.registry.addr}",
                           "--pull", "missing")
        self.ends(got, 1, r"debian:latest", r"(?i)certificate")

    def test_a_loopback_host_without_an_authority_is_asked_plainly_and_the_hint_says_so(self):
        self.ends(self.refused("tls-plain", self.ref), 1, re.escape(self.ref), r"answered 400", r"ca_file")


class Push(E2E):
    """A template into a registry with TLS and logins, and what others read there."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.registry = Registry(cls.folder / "registry", tls=True, login=True)
        cls.addClassCleanup(cls.registry.stop)
        cls.settings = cls.folder / "settings.yaml"
        cls.settings.write_text(f"registries:\n  {json.dumps(cls.registry.addr)}:\n    ca_file: {cls.registry.ca}\n")
        code = base64.b64encode(f"{Registry.USER}:{Registry.PASSWORD}".encode()).decode()
        cls.login = cls.folder / "login"
        cls.login.mkdir()
        (cls.login / "config.json").write_text(json.dumps({"auths": {cls.registry.addr: {"auth": code}}}))

    def push(self, *args, login=True):
        return self.home.run("push", *args, "--config", self.settings,
                             env={"DOCKER_CONFIG": str(self.login)} if login else None)

    def skopeo(self, *args):
        certs = self.folder / "certs"
        certs.mkdir(exist_ok=True)
        shutil.copy(self.registry.ca, certs / "ca.crt")
        return subprocess.run(["skopeo", "--insecure-policy", *args[:1], "--authfile", self.login / "config.json",
                               *args[1:]], check=True, stdout=subprocess.PIPE,
                              env={**os.environ, "TMPDIR": str(self.folder)}).stdout

    def test_what_is_pushed_is_what_others_read(self):
        config = self.home.config("pushed", [("one", ["echo from the template > /etc/motd"])], base="minimal-debian",
                                  start_command={"command": ["sleep", "infinity"], "env": {"A": "b"}})
        self.ok(self.home.build(config, "--no-boot-check"))
        ref = f"{self.registry.addr}/team/pushed:v1"
        self.ends(self.push("pushed", ref, login=False), 1, r"wants a user name and a password")
        got = self.ends(self.push("pushed", ref), 0, r"pushed version 1: \d+ blobs sent")
        printed = re.search(r"^(\S+@sha256:[0-9a-f]{64})$", got.text, re.M).group(1)

        certs = f"--{{}}cert-dir={self.folder / 'certs'}"
        raw = self.skopeo("inspect", certs.format(""), "--raw", f"docker://{ref}")
        self.assertEqual(printed.split("@")[1], "sha256:" + hashlib.sha256(raw).hexdigest())
        layout = self.folder / "pulled"
        self.skopeo("copy", certs.format("src-"), "-q", f"docker://{ref}", f"oci:{layout}:v1")
        m = self.home.manifest("pushed")
        ours = [l["digest"] for l in m["layers"] if l["name"] != "_agent"]
        self.assertEqual([l["digest"] for l in json.loads(raw)["layers"]], ours)
        image = json.loads(self.skopeo("inspect", certs.format(""), "--config", f"docker://{ref}"))
        self.assertEqual(image["config"]["Cmd"], ["sleep", "infinity"])
        self.assertIn("A=b", image["config"]["Env"])

        # nothing is sent twice; another tag costs a manifest
        self.ends(self.push("pushed:1", ref + "-again"), 0, r"pushed version 1: 0 blobs sent \(0 B\)")
        # and it is a base image
        other = self.new_home("other")
        config = other.config("onward", [("two", ["grep -q 'from the template' /etc/motd"])], base=ref)
        self.ok(other.build(config, "--no-boot-check", "--config", self.settings,
                            env={"DOCKER_CONFIG": str(self.login)}))

    def test_what_cannot_be_pushed(self):
        self.ends(self.push("nothing", f"{self.registry.addr}/a/b:1"), 1, r"nothing")
        self.ends(self.push("nothing", "No Good"), 2, r"No Good")


if __name__ == "__main__":
    unittest.main()
