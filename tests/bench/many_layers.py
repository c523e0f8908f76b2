"""An image of 10 GB in 40 layers, from an OCI layout on this machine to a published template: how long, in how much
memory, and is every byte right (e2fsck, and the SHA-256 of every file). The same with less is e2e/sources/many-layers.

usage: many_layers.py [--mib N] [--layers N]"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import many_layers_image as image_of  # noqa: E402
from harness import Home, clone_home, warm_home  # noqa: E402
from second_run import peak_of_build, row  # noqa: E402


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--mib", type=int, default=10240)
    p.add_argument("--layers", type=int, default=40)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="cb-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as tmp:
        folder = Path(tmp)
        (folder / "dir").mkdir()
        clone_home(warm_home(), folder / "dir/home")
        home = Home(folder / "dir/home")
        layout, tree = image_of.make(folder / "dir/layout", a.layers, a.mib << 20)
        inside = sum(size for size, _ in tree.values())
        row(f"{a.layers} layers, {a.mib} MiB: files that stay", f"{len(tree)}, {inside >> 20} MiB")
        config = home.config("many", base="oci:layout")
        begin = time.monotonic()
        peak, build = peak_of_build(home, config)
        row("  from the layout to a template", f"{time.monotonic() - begin:.1f} s")
        for s in build.steps():
            if s.get("elapsed_ms", 0) > 100:
                row(f"    {s['phase']}", f"{s['elapsed_ms'] / 1000:.1f} s")
        row("  peak of run-job (anon + shmem)", f"{peak:.1f} MiB", "under 64 MiB")
        image = home.image("many")
        row("  the image takes", f"{image.stat().st_blocks * 512 >> 20} MiB of {image.stat().st_size >> 20}")
        complaints = image_of.fsck(image)
        row("  e2fsck -fn", "finds nothing" if not complaints else "COMPLAINS", "nothing")
        wrong = sorted(set(image_of.names(image)) ^ set(tree))
        row("  names that are too many or missing", len(wrong), "0")
        got = image_of.digests(image, sorted(tree))
        bad = [n for n in tree if got[n] != tree[n]]
        row("  files whose SHA-256 is another", len(bad), "0")
        if complaints or wrong or bad:
            raise SystemExit(f"{complaints}\n{wrong[:5]}\n{bad[:5]}")


if __name__ == "__main__":
    main()
