"""What a template says about itself: the package list, the provenance, their signatures; and what differs between
two templates (diff), and where the bytes are (show --sizes)."""

import base64
import hashlib
import json
import re
import subprocess
import unittest

import harness
from harness import E2E

SECRETS = ["hunter2-layer", "hunter2-start", "hunter2-command", "hunter2-credential"]


def openssl(*args, **kw):
    return subprocess.run(["openssl", *args], check=True, capture_output=True, **kw).stdout


class Documents(E2E):
    def write(self, name, *more, **fields):
        layers = [{"name": "tools", "init_commands": [
                       "mkdir -p /opt/t && echo one > /opt/t/one && head -c 100000 /dev/zero | tr '\\0' x > /opt/t/big",
                       "mkdir -p /usr/lib/apk/db && printf 'P:musl\\nV:1.2\\nL:MIT\\n' > /usr/lib/apk/db/installed"],
                   "env": {"TOKEN": "${E2E_TOKEN}"}},
                  {"name": "app", "init_commands": [
                       "rm /opt/t/big && echo two > /opt/t/two",
                       {"type": "exec", "args": ["true"], "env_variables": {"PASS": "hunter2-command"}}]},
                  *more]
        path = self.folder / f"{name}{len(more)}.yaml"
        path.write_text(json.dumps({
            "display_name": name, "base_image": "minimal-debian", "layers": layers, "config": {"tier": "s"},
            "start_command": {"command": ["sleep", "1"], "env": {"KEY": "${E2E_START}"}}, **fields}))
        return path

    def key(self, name, *options):
        path = self.folder / name
        openssl("genpkey", *options, "-out", path)
        path.chmod(0o600)
        return path

    def environment(self, key=None):
        env = {"E2E_TOKEN": "hunter2-layer", "E2E_START": "hunter2-start"}
        return env | ({"CAPSULE_BUILD_SIGNING_KEY": str(key)} if key else {})

    def build(self, path, key=None, *args):
        return self.ok(self.home.build(path, "--no-boot-check", *args, env=self.environment(key)))

    def show(self, *args):
        return self.ok(self.home.run("show", *args))

    def test_signed(self):
        key = self.key("signing.pem", "-algorithm", "ed25519")
        public = self.folder / "signing.pub"
        openssl("pkey", "-in", key, "-pubout", "-out", public)
        path = self.write("noted")
        built = self.build(path, key)
        self.assertRegex(built.notes, r"packages: \d+, from var/lib/dpkg/status and others")
        m = self.home.manifest("noted")
        documents = m["documents"]
        self.assertEqual(set(documents), {"sbom", "provenance", "sbom_signed", "provenance_signed"})

        sbom = json.loads(self.show("noted", "--sbom").out)
        self.assertEqual(sbom["spdxVersion"], "SPDX-2.3")
        names = {p["name"]: p for p in sbom["packages"]}
        self.assertEqual(names["musl"]["licenseDeclared"], "MIT")
        status = subprocess.run(["debugfs", "-R", "cat /var/lib/dpkg/status", self.home.image("noted")],
                                capture_output=True, check=True).stdout.decode()
        for name in re.findall(r"^Package: (.*)$", status, re.M):
            self.assertIn(name, names)

        said = self.show("noted", "--provenance").out
        p = json.loads(said)
        self.assertEqual(p["_type"], "https://in-toto.io/Statement/v1")
        self.assertEqual(p["predicateType"], "https://slsa.dev/provenance/v1")
        self.assertEqual(p["subject"][0], {"name": "noted.ext4", "digest": {
            "capsuleChunkMap1": m["image"]["digest"].removeprefix("sha256:")}})
        rest = {k: v for k, v in m.items() if k not in ("documents", "version")}
        canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.assertEqual(p["subject"][1]["digest"]["sha256"], hashlib.sha256(canonical.encode()).hexdigest())
        definition, run = p["predicate"]["buildDefinition"], p["predicate"]["runDetails"]
        self.assertEqual([d["name"] for d in definition["resolvedDependencies"]], ["base image", "kernel", "agent"])
        self.assertEqual("sha256:" + definition["resolvedDependencies"][0]["digest"]["sha256"], m["base"]["digest"])
        self.assertEqual([l["name"] for l in definition["internalParameters"]["layers"]], ["tools", "app"])
        self.assertIn("echo two > /opt/t/two", definition["internalParameters"]["layers"][1]["commands"][0])
        self.assertEqual(run["metadata"]["invocationId"], self.home.builds()[0]["id"])
        self.assertLessEqual(run["metadata"]["startedOn"], run["metadata"]["finishedOn"])
        self.assertEqual("sha256:" + run["byproducts"][0]["digest"]["sha256"], documents["sbom"])
        self.assertEqual(definition["externalParameters"]["config"]["layers"][0]["env"], ["TOKEN"])

        for which in documents.values():
            text = self.home.blob(which).read_bytes()
            if text.startswith(b'{"payload"'):
                text = base64.b64decode(json.loads(text)["payload"])
            for secret in SECRETS:
                self.assertNotIn(secret.encode(), text)

        for which in ("sbom_signed", "provenance_signed"):  # by the standard's words, with openssl alone
            envelope = json.loads(self.home.blob(documents[which]).read_bytes())
            payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
            (self.folder / "pae").write_bytes(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
            (self.folder / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
            openssl("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-in", self.folder / "pae",
                    "-sigfile", self.folder / "sig")
            self.assertEqual(json.loads(payload)["subject"], p["subject"])
        self.assertEqual(base64.b64decode(json.loads(self.home.blob(documents["provenance_signed"]).read_bytes())
                                          ["payload"]).decode(), said)

        self.assertIn("signed by the key", self.show("noted", "--verify-signature", public).out)
        other = self.key("other.pem", "-algorithm", "ed25519")
        openssl("pkey", "-in", other, "-pubout", "-out", self.folder / "other.pub")
        self.ends(self.home.run("show", "noted", "--verify-signature", self.folder / "other.pub"), 1,
                  "it is not signed by the key")
        self.ends(self.home.run("show", "noted", "--verify-signature", key), 2, "no public key in PEM")
        file = self.home.store / "templates" / "noted" / "1.json"
        whole = file.read_text()
        file.write_text(whole.replace('"cmdline": "', '"cmdline": "init=/evil '))
        self.ends(self.home.run("show", "noted", "--verify-signature", public), 1, "is not about this template")
        file.write_text(whole)

        again = self.build(path, key)  # nothing changed: nothing is made, and the version stays as it is
        self.assertIn("up to date", again.notes)
        self.assertEqual(set(self.home.versions("noted")), {1})

    def test_keys_that_cannot_sign(self):
        path = self.write("unsigned")
        locked = self.folder / "locked.pem"
        openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", locked)
        locked.chmod(0o600)
        open_ = self.key("open.pem", "-algorithm", "ed25519")
        open_.chmod(0o644)
        rsa = self.key("rsa.pem", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        before = len(self.home.builds())
        for key, why in ((locked, "behind a password"), (open_, "read or changed by others"),
                         (rsa, "only ED25519 is accepted"), (self.folder / "none", "No such file")):
            self.ends(self.home.run(path, env=self.environment(key)), 2, "signing_key: ", why)
        self.assertEqual(len(self.home.builds()), before)  # said before anything begins

    def test_unsigned(self):
        path = self.write("plain")
        self.build(path)
        self.assertEqual(set(self.home.manifest("plain")["documents"]), {"sbom", "provenance"})
        key = self.key("later.pem", "-algorithm", "ed25519")
        public = self.folder / "later.pub"
        openssl("pkey", "-in", key, "-pubout", "-out", public)
        self.ends(self.home.run("show", "plain", "--verify-signature", public), 1, "the provenance is not signed")
        self.assertIn("published without a signature; --force", self.build(path, key).text)
        self.assertEqual(set(self.home.versions("plain")), {1})

    def test_diff(self):
        self.build(self.write("differing"))
        self.build(self.write("differing", {"name": "last", "init_commands": [
            "chmod 600 /opt/t/one && echo longer > /opt/t/two && ln -s one /opt/t/link && rm -r /usr/lib/apk"]}))

        def diff(*args):
            d = json.loads(self.ok(self.home.run("diff", "--json", *args)).out)
            return {(e["change"], e["path"]): e for e in d["entries"] if not e["path"].startswith(
                (".capsule", "etc/", "var/", "root"))}, d

        got, whole = diff("differing:1", "differing:2")
        expected = {("changed", "opt/t/one"): ["mode"], ("changed", "opt/t/two"): ["content"],
                    ("added", "opt/t/link"): None, ("removed", "usr/lib/apk"): None,
                    ("removed", "usr/lib/apk/db"): None, ("removed", "usr/lib/apk/db/installed"): None}
        self.assertEqual({k: v.get("changed") for k, v in got.items()}, expected)
        self.assertEqual(got["changed", "opt/t/two"]["after"]["size"], 7)
        paths = [e["path"].split("/") for e in whole["entries"]]
        self.assertEqual(paths, sorted(paths))
        back, _ = diff("differing:2", "differing:1")
        swap = {"added": "removed", "removed": "added", "changed": "changed"}
        self.assertEqual({(swap[c], p) for c, p in back}, set(expected))
        got, _ = diff("differing/tools", "differing/app")
        self.assertEqual(set(got), {("removed", "opt/t/big"), ("added", "opt/t/two")})
        same, whole = diff("differing", "differing:2")
        self.assertEqual((same, whole["totals"]["added"]["count"]), ({}, 0))
        text = self.ok(self.home.run("diff", "differing:1", "differing")).out
        self.assertIn("~ /opt/t/two: content (+3 bytes)\n", text)
        self.assertIn("~ /opt/t/one: mode 0644 becomes 0600\n", text)
        self.assertRegex(self.ok(self.home.run("diff", "--stat", "differing:1", "differing")).out,
                         r"(?m)^/opt: 1 added \(0 B\), 0 removed \(0 B\), 2 changed \(\+3 B, -0 B\)$")
        for args, rc, why in ((("differing", "differing:9"), 1, "version 9"),
                              (("differing", "differing/none"), 1, "no layer none"),
                              (("differing", "differing:x"), 2, "not NAME"), (("nothing", "differing"), 1, "nothing")):
            self.ends(self.home.run("diff", *args), rc, why)

    def test_sizes(self):
        self.build(self.write("sized"))
        d = json.loads(self.ok(self.home.run("show", "sized", "--sizes", "--json", "--depth", "3", "--top", "500")).out)
        layers = {l["name"]: l for l in d["layers"]}
        self.assertEqual([l["name"] for l in d["layers"]], self.home.layer_names("sized"))
        for l, blob in zip(d["layers"], self.home.manifest("sized")["layers"]):
            self.assertEqual(l["compressed_bytes"], blob["size"])
        tools = layers["tools"]
        self.assertGreaterEqual(tools["content_bytes"] - tools["kept_bytes"], 100000)  # /opt/t/big, which app removes
        self.assertGreater(layers["_base"]["kept_bytes"], 10_000_000)
        self.assertEqual(d["other"]["kept_bytes"], 0)
        folders = {f["path"]: f for f in d["folders"]}
        self.assertEqual((folders["opt/t"]["files"], folders["opt/t"]["content_bytes"]), (2, 8))
        self.assertGreaterEqual(folders["."]["allocated_bytes"], folders["usr"]["allocated_bytes"])
        self.assertEqual(folders["."]["content_bytes"] >= sum(l["kept_bytes"] for l in d["layers"]), True)
        sizes = [f["allocated_bytes"] for f in d["folders"]]
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        text = self.ok(self.home.run("show", "--sizes", "sized", "--top", "3")).out
        self.assertEqual(len(re.findall(r"(?m)  /", text)), 3)
        self.ends(self.home.run("show", "--sizes", "nothing"), 1, "there is no template nothing")


if __name__ == "__main__":
    unittest.main()
