"""Drives: filled by a layer's commands, kept as chunks, mounted in the booted image; the workspace."""

import json
import struct
import subprocess
import unittest

from harness import E2E, tar_entries


def drive(name, *commands, **more):
    return {"drive_id": name, "size_gb": 1, **({"commands": list(commands)} if commands else {}), **more}


def root(script):
    return {"args": ["sh", "-ec", script], "run_as_root": True}


class Looks(E2E):
    def config(self, name, layers, **fields):
        path = self.home.config(name, [], **fields)
        doc = json.loads(path.read_text())
        doc["layers"] = layers
        path.write_text(json.dumps(doc))
        return path

    def drives(self, name):
        return {d["drive_id"]: d for d in self.home.manifest(name)["drives"]}

    def image_of(self, d):
        """The drive's image put together from its chunks, by other means than ours; judged by e2fsck."""
        digest = d["image"].removeprefix("sha256:")
        doc = (self.home.store / "images" / f"{digest}.chunks").read_bytes()
        self.assertEqual(doc[:16], b"capsule chunks 1")
        size, _, length, n = struct.unpack("<IIQQ", doc[16:40])
        self.assertEqual((size, length, n), (d["chunk_size"], d["size"], d["chunks"]))
        path = self.folder / f"{d['drive_id']}.ext4"
        with open(path, "wb") as f:
            f.truncate(length)
            for i in range(n):
                index, name = struct.unpack("<Q32s", doc[40 + 40 * i:80 + 40 * i])
                f.seek(index * size)
                f.write(subprocess.run(["zstd", "-dcq", str(self.home.store / "chunks" / f"{name.hex()}.zst")],
                                       check=True, stdout=subprocess.PIPE).stdout)
        check = subprocess.run(["e2fsck", "-fn", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(check.returncode, 0, check.stdout.decode())
        return path

    def debugfs(self, path, what):
        return subprocess.run(["debugfs", "-R", what, str(path)], check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout.decode()


class Drives:
    builder = None

    def filled(self, last="true", seed="echo content > /data/seed/file"):
        layers = [
            {"name": "tools", "init_commands": [root("printf '#!/bin/sh\\necho by a tool\\n' > /usr/local/bin/tool; "
                                                     "chmod 755 /usr/local/bin/tool")]},
            {"name": "data", "init_commands": [root("test ! -e /data; echo beside > /srv/beside")],
             "drives": [drive("seed", seed, "tool > /data/seed/tool; cat /srv/beside; ls -A /data/mine",
                              read_only=True, mount_path="/data/seed"),
                        drive("mine", {"args": ["sh", "-ec", "test -e /data/seed/tool; id -un > /data/mine/who"],
                                       "name": "fill mine"},
                              root("dd if=/dev/urandom of=/data/mine/big bs=1M count=64; rm /data/mine/big"),
                              label="my-label", mount_path="/data/mine"),
                        drive("empty")]},
            {"name": "after", "init_commands": ["echo [$(ls -A /data/seed /data/mine /drives)]", last]},
        ]
        return self.config("drives", layers, config={"tier": "s", "runner_user": "worker"})

    def build(self, config, *args):
        return self.home.build(config, "--isolation", self.builder, *args)

    def test_1_filled_and_kept(self):
        got = self.ok(self.build(self.filled(), "--no-boot-check"))
        self.assertNotIn("not supported", got.notes)
        self.assertIn("beside\nlost+found\n", got.output("data"))
        # nothing of a drive is in the image; where they belong is a folder
        self.assertIn("[/data/mine: /data/seed:]", got.output("after"))
        entries = tar_entries(self.home.cached_layer("data"))
        self.assertEqual(sorted(p for p in entries if p.startswith(("data", "drives"))),
                         ["data", "data/mine", "data/seed"])
        d = self.drives("drives")
        self.assertEqual([(x["label"], x["mount_path"], x.get("read_only"), x.get("filled"), x.get("made_in"))
                          for x in d.values()],
                         [("cb-seed" if i == "seed" else x["label"], x["mount_path"], i == "seed", i != "empty",
                           self.builder if i != "empty" else None) for i, x in d.items()])
        self.assertEqual(list(d), ["seed", "mine", "empty"])
        seed, mine, empty = (self.image_of(x) for x in d.values())
        self.assertEqual(self.debugfs(seed, "cat /file"), "content\n")
        self.assertEqual(self.debugfs(seed, "cat /tool"), "by a tool\n")
        self.assertEqual(self.debugfs(mine, "cat /who"), "worker\n")
        self.assertIn("Filesystem volume name:   my-label", self.debugfs(mine, "stats -h"))
        self.assertIn("User:  1000", self.debugfs(mine, "stat /").replace("User:     ", "User:  ").replace(
            "User:    ", "User:  "))
        # exports name what they leave out, and one is the drive alone
        out = self.folder / "exported"
        self.ends(self.home.run("export", "drives", "--format", "ext4", "-o", out), 0,
                  r"its drives \(seed, mine, empty\) are not part of it")
        said = self.ends(self.home.run("export", "drives", "--format", "ext4", "--drive", "seed", "-o", out), 0)
        self.assertNotIn("not part of it", said.text)
        self.assertEqual(subprocess.run(["cmp", out, seed]).returncode, 0)
        # what was removed takes nothing
        self.assertLess(d["mine"]["chunks"], d["empty"]["chunks"] + 12)

    def test_2_cached_and_made_anew(self):
        before = self.drives("drives")
        got = self.ok(self.build(self.filled(last="echo again"), "--no-boot-check"))
        self.assertEqual({layer for layer, _ in got.commands_run()}, {"after"})
        self.assertEqual(self.drives("drives"), before)
        self.ok(self.home.run("gc", "--min-age", "0"))
        self.ok(self.home.run("verify"))
        got = self.ok(self.build(self.filled(last="echo again"), "--no-boot-check"))
        self.assertEqual(got.commands_run(), [])

    def test_3_a_drive_that_fails_says_which(self):
        got = self.build(self.filled(seed="echo so; exit 7"), "--no-boot-check")
        self.ends(got, 1)
        self.assertRegex(got.error, r"layer data, drive seed: command 1 of 2 ended with exit code 7")


class DrivesContainer(Drives, Looks):
    builder = "container"

    def test_4_booted(self):
        script = ("set -e; cat /data/seed/file; ! touch /data/seed/x 2>/dev/null; cat /data/mine/who; "
                  "touch /data/mine/new /drives/empty/new; stat -c '%U %n' /data/mine /drives/empty; "
                  "grep -c ' /workspace ' /proc/mounts || :")
        for _ in range(2):  # what the first one wrote was its own
            got = self.home.run("boot", "drives", "--exec", "sh", "-c",
                                f"ls -A /data/mine /drives/empty | grep -c new; {script}")
            self.ends(got, 0)
            self.assertEqual(got.out.split("\n")[:6],
                             ["0", "content", "worker", "worker /data/mine", "worker /drives/empty", "0"])
        self.ok(self.home.run("verify"))


class DrivesVm(Drives, Looks):
    builder = "vm"
    test_2_cached_and_made_anew = None  # nothing of it is the builder's
    test_3_a_drive_that_fails_says_which = None


class Sixteen(Looks):
    def test_as_many_as_a_file_may_have(self):
        """A machine has places for them in a build and when it is booted."""
        layers = [{"name": "all", "init_commands": ["true"],
                   "drives": [drive(f"d{i}", f"echo {i} > /drives/d{i}/n") for i in range(16)]}]
        self.ok(self.home.build(self.config("many", layers), "--isolation", "vm", "--no-boot-check"))
        got = self.home.run("boot", "many", "--exec", "sh", "-c",
                            "cat /drives/*/n | sort -n | tr '\n' ' '; grep -c ' /drives/' /proc/mounts; "
                            "grep -c eth0 /proc/net/dev")
        self.ends(got, 0)
        self.assertEqual(got.out, " ".join(map(str, range(16))) + " 16\n1\n")


class Workspace(Looks):
    def test_every_machine_has_one(self):
        config = self.home.config("space", [], config={"tier": "s", "workspace_size_gb": 3},
                                  start_command={"command": ["sh", "-c", "test -d /workspace/lost+found; sleep 1000"]})
        self.ok(self.home.build(config))
        m = self.home.manifest("space")
        self.assertEqual((m["workspace_gb"], m.get("drives")), (3, None))
        got = self.home.run("boot", "space", "--exec", "sh", "-c",
                            "df -k --output=size,target /workspace | tail -1; touch /workspace/x; ls -A /workspace")
        self.ends(got, 0)
        size, target = got.out.split("\n")[0].split()
        self.assertEqual(target, "/workspace")
        self.assertGreater(int(size), 2 << 20)
        self.assertEqual(got.out.split()[-2:], ["lost+found", "x"])
        kept = self.folder / "kept"
        for seen in ("", "here\n"):
            got = self.home.run("boot", "space", "--keep-drives", kept, "--exec", "sh", "-c",
                                "cat /workspace/file 2>/dev/null; echo here >> /workspace/file")
            self.ends(got, 0)
            self.assertEqual(got.out, seen)
        self.assertEqual([p.name[:10] for p in kept.iterdir()], ["workspace-"])
        self.ends(self.home.run("boot", "space", "--warm", "--keep-drives", kept), 2, "a saved machine has its drives")


if __name__ == "__main__":
    unittest.main()
