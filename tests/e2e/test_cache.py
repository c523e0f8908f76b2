"""Fills the test cache: the first build of all, with nothing there before it."""

import io
import tarfile
import unittest

from harness import Home, tar_entries, warm_home, base_tar


class Cache(unittest.TestCase):
    def test_the_kernel_and_minimal_debian_are_there(self):
        home = Home(warm_home())
        self.assertTrue(list((home.path / "kernels").iterdir()))
        self.assertEqual(home.layer_names("warm"), ["_base", "nothing", "_agent"])
        entries = tar_entries(base_tar().read_bytes())
        self.assertIn("usr/bin/bash", entries)
        # what a machine must not share with another
        self.assertNotIn("etc/machine-id", [p for p, e in entries.items() if e.get("size")])

    def test_its_packages_come_from_the_public_mirror_later(self):
        entries = base_tar().read_bytes()
        with tarfile.open(fileobj=io.BytesIO(entries)) as t:
            text = "".join(t.extractfile(m).read().decode() for m in t
                           if m.isfile() and "/etc/apt/sources.list" in "/" + m.name.removeprefix("./"))
        self.assertRegex(text, r"deb\.debian\.org/debian")


if __name__ == "__main__":
    unittest.main()
