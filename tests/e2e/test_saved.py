"""Machines that were saved: the ready one of a template (config.snapshot: warm), and those that builds start from."""

import json
import re
import threading
import time
import unittest

import harness
from harness import E2E, http_get, perl_server

# A start command that leaves a word nobody else has in memory, and one on the disk.
START = "head -c 8 /dev/urandom | od -An -tx1 > /run/word; cp /run/word /root/word; exec "


def quoted(argv):
    return " ".join("'" + a.replace("'", "'\\''") + "'" for a in argv)


class Warm(E2E):
    """Saved by the boot check, which is a virtual machine's whatever builder ran the commands: so this is in one
    builder."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config_file = cls.home.config(
            "warm", [("one", ["echo built > /root/built"])], config={"tier": "s", "snapshot": "warm"},
            start_command={"command": ["sh", "-c", START + quoted(perl_server(8080))], "port": 8080,
                           "health_path": "/"})
        cls.built = cls.home.build(cls.config_file, "--isolation", "container")

    def boot(self, *args):
        return self.home.run("boot", "warm", *args)

    def word(self, *args):
        got = self.ok(self.boot(*args, "--exec", "sh", "-c", "cat /run/word /root/word; date +%s; od -An -N8 -tx1 "
                                "/dev/urandom; cat /root/mark 2>/dev/null; echo x > /root/mark; sync"))
        lines = got.out.splitlines()
        self.assertEqual(len(lines), 4, str(got))  # nobody's mark is there
        self.assertEqual(lines[0], lines[1], str(got))
        return got, lines[0], int(lines[2]), lines[3]

    def change(self, **warm):
        """Another record of the same saved machine; put back at the end."""
        path = self.home.store / "templates" / "warm" / "1.json"
        text = path.read_text()
        self.addCleanup(path.write_text, text)
        doc = json.loads(text)
        doc["warm"].update(warm)
        path.write_text(json.dumps(doc, indent=2, sort_keys=True))

    def cold(self, got, why):
        self.assertRegex(got.err, rf"(?m)^the saved machine of warm version 1 is not used: {why}: cold boot$")

    def test_01_the_version_names_it_and_what_it_depends_on(self):
        self.ok(self.built)
        m = self.home.manifest("warm")
        w = m["warm"]
        self.assertEqual(w["image"], m["image"]["digest"])
        self.assertEqual((w["kernel"], w["initramfs"]), (m["kernel"]["digest"], m["kernel"]["initramfs"]))
        self.assertEqual((w["memory_mib"], w["machine"]), (1024, "microvm, drives: 1"))
        self.assertRegex(w["qemu"], r"^\d+\.\d+\.\d+")
        self.assertEqual(self.home.blob(w["digest"]).stat().st_size, w["size"])
        self.assertRegex(self.built.notes, r"the ready machine is saved, .*; resumed, it was ready after \d+ ms")
        self.assertIn("saved machine", self.ok(self.home.run("show", "warm")).out)

    def test_02_every_copy_goes_on_where_it_was_with_its_own_time_and_random_numbers(self):
        first, word, _, random = self.word("--warm")
        self.assertNotIn("cold", first.err)
        before = time.time()
        second, again, clock, other = self.word("--warm")
        self.assertEqual(word, again)
        self.assertNotEqual(random, other)
        self.assertLessEqual(abs(clock - before), second.seconds + 2)
        _, fresh, _, _ = self.word()
        self.assertNotEqual(word, fresh)

    def test_03_ports_are_forwarded_and_it_powers_off(self):
        port = harness.free_port()
        p = self.home.start("boot", "warm", "--warm", "--forward", f"{port}:8080")
        try:
            p.wait_for(r"is ready")
            self.assertEqual(http_get(port, "/hello")[0], 200)
            p.interrupt()
            got = p.end(60)
        finally:
            p.kill()
        self.assertIn(got.rc, (0, 130), str(got))
        self.assertNotIn("cold", got.err)
        self.assertEqual(self.home.left(), [])

    def test_04_the_network_is_alive(self):
        name = "getent hosts " + harness.mirror_host()
        self.ok(self.boot("--warm", "--exec", "sh", "-c", name))

    def test_05_elsewhere_it_boots_cold_and_says_why(self):
        for change, why in (({"qemu": "1.2.3"}, r"start the virtual machine: QEMU is .* here, it was saved with 1\.2\.3"),
                            ({"cpu": "Z80"}, r"start the virtual machine: the CPU is .* here, .* Z80"),
                            ({"memory_mib": 64}, r"start the virtual machine: it has 1024 MiB here, .* 64"),
                            ({"image": "sha256:" + "1" * 64}, "it was saved with another image")):
            with self.subTest(change=change):
                self.change(**change)
                got = self.ok(self.boot("--warm", "--exec", "cat", "/root/built"))
                self.cold(got, why)
                self.assertEqual(got.out, "built\n")
                self.doCleanups()

    def test_06_a_damaged_one_is_not_used_and_verify_finds_it(self):
        path = self.home.blob(self.home.manifest("warm")["warm"]["digest"])
        mode, good = path.stat().st_mode, path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(good[:len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1:])
        try:
            got = self.ok(self.boot("--warm", "--exec", "cat", "/root/built"))
            self.cold(got, r"the saved machine sha256:\w+: it is damaged")
            self.ends(self.home.run("verify"), 1, path.name, "warm")
        finally:
            path.write_bytes(good)
            path.chmod(mode)
        self.assertNotIn(path.name, self.home.run("verify").text)

    def test_07_without_one_it_boots_cold(self):
        config = self.home.config("plain", [("one", ["echo built > /root/built"])])
        self.ok(self.home.build(config, "--isolation", "container", "--no-boot-check"))
        got = self.ok(self.home.run("boot", "plain", "--warm", "--exec", "cat", "/root/built"))
        self.assertRegex(got.err, r"plain version 1 has no saved machine .*: cold boot")

    def test_08_it_is_not_made_without_a_boot_check(self):
        config = self.home.config("unchecked", [("one", ["echo built > /root/built"])],
                                  config={"tier": "s", "snapshot": "warm"})
        got = self.ok(self.home.build(config, "--isolation", "container", "--no-boot-check"))
        self.assertRegex(got.notes, r"--no-boot-check\), so its ready machine is not saved")
        self.assertNotIn("warm", self.home.manifest("unchecked"))

    def test_09_it_is_counted_kept_and_freed_with_its_version(self):
        path = self.home.blob(self.home.manifest("warm")["warm"]["digest"])
        df = json.loads(self.ok(self.home.run("df", "--json")).out)
        own = {t["name"]: t["own_bytes"] for t in df["templates"]}
        self.assertGreater(own["warm"], path.stat().st_size)
        self.ok(self.home.run("gc", "--min-age", "0"))
        self.assertTrue(path.exists())
        self.ok(self.home.run("templates", "rm", "warm"))
        self.ok(self.home.run("gc", "--min-age", "0"))
        self.assertFalse(path.exists())


class Builder(E2E):
    """Builds that start from a saved machine. A container starts in a tenth of a second: there is nothing to save, so
    this is in one builder."""

    COMMANDS = ["cat /proc/cmdline; id; ls /dev /", "mkdir /new; echo content > /new/file; touch -d @5 /new /new/file /",
                "od -An -N8 -tx1 /dev/urandom"]
    WENT_ON = r"a builder machine that was saved went on after \d+ ms"

    def build(self, name="saved", commands=None):
        config = self.home.config(name, [("one", commands or self.COMMANDS)])
        return self.ok(self.home.build(config, "--isolation", "vm", "--no-boot-check", "--force"))

    def saved(self):
        return sorted((self.home.path / "saved").glob("*.vm"))

    def diff(self, name="saved"):
        layers = self.home.manifest(name)["layers"]
        return next(l["diff_id"] for l in layers if l["name"] == "one")

    def random(self, build):
        return re.search(r"^(?: [0-9a-f]{2}){8}$", build.output("one"), re.M).group()

    def test_builds(self):
        first = self.build()
        self.assertNotRegex(first.notes, self.WENT_ON)
        files = self.saved()
        self.assertEqual(len(files), 1, str(first))
        self.assertEqual(files[0].stat().st_mode & 0o777, 0o600)
        self.assertEqual(files[0].parent.stat().st_mode & 0o777, 0o700)
        diff = self.diff()

        second, third = self.build(), self.build()
        for got in (second, third):
            self.assertRegex(got.notes, self.WENT_ON)
            self.assertEqual(self.diff(), diff)
        same = lambda b: re.sub(r"(?m)^(?: [0-9a-f]{2}){8}$", "", b.output("one"))
        # what commands see is the same, random numbers alone are not
        self.assertEqual(same(second), same(first))
        self.assertEqual(len({self.random(b) for b in (first, second, third)}), 3)

        with self.subTest("df counts it"):
            df = json.loads(self.ok(self.home.run("df", "--json")).out)
            self.assertEqual(df["saved_machines"]["count"], 1)
            self.assertGreater(df["saved_machines"]["bytes"], 1 << 20)
            self.assertIn("builder machines, saved", self.ok(self.home.run("df")).out)

        with self.subTest("a damaged one is not used, and saved anew"):
            data = bytearray(files[0].read_bytes())
            data[len(data) // 2] ^= 1
            files[0].write_bytes(data)
            got = self.build()
            self.assertRegex(got.notes, r"the saved builder machine is not used, it is booted: .* its bytes are not those")
            self.assertEqual(self.diff(), diff)
            self.assertRegex(self.build().notes, self.WENT_ON)

        with self.subTest("one of another QEMU is not used"):
            data = files[0].read_bytes()
            head = json.loads(data[:4096])
            head["qemu"] = "1.2.3"
            files[0].write_bytes(json.dumps(head).encode().ljust(4096) + data[4096:])
            got = self.build()
            self.assertRegex(got.notes, r"is not used, it is booted: .*QEMU is \S+ .*here, it was saved with 1\.2\.3")

        with self.subTest("two at once"):
            results = {}

            def run(name):
                results[name] = self.build(name)
            threads = [threading.Thread(target=run, args=(n,)) for n in ("left", "right")]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(sorted(results), ["left", "right"])
            for name, got in results.items():
                self.assertRegex(got.notes, self.WENT_ON)
                self.assertEqual(self.diff(name), diff)

        with self.subTest("they may be removed"):
            files[0].unlink()
            self.assertNotRegex(self.build().notes, self.WENT_ON)
            self.assertEqual(len(self.saved()), 1)
        self.assertEqual(self.home.left(), [])


if __name__ == "__main__":
    unittest.main()
