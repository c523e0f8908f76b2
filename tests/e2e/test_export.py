"""Exports of one template: each result is used by the program that it is made for."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import unittest

import harness
from harness import E2E, Registry, wait_until

GIB = 1 << 30
FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
READY = "capsule-agent: ready: the start command runs"

# Names of every kind; perl-base can set attributes where the image has no setfattr.
ODD = r"""
mkdir -p /odd/deep/er && cd /odd
echo one > file && ln file deep/again && ln -s ../file deep/link && ln -s nowhere dangling
truncate -s 3M sparse && echo end >> sparse && truncate -s 2M hole && : > empty
chown 12345:4000000 file && chmod 4755 empty && chmod 1777 deep && mkfifo pipe && mknod null c 1 3
touch -d '1969-12-31 23:59:58.25' old && touch -d '2100-01-01 00:00:00.000000001' late
printf x > "$(printf 'a b\nc')" && printf x > "$(printf 'caf\303\251')" && printf x > "$(printf 'odd\377')"
perl -e 'my ($p, $n, $v) = ("file", "user.test", "v\0w"); syscall(188, $p, $n, $v, 3, 0) == 0 or die $!'
"""


def run(*argv, **kw):
    got = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         errors="replace", **kw)
    if got.returncode:
        raise AssertionError(f"{argv}: {got.returncode}\n{got.stdout}")
    return got.stdout


def describe(path):
    """What lstat and reading say about one name."""
    st = os.lstat(path)
    d = {"mode": stat.filemode(st.st_mode), "uid": st.st_uid, "gid": st.st_gid, "mtime": st.st_mtime_ns}
    if not stat.S_ISLNK(st.st_mode):
        d["xattrs"] = {n: os.getxattr(path, n) for n in os.listxattr(path)}
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as f:
            d |= {"size": st.st_size, "nlink": st.st_nlink, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}
    elif stat.S_ISLNK(st.st_mode):
        d["target"] = os.readlink(path)
    elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        d["dev"] = st.st_rdev
    return d


def tree(root):
    """All names below @root, the empty lost+found of a file system left out."""
    root = os.fsencode(root)
    out = {b".": describe(root)}
    for folder, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(folder, name)
            out[os.path.relpath(path, root)] = describe(path)
    out.pop(b"lost+found", None)
    return out


class Export(E2E):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = cls.home.config(
            "box", [("odd", [{"args": ["sh", "-c", ODD], "run_as_root": True}])],
            start_command={"command": ["sh", "-c", "echo started; exec sleep 100000"], "env": {"COLOUR": "green"}})
        cls.built = cls.home.build(config, "--isolation", "container", "--no-boot-check")
        if cls.built.rc:
            raise AssertionError(str(cls.built))
        cls.out = cls.folder / "out"
        cls.out.mkdir()

    def export(self, form, name, *args, **kw):
        path = self.out / name
        self.ok(self.home.run("export", "box:1", "--format", form, "-o", path, *args, **kw))
        return path

    def unpacked(self, name):
        path = self.out / name
        path.mkdir()
        return path

    # ---- the file system and its tar ----

    def test_dir_tar_agrees_with_the_file_system(self):
        self.needs_root()
        image = self.export("ext4", "box.ext4")
        tar = self.export("dir-tar", "box.tar")
        mounted = self.unpacked("mounted")
        run("mount", "-o", "loop,ro", image, mounted)
        try:
            want = tree(mounted)
        finally:
            run("umount", mounted)
        self.assertEqual(want[b"odd/file"]["xattrs"], {"user.test": b"v\0w"})
        self.assertEqual(want[b"odd/file"]["nlink"], 2)
        self.assertIn(b"odd/odd\xff", want)
        for tool in (["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"],
                     ["bsdtar", "--numeric-owner", "-xpf"]):
            with self.subTest(tool[0]):
                to = self.unpacked(f"by-{tool[0]}")
                run(*tool, tar, "-C", to, env={**os.environ, "LC_ALL": "C.UTF-8"})
                got = tree(to)
                self.assertEqual(sorted(got), sorted(want))
                if tool[0] == "bsdtar":
                    # does not set the time of the folder it unpacks into, and takes the fraction of a
                    # negative time for a positive one
                    for name in (b".", b"odd/old"):
                        got[name]["mtime"] = want[name]["mtime"]
                for name, entry in want.items():
                    self.assertEqual(got[name], entry, name)
                self.assertLess(os.stat(to / "odd/sparse").st_blocks * 512, 1 << 20)
                shutil.rmtree(to)

    def test_a_pipe_gets_the_same_bytes(self):
        for form, name in (("dir-tar", "pipe.tar"), ("gce", "pipe.tar.gz"), ("ext4", "pipe.ext4")):
            with self.subTest(form):
                want = self.export(form, name)
                with open(self.out / "piped", "wb") as to:
                    p = subprocess.Popen([harness.PROGRAM, "export", "box", "--format", form, "-o", "-"],
                                         stdout=subprocess.PIPE, env=harness.environment(self.home.path, None))
                    shutil.copyfileobj(p.stdout, to)
                    self.assertEqual(p.wait(), 0)
                run("cmp", want, self.out / "piped")
                want.unlink()

    # ---- container images ----

    def test_oci_is_accepted_and_unpacks_to_the_same(self):
        self.needs_root()
        layout = self.export("oci", "box.oci")
        bundle = self.out / "bundle"
        run("umoci", "unpack", "--image", f"{layout}:1", bundle)
        got = tree(bundle / "rootfs")
        tar = self.export("dir-tar", "of-oci.tar")
        flat = self.unpacked("of-oci")
        run("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tar, "-C", flat)
        want = {n: e for n, e in tree(flat).items() if not n.startswith(b".capsule")}
        self.assertEqual(sorted(got), sorted(want))
        for name, entry in want.items():
            for e in (entry, got[name]):
                if e["mode"].startswith("d"): # umoci touches folders after it set their times
                    e.pop("mtime")
            self.assertEqual(got[name], entry, name)
        process = json.loads((bundle / "config.json").read_text())["process"]
        self.assertEqual(process["args"], ["sh", "-c", "echo started; exec sleep 100000"])
        self.assertIn("COLOUR=green", process["env"])
        shutil.rmtree(bundle)
        shutil.rmtree(flat)

    def test_oci_goes_to_a_registry_and_comes_back(self):
        registry = Registry(self.folder / "registry")
        self.addCleanup(registry.stop)
        archive = self.export("oci", "box-oci.tar")
        skopeo = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
        run(*skopeo, f"oci-archive:{archive}", f"docker://{registry.addr}/box:1",
            env={**os.environ, "TMPDIR": str(self.folder)})
        seen = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{registry.addr}/box:1"))
        self.assertEqual(len(seen["Layers"]), 2)
        again = self.home.config("again", [("check", ["test -p /odd/pipe && test $COLOUR = green"])],
                                 base=f"{registry.addr}/box:1")
        self.ok(self.home.build(again, "--isolation", "container", "--no-boot-check"))
        self.assertEqual(self.home.layer_names("again"), ["_base", "_base", "check", "_agent"])

    def test_layers_may_stay_as_they_are(self):
        layout = self.export("oci", "zstd.oci", "--keep-zstd")
        index = json.loads((layout / "index.json").read_text())
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        manifest = json.loads((layout / "blobs/sha256" / digest).read_text())
        stored = self.home.manifest("box")["layers"]
        self.assertEqual([l["digest"] for l in manifest["layers"]], [l["digest"] for l in stored[:-1]])

    # ---- disks ----

    def boots(self, *args, seconds=300):
        """Until the machine says that it is ready; what it said."""
        log = self.out / "console"
        log.write_bytes(b"")
        p = subprocess.Popen(["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512",
                              "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{log}", *map(str, args)],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            def ready():
                text = log.read_text(errors="replace")
                if p.poll() is not None:
                    raise AssertionError(f"QEMU ended: {p.stderr.read().decode()}\n{text}")
                return READY in text
            wait_until(ready, f"{args} is ready", seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{log.read_text(errors='replace')}") from e
        finally:
            p.kill()
            p.communicate()
        return log.read_text(errors="replace")

    def uefi(self):
        variables = self.out / "variables.fd"
        shutil.copy(VARIABLES, variables)
        return ["-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}",
                "-drive", f"if=pflash,format=raw,file={variables}"]

    def test_raw_boots_by_uefi_and_is_the_same_again(self):
        disk = self.export("raw", "box.raw", "--size", "2G")
        again = self.export("raw", "again.raw", "--size", "2G")
        run("cmp", disk, again)
        again.unlink()
        self.assertEqual(disk.stat().st_size, 2 * GIB)
        self.assertLess(disk.stat().st_blocks * 512, GIB)
        self.assertIn("No errors detected", run("/sbin/sfdisk", "--verify", disk))
        # the driver of a SCSI disk is one of those for other hypervisors
        said = self.boots(*self.uefi(), "-drive", f"if=none,id=d,format=raw,file={disk}",
                          "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d",
                          "-netdev", "user,id=n,restrict=on", "-device", "virtio-net-pci,netdev=n")
        self.assertNotIn("module", said)
        self.assertRegex(said, r"capsule-agent: \w+: 10\.0\.2\.15/24 by DHCP")
        offset = json.loads(run("/sbin/sfdisk", "-J", disk))["partitiontable"]["partitions"][1]["start"] * 512
        blocks = run("/sbin/dumpe2fs", "-h", f"{disk}?offset={offset}")
        count = int(next(l for l in blocks.splitlines() if l.startswith("Block count")).split()[-1])
        self.assertGreater(count * 4096, 1900 << 20, "it grew to the disk's end when it booted")

    def test_qcow2_boots_by_uefi(self):
        disk = self.export("qcow2", "box.qcow2", "--compress")
        self.assertIn("compressed", run("qemu-img", "check", disk))
        self.boots(*self.uefi(), "-drive", f"if=none,id=d,format=qcow2,file={disk}",
                   "-device", "nvme,drive=d,serial=disk")

    def test_ext4_boots_with_its_kernel(self):
        kernel = self.out / "kernel"
        image = self.export("ext4", "boots.ext4", "--with-kernel", kernel)
        self.assertEqual((kernel / "vmlinux").read_bytes()[:4], b"\x7fELF")
        firecracker = json.loads((kernel / "firecracker.json").read_text())
        self.assertEqual(firecracker["drives"][0]["path_on_host"], str(image))
        self.boots("-kernel", kernel / "vmlinux", "-initrd", kernel / "initramfs",
                   "-append", (kernel / "cmdline").read_text().strip(),
                   "-drive", f"if=virtio,format=raw,file={image}")

    def test_gce_archive_keeps_the_rules_of_its_import(self):
        archive = self.export("gce", "box.tar.gz")
        with gzip.open(archive) as f:
            tar = f.read()
        header = tar[:512]
        # the one member, under this very name, nothing in front of it
        self.assertEqual(header[:100].rstrip(b"\0"), b"disk.raw")
        # GNU's old format (not PAX, not ustar), sparse
        self.assertEqual(header[257:265], b"ustar  \0")
        self.assertEqual(header[156:157], b"S")
        # nothing but zeros behind the member, in whole records
        with tarfile.open(archive) as t:
            members = t.getmembers()
        self.assertEqual([m.name for m in members], ["disk.raw"])
        self.assertEqual(len(tar) % 10240, 0)
        self.assertEqual(tar[-1024:].strip(b"\0"), b"")
        # a whole number of GiB
        self.assertEqual(members[0].size % GIB, 0)
        # the partition table is whole, its second copy at the very end, and the rest is the raw disk
        to = self.unpacked("gce")
        run("tar", "-xSzf", archive, "-C", to)
        self.assertIn("No errors detected", run("/sbin/sfdisk", "--verify", to / "disk.raw"))
        raw = self.export("raw", "gce.raw", "--size", str(members[0].size))
        run("cmp", raw, to / "disk.raw")
        with open(to / "disk.raw", "rb") as f:
            f.seek(-512, os.SEEK_END)
            self.assertEqual(f.read(8), b"EFI PART")
        self.assertLess(os.stat(to / "disk.raw").st_blocks * 512, GIB)
        got = self.home.run("export", "box", "--format", "gce", "-o", self.out / "x", "--size", "1500M")
        self.ends(got, 2, r"not a multiple of 1 GiB")

    # ---- what goes wrong ----

    def test_a_program_that_is_missing(self):
        for program, package in (("mkfs.fat", "dosfstools"), ("mcopy", "mtools"), ("sfdisk", "fdisk")):
            with self.subTest(program):
                to = self.unpacked(f"without-{program}")
                # mcopy and mmd are both names of mtools
                hide = harness.without(program)
                got = self.home.run("export", "box", "--format", "raw", "-o", to / "x", prefix=hide)
                self.ends(got, 3, r"--format raw needs m?\S+, which is not here", rf"apt-get install {package}")
                self.assertEqual(list(to.iterdir()), [])

    def test_ctrl_c_leaves_nothing(self):
        to = self.unpacked("interrupted")
        tools = self.unpacked("slow")
        reached = self.out / "reached"
        slow = tools / "mkfs.fat"
        slow.write_text(f"#!/bin/sh\n: > {reached}\nexec sleep 1000\n")
        slow.chmod(0o755)
        p = self.home.start("export", "box", "--format", "raw", "-o", to / "x",
                            env={"PATH": f"{tools}:{os.environ['PATH']}"})
        try:
            wait_until(reached.exists, "it makes the EFI partition")
            p.interrupt()
            self.ends(p.end(), 130, r"interrupted; nothing was left")
        finally:
            p.kill()
        self.assertEqual(list(to.iterdir()), [])

    def test_ctrl_c_while_nobody_reads(self):
        p = subprocess.Popen([harness.PROGRAM, "export", "box", "--format", "dir-tar", "-o", "-"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env=harness.environment(self.home.path, None))
        try:
            self.assertTrue(p.stdout.read(1)) # it writes, and more than a pipe holds
            p.send_signal(signal.SIGINT)
            # no communicate(): that would read on, and let it end by itself
            self.assertEqual(p.wait(60), 130, p.stderr.read().decode())
        finally:
            p.kill()
            p.stdout.close()
            p.stderr.close()

    def test_words_that_are_wrong(self):
        for args, text in ((("box",), r"--format is missing"),
                           (("box", "--format", "zip"), r"accepted are ext4, raw, qcow2, gce, oci, dir-tar"),
                           (("box:0", "--format", "ext4"), r"not NAME or NAME:VERSION"),
                           (("box:1", "--version", "2", "--format", "ext4"), r"two versions"),
                           (("box", "--format", "raw", "--size", "10X"), r"not a size such as 10G"),
                           (("box", "--format", "raw", "--size", "100M"), r"--size 100\.0 MiB: the disk needs \d+\.\d MiB"),
                           (("box", "--format", "ext4", "--size", "1M"), r"--size 1\.0 MiB: the file system has \d"),
                           (("box", "--format", "oci", "--compress"), r"--compress belongs to --format qcow2"),
                           (("box", "--format", "qcow2", "--keep-zstd"), r"--keep-zstd belongs to --format oci"),
                           (("box", "--format", "oci", "-o", self.out), r"is there, and is not a file")):
            with self.subTest(" ".join(map(str, args))):
                self.ends(self.home.run("export", *args, cwd=self.out), 2, text)
        self.ends(self.home.run("export", "box:9", "--format", "ext4", cwd=self.out), 1, r"no version 9")


if __name__ == "__main__":
    unittest.main()
