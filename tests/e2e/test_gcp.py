"""Commands of type gcp-auth: what follows them gets tokens of Google Cloud, as in a machine of Google's."""

import json
import os
import sys
import unittest
from pathlib import Path

from harness import E2E

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fakes"))
from gcp import CLOUD, EMAIL, Google  # noqa: E402

# One request to the metadata server, with bash alone: `ask PATH [HEADER...]`.
ASK = r"""
ask() {
  local path=$1; shift
  exec 3<>"/dev/tcp/${GCE_METADATA_HOST%:*}/${GCE_METADATA_HOST#*:}"
  printf 'GET %s HTTP/1.1\r\nHost: metadata.google.internal\r\n' "$path" >&3
  for h in "$@"; do printf '%s\r\n' "$h" >&3; done
  printf '\r\n' >&3
  cat <&3
}
F='metadata-flavor: Google'
A=/computeMetadata/v1/instance/service-accounts
"""
AUTH = {"type": "gcp-auth"}


def script(text):
    return {"type": "shell", "args": ["bash", "-c", ASK + text], "name": "asks"}


class Gcp:
    builder = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.google = Google(cls.folder / "google")
        cls.key = cls.google.key_file()

    @classmethod
    def tearDownClass(cls):
        cls.google.close()
        super().tearDownClass()

    def build(self, name, layers, env=None, auth=None, *args):
        config = {"tier": "s"}
        if auth is not None:
            config["auth"] = {"providers": {"gcp": auth}}
        path = self.home.config(name, layers, config=config)
        return self.home.build(path, "--isolation", self.builder, "--no-boot-check", *args, env=env or {})

    def test_01_a_key_file(self):
        token_to = "ask $A/default/token \"$F\" | tail -n 1"
        got = self.ok(self.build("key", [
            ("one", ["echo before: ${GCE_METADATA_HOST-none}", AUTH,
                     script("ask $A/default/token \"$F\"; echo; " + token_to + " > /srv/token; " + token_to + " | base64")]),
            ("two", [script("ask $A/default/email \"$F\" | tail -n 1; echo; echo port ${#GCE_METADATA_HOST}")])],
            None, {"key_file_ref": str(self.key)}))
        self.assertIn(f"commands get tokens of {EMAIL} (key file {self.key})", got.notes)
        one = got.output("one")
        self.assertIn("before: none", one)
        self.assertRegex(one, r"HTTP/1\.1 200 OK\r?\nMetadata-Flavor: Google\r?\n")
        self.assertRegex(one, r'\{"access_token": ?"\*\*\*", ?"expires_in": ?35\d\d, ?"token_type": ?"Bearer"\}')
        self.assertIn(EMAIL, got.output("two"))  # the next layer has it as well
        self.assertEqual([s for _, s in self.google.tokens], [CLOUD])  # one, for all of them
        token = self.google.tokens[-1][0]
        self.assertNotIn(token, got.out + got.err)
        # the file that the command wrote is its own doing; of ours nothing is in the layer, or anywhere else
        log = self.ok(self.home.run("logs", "key"))
        self.assertNotIn(token, log.text)
        for folder, _, files in os.walk(self.home.path):
            for f in files:
                p = Path(folder) / f
                if p.suffix in (".json", ".db", ".log") or "db-wal" in f:
                    self.assertNotIn(token.encode(), p.read_bytes(), str(p))

    def test_02_the_servers_paths(self):
        got = self.ok(self.build("paths", [("one", [AUTH, script(r"""
show() { echo "== $1"; shift; ask "$@" | tr -d '\r' | sed -n '1p;/^$/,$p' | grep -v '^$'; echo; }
show root / ; show noflavor $A/default/token; show badflavor $A/default/token 'Metadata-Flavor: google'
show forwarded $A/default/token "$F" 'X-Forwarded-For: 10.0.0.1'
show missing /computeMetadata/v1/instance/id "$F"; show account "$A/default/?recursive=true" "$F"
show list $A/ "$F"; show scopes $A/default/scopes "$F"; show project /computeMetadata/v1/project/project-id "$F"
show email """ + f"$A/{EMAIL}/email" + r""" "$F"; show other $A/other@x/token "$F"
show narrow "$A/default/token?scopes=https%3A%2F%2Fwww.googleapis.com%2Fauth%2Fdevstorage.read_only" "$F"
show wrong "$A/default/token?scopes=a%20b%22" "$F"
exec 3<>"/dev/tcp/${GCE_METADATA_HOST%:*}/${GCE_METADATA_HOST#*:}"; printf 'POST / HTTP/1.1\r\n\r\n' >&3; head -n 1 <&3
exec 3<>"/dev/tcp/${GCE_METADATA_HOST%:*}/${GCE_METADATA_HOST#*:}"; printf 'garbage\r\n\r\n' >&3; head -n 1 <&3
""")])], None, {"key_file_ref": str(self.key)}))
        out = got.output("one")
        parts = {p.split("\n", 1)[0]: p.split("\n", 1)[1] for p in out.replace("\r", "").split("== ")[1:]}
        status = {k: int(v.split()[1]) for k, v in parts.items()}
        self.assertEqual(status, {"root": 200, "noflavor": 403, "badflavor": 403, "forwarded": 403, "missing": 404,
                                  "account": 200, "list": 200, "scopes": 200, "project": 200, "email": 200, "other": 404,
                                  "narrow": 200, "wrong": 403}, out)
        account = json.loads(parts["account"].split("\n", 1)[1])
        self.assertEqual(account, {"aliases": ["default"], "email": EMAIL, "scopes": [CLOUD]})
        self.assertIn(f"default/\n{EMAIL}/", parts["list"])
        self.assertIn("\nproject\n", parts["project"])
        self.assertEqual(self.google.tokens[-1][1], "https://www.googleapis.com/auth/devstorage.read_only")
        self.assertRegex(out, r"HTTP/1.1 405 ")
        self.assertRegex(out, r"HTTP/1.1 400 ")


