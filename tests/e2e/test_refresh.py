"""Refreshing a layer: its refresh_commands on what it left, and what later builds make of that."""

import json
import unittest

from harness import tar_entries
from test_drives import Looks, drive

INIT = ("set -e; mkdir -p /data/deep; echo one > /data/one; ln /data/one /data/hard; echo two > /data/two; "
        "echo deep > /data/deep/file; setfattr -n user.a -v 1 /data/deep 2>/dev/null || :; "
        "echo more >> /etc/debian_version; rm /etc/shells; rm -r /var/opt; mkdir /var/opt; echo x > /var/opt/x; "
        "chmod 700 /srv; mkfifo /data/pipe; ln -s one /data/link; useradd -m fresh 2>/dev/null || :")
AGAIN = ("set -e; cat /data/one; test $(stat -c %h /data/one) = 2; test -p /data/pipe; test -L /data/link; "
         "test ! -e /etc/shells; test -e /data/deep/said || test \"$(ls /var/opt)\" = x; test $(stat -c %a /srv) = 700; "
         "test \"$(tail -1 /etc/debian_version)\" = more; echo again >> /data/one; rm -f /data/two; "
         "echo $A >> /data/deep/said; rm -rf /var/opt; cat /disk/log; echo again >> /disk/log; "
         "test -e /run/started; test $(stat -c '%a %U' /etc | tr ' ' -) = 755-root; stat -c %Y /etc >> /data/etc")


class Refresh:
    builder = None

    def layers(self, last="true", init=INIT):
        return [
            {"name": "base", "init_commands": ["echo base > /srv/base"]},
            {"name": "data", "refresh_commands": [{"args": ["bash", "-ec", AGAIN], "name": "again"}],
             "init_commands": [{"type": "env", "args": ["A=b"]}, init, "stat -c %Y /etc > /data/etc",
                               {"type": "start", "args": ["sh", "-c", "touch /run/started; exec sleep 100000"]}],
             "drives": [drive("disk", "echo first > /disk/log", mount_path="/disk")]},
            {"name": "after", "init_commands": ["cat /data/one /data/hard; ls /data; test ! -e /var/opt || ls /var/opt",
                                                last]},
        ]

    def build(self, *args, **kw):
        return self.home.build(self.config("fresh", self.layers(**kw)), "--isolation", self.builder,
                               "--no-boot-check", *args)

    def record(self):
        found = [json.loads(p.read_text()) for p in (self.home.store / "cache").glob("*.json")]
        return [r for r in found if r["layer"] == "data"][0]

    def test_1_on_what_it_left(self):
        self.ok(self.build())
        before = tar_entries(self.home.cached_layer("data"))
        got = self.ok(self.build("--refresh", "data"))
        self.assertEqual([(layer, cmd) for layer, cmd in got.commands_run() if layer == "data"], [("data", "again")])
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"data", "after"})
        self.assertIn("one\nfirst\n", got.output("data"))
        self.assertTrue(got.output("after").startswith("one\nagain\none\nagain\n"), got.output("after"))
        # one diff, as if the commands had been run in one layer
        after = tar_entries(self.home.cached_layer("data"))
        self.assertEqual(self.home.layer_names("fresh").count("data"), 1)
        gone = {"data/two", "var/opt", "var/opt/x", "var/opt/.wh..wh..opq"}
        changed = {"data", "data/one", "data/hard", "data/deep", "data/etc", "var"}
        self.assertEqual({p: e for p, e in before.items() if p not in gone | changed},
                         {p: e for p, e in after.items() if p not in {"data/deep/said", "var/.wh.opt"} | changed})
        self.assertEqual(after["data/one"]["same file as"], ["data/hard", "data/one"])
        self.assertIn("etc/.wh.shells", after)
        self.assertIn("var/.wh.opt", after)
        self.assertNotIn("data/.wh.two", after)
        self.assertNotIn("etc/motd", after)
        log = self.image_of(self.drives("fresh")["disk"])
        self.assertEqual(self.debugfs(log, "cat /log"), "first\nagain\n")
        self.assertEqual(self.record()["refreshes"], 1)
        self.assertEqual(sorted(self.home.versions("fresh")), [1, 2])
        keys = [m["template_key"] for m in self.home.versions("fresh").values()]
        self.assertNotEqual(*keys)
        text = self.home.run("show", "fresh", "--provenance").out
        layer = [la for la in json.loads(text)["predicate"]["buildDefinition"]["internalParameters"]["layers"]
                 if la["name"] == "data"][0]
        self.assertEqual((layer["refreshes"], layer["drives"][0]["drive_id"]), (1, "disk"))

    def test_2_later_builds_go_on_from_it(self):
        got = self.ok(self.build())
        self.assertEqual((got.commands_run(), sorted(self.home.versions("fresh"))), ([], [1, 2]))
        got = self.ok(self.build(last="echo other"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"after"})
        self.assertTrue(got.output("after").startswith("one\nagain\none\nagain\n"), got.output("after"))
        got = self.ok(self.build("--refresh", "data"))
        self.assertIn("first\nagain\n", got.output("data"))
        self.assertEqual(self.record()["refreshes"], 2)


class RefreshContainer(Refresh, Looks):
    builder = "container"

    def test_3_what_cannot_be_refreshed(self):
        for args, says in ((("--refresh", "nothing"), "there is no such layer"),
                           (("--refresh", "base"), "the layer has no refresh_commands"),
                           (("--refresh", "data", "--force"), "--force takes nothing of it")):
            self.ends(self.build(*args), 2, says)
        self.ends(self.build("--refresh", "base"), 2, "layers with refresh_commands: data")
        plan = self.home.run("plan", "--refresh", "data", "--explain", "--json", self.config("fresh", self.layers()))
        layers = {la["name"]: la for la in json.loads(self.ok(plan).out)["layers"]}
        self.assertEqual((layers["data"]["cached"], layers["data"]["commands"], layers["data"]["why"]),
                         (False, 1, "--refresh"))

    def test_4_a_drive_of_a_virtual_machine(self):
        for p in (self.home.store / "cache").glob("*.json"):
            record = json.loads(p.read_text())
            for d in record.get("drives", []):
                d["made_in"] = "vm"
            p.write_text(json.dumps(record))
        got = self.build("--refresh", "data")
        self.ends(got, 3)
        self.assertRegex(got.error, "drive disk was written by a virtual machine")

    def test_5_other_commands_begin_anew(self):
        got = self.ok(self.build("--refresh", "data", init=INIT + "; true"))
        self.assertEqual(len([c for layer, c in got.commands_run() if layer == "data"]), 5)
        self.assertRegex(got.notes, r"layer data is not refreshed: it has no result that fits")
        self.assertNotIn("refreshes", self.record_of("true"))

    def record_of(self, end):
        found = [json.loads(p.read_text()) for p in (self.home.store / "cache").glob("*.json")]
        return [r for r in found if r["layer"] == "data" and INIT + "; true" in json.dumps(r["inputs"])][0]


class RefreshVm(Refresh, Looks):
    builder = "vm"
    test_2_later_builds_go_on_from_it = None  # nothing of it is the builder's


if __name__ == "__main__":
    unittest.main()
