"""How much of a base image's data is stored again when a layer is put on it, by the size of the chunks.

usage: chunk_share.py FLATTEN_TOOL LAYER-OF-BASE... -- MORE-LAYERS...

The layers are tar files, plain or compressed. Of the chunks that the larger image has and the base has not, it counts the
blocks that are the same in both at the same place."""
import os
import subprocess
import sys
import tempfile

BLOCK = 4096
SIZES = [64, 256, 512, 1024, 2048, 4096]  # KiB


def blocks(path):
    """{number: bytes} of the blocks that are not zero."""
    out, zero = {}, bytes(BLOCK)
    with open(path, "rb") as f:
        at, end = 0, os.fstat(f.fileno()).st_size
        while at < end:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            f.seek(at)
            for b in range(at // BLOCK, hole // BLOCK):
                data = f.read(BLOCK)
                if data != zero:
                    out[b] = hash(data)
            at = hole
    return out


def main():
    tool, words = sys.argv[1], sys.argv[2:]
    base, more = words[:words.index("--")], words[words.index("--") + 1:]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        images = []
        for name, layers in (("base", base), ("both", base + more)):
            subprocess.run([tool, "flatten", f"{work}/{name}", "8192", *layers], check=True, stdout=subprocess.DEVNULL)
            images.append(blocks(f"{work}/{name}"))
    one, two = images
    changed = {b for b in one.keys() | two.keys() if one.get(b) != two.get(b)}
    print(f"base {len(one) * BLOCK >> 20} MiB, with the layers {len(two) * BLOCK >> 20} MiB")
    print("chunk KiB | new chunks | of chunks | stored MiB | base stored again MiB | of the base")
    for kib in SIZES:
        per = kib * 1024 // BLOCK
        new = {b // per for b in changed} & {b // per for b in two}
        stored = sum(1 for b in two if b // per in new)
        again = sum(1 for b in two if b // per in new and b not in changed)
        print(f"{kib} | {len(new)} | {len({b // per for b in two})} | {stored * BLOCK / 2**20:.1f} | "
              f"{again * BLOCK / 2**20:.1f} | {100 * again / len(one):.2f} %")


if __name__ == "__main__":
    main()
