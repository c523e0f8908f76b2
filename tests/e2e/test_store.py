"""df, gc, verify and templates rm on a store that builds filled. One build is enough (no sanitizers): the parts are
tested with them in tests/layers; here it is the whole program, its words and exit codes."""

import hashlib
import json
import unittest

from harness import E2E


class StoreCommands(E2E):
    def json(self, *args, rc=0):
        got = self.home.run(*args, "--json")
        self.assertEqual(got.rc, rc, str(got))
        return json.loads(got.out)

    def export(self, name):
        """The SHA-256 of the template's file system."""
        path = self.home.folder / f"{name}.img"
        path.unlink(missing_ok=True)
        self.ok(self.home.run("export", name, "--format", "ext4", "-o", path))
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    def test_1_another_ttl_is_another_version_of_the_same_image(self):
        self.ok(self.home.build(self.home.config("kept", config={"tier": "s", "ttl": 60}), "--no-boot-check"))
        again = self.ok(self.home.build(self.home.config("kept", config={"tier": "s", "ttl": 90}), "--no-boot-check"))
        self.assertEqual(again.phases_run() - {"resolve"}, set(), str(again))
        self.assertRegex(again.notes, r"published kept version 2: the image of version 1 with the config as it is now")
        one, two = self.home.versions("kept")[1], self.home.versions("kept")[2]
        self.assertEqual((one["config"]["config"]["ttl"], two["config"]["config"]["ttl"]), (60, 90))
        self.assertEqual((one["image"], one["template_key"]), (two["image"], two["template_key"]))
        same = self.ok(self.home.build(self.home.config("kept", config={"tier": "s", "ttl": 90}), "--no-boot-check"))
        self.assertRegex(same.notes, r"nothing changed: kept version 2 is up to date")
        self.assertEqual(sorted(self.home.versions("kept")), [1, 2])

    def test_2_templates_on_one_base_share_its_chunks(self):
        self.ok(self.home.build(self.home.config("other", config={"tier": "s", "rootfs_size_gb": 2}), "--no-boot-check"))
        df = self.json("df")
        by_name = {t["name"]: t for t in df["templates"]}
        self.assertEqual(by_name["kept"]["versions"], 2)
        chunks = self.home.manifest("kept")["image"]["chunks"], self.home.manifest("other")["image"]["chunks"]
        self.assertLess(df["kinds"]["chunks"]["count"], max(chunks) * 1.2)
        self.assertGreater(by_name["other"]["shared_bytes"], df["kinds"]["chunks"]["bytes"] // 2)
        self.assertEqual(df["total_bytes"], df["other_bytes"] + sum(k["bytes"] for k in df["kinds"].values()))
        self.assertRegex(self.ok(self.home.run("df")).out, r"(?s)chunks of images.*kept +2 ")

    def test_3_a_ceiling_drops_files_that_come_back_from_their_chunks(self):
        before = self.export("kept")
        image = self.home.image("kept")
        would = self.json("gc", "--max-bytes", "1", "--min-age", "0", "--dry-run", rc=1)
        self.assertTrue(image.exists())
        did = self.json("gc", "--max-bytes", "1", "--min-age", "0", rc=1)
        self.assertEqual(would["removed"]["images"], did["removed"]["images"])
        self.assertFalse(image.exists())
        self.assertGreater(did["bytes_over"], 0)
        self.assertEqual(sorted(self.home.versions("kept")), [2])  # 1 was neither in use nor the newest
        self.assertRegex(self.ok(self.home.run("show", "kept")).out, r"its file was dropped")
        self.assertEqual(self.export("kept"), before)
        self.assertTrue(image.exists())
        self.assertEqual(self.ok(self.home.run("gc")).rc, 0)

    def test_4_verify_finds_and_repairs(self):
        self.assertRegex(self.ok(self.home.run("verify")).out, r": good\n")
        chunk = max((self.home.store / "chunks").iterdir(), key=lambda p: p.stat().st_size)
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.unlink()  # the test cache has it too, by a hard link
        chunk.write_bytes(data)
        self.ends(self.home.run("verify"), 1, rf"chunks/{chunk.name}: .*; needed by .*kept version 2", r"verify --repair")
        report = self.json("verify", "--repair")
        self.assertEqual([(f["what"], f["moved"], f["solved"]) for f in report["faults"]],
                         [(f"chunks/{chunk.name}", True, True)])
        self.assertTrue(self.json("verify")["good"])
        self.assertTrue((self.home.store / "damaged" / f"chunks-{chunk.name}").exists())

    def test_5_templates_are_removed(self):
        self.ends(self.home.run("templates", "rm", "kept:2"), 1, r"version 2 of kept is the one in use")
        self.ends(self.home.run("templates", "rm", "kept:x"), 2, r"expected NAME or NAME:VERSION")
        self.ends(self.home.run("templates", "rm", "nothing"), 1, r"there is no template nothing")
        self.ends(self.home.run("templates", "rm", "minimal-debian"), 1, r"is built in and cannot be removed")
        self.ends(self.home.run("templates", "remove", "kept"), 2, r"templates \[rm NAME")
        self.ok(self.home.run("templates", "rm", "kept"))
        self.assertEqual([t["name"] for t in self.json("templates") if t["name"] != "warm"], ["other"])
        self.assertGreater(self.json("gc", "--min-age", "0")["bytes_before"], 0)
        self.ok(self.home.run("verify"))

    def test_6_what_gc_refuses(self):
        for args in (("--max-bytes", "20X"), ("--max-bytes", "0"), ("--max-bytes", "99999999999G"), ("--keep", "0"),
                     ("--min-age", "-1")):
            self.ends(self.home.run("gc", *args), 2, args[0])


if __name__ == "__main__":
    unittest.main()
