"""Every case of the corpus by every way to its image: from the blobs, from images of its first layers, from images that
hold its bytes. The rules are corpus_check.py's business; this one is about sameness.

usage: corpus_again.py CORPUS_AGAIN | CORPUS_GUEST (the same layers from a guest's disk)"""
import subprocess
import sys
import tempfile

import corpus

with tempfile.TemporaryDirectory(prefix="cb-again-") as work:
    corpus.write(work + "/corpus")
    sys.exit(subprocess.run([sys.argv[1], work + "/corpus", work], check=False).returncode)