class GcpContainer(Gcp, E2E):
    builder = "container"

    def test_03_other_providers(self):
        ask = script("ask $A/default/token?scopes=$(printf openid) \"$F\" | grep -c Bearer; ask $A/default/email \"$F\" | tail -1")
        env = {"GOOGLE_APPLICATION_CREDENTIALS": str(self.google.user_file())}
        got = self.ok(self.build("user", [("one", [AUTH, ask])], env))
        self.assertIn(f"the user of {self.google.folder}/user.json", got.notes)
        env = {"GCE_METADATA_HOST": self.google.host, "GOOGLE_APPLICATION_CREDENTIALS": ""}
        got = self.ok(self.build("machine", [("one", [AUTH, "true", ask])], env, {"scopes": ["devstorage.read_only"]}))
        self.assertIn(f"{EMAIL} (metadata server {self.google.host})", got.notes)
        self.assertEqual([s for _, s in self.google.tokens[-2:]],
                         ["https://www.googleapis.com/auth/devstorage.read_only", "openid"])

    def test_04_a_layer_that_is_cached_gives_them_too_and_start_has_them(self):
        first = [("one", [{"type": "gcp-auth", "args": ["--scope", "compute.readonly"]},
                          {"type": "start", "args": ["sh", "-c", "echo $GCE_METADATA_HOST > /run/host; exec sleep 1000"]}])]
        auth = {"key_file_ref": str(self.key)}
        self.ok(self.build("cached", first, None, auth))
        got = self.ok(self.build("cached", [*first, ("two", [script(
            "ask $A/default/scopes \"$F\" | tail -n 1; grep -c 127.0.0.1 /run/host; [ \"$(cat /run/host)\" = \"$GCE_METADATA_HOST\" ] "
            "&& echo same")])], None, auth))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"two"})
        self.assertIn("https://www.googleapis.com/auth/compute.readonly", got.output("two"))
        self.assertIn("same", got.output("two"))

    def test_05_it_fails_in_words(self):
        def fails(name, rc, text, env=None, auth=None):
            got = self.build(name, [("one", [AUTH, "true"])], env or {}, auth)
            self.ends(got, rc)
            self.assertRegex(got.error, text)
            self.assertEqual([c.strip() for _, c in got.commands_run()], ["gcp-auth"])

        nobody = {"GCE_METADATA_HOST": "127.0.0.1:1", "GOOGLE_APPLICATION_CREDENTIALS": ""}
        fails("nobody", 3, r"gcp-auth: no credential of Google Cloud: no key file is named, and this machine is none of", nobody)
        fails("lost", 2, r"gcp-auth: .*/no/such", None, {"key_file_ref": "/no/such"})
        fails("scopes", 2, r"scopes: expected a list of scopes", None, {"key_file_ref": str(self.key), "scopes": "devstorage.read_only"})
        fails("no-scopes", 2, r"scopes: expected a list of scopes", None, {"key_file_ref": str(self.key), "scopes": []})
        fails("no-path", 2, r"key_file_ref: expected a path", None, {"key_file_ref": 7})
        fails("relative", 2, r"key_file_ref: key.json is no absolute path", None, {"key_file_ref": "key.json"})
        bad = self.google.folder / "bad.json"
        bad.write_text(json.dumps(dict(json.loads(self.key.read_text()), private_key="-----BEGIN PRIVATE KEY-----\n")))
        fails("bad", 2, r"its private key is no RSA key", None, {"key_file_ref": str(bad)})
        bad.write_text(json.dumps(dict(json.loads(self.key.read_text()), token_uri="http://127.0.0.1:80@other.example/token")))
        fails("elsewhere", 2, r"its token_uri is not one with https", None, {"key_file_ref": str(bad)})
        bad.write_text(json.dumps({"type": "external_account"}))
        fails("external", 2, r"of type external_account; service_account and authorized_user work", None,
              {"key_file_ref": str(bad)})
        self.google.refuse = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        self.addCleanup(setattr, self.google, "refuse", None)
        fails("refused", 1, r"gives no token \(400\): invalid_grant: Invalid JWT Signature\.", None,
              {"key_file_ref": str(self.key)})


class GcpVm(Gcp, E2E):
    builder = "vm"


if __name__ == "__main__":
    unittest.main()
