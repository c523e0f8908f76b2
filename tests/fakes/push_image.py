#!/usr/bin/env python3
"""push_image.py BASE REPOSITORY TAG [CA_FILE]: puts a small image into a registry by plain PUTs and prints the
digest of its manifest."""
import importlib.util
import os
import ssl
import sys
import urllib.parse
import urllib.request

spec = importlib.util.spec_from_file_location("fake", os.path.join(os.path.dirname(__file__), "registry.py"))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


def main():
    base, name, tag = sys.argv[1:4]
    context = ssl.create_default_context(cafile=sys.argv[4]) if len(sys.argv) > 4 else None
    handlers = [urllib.request.ProxyHandler({})]
    if context:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    opener = urllib.request.build_opener(*handlers)
    image = fake.Image(name)
    for digest, data in image.blobs.items():
        start = urllib.request.Request("%s/v2/%s/blobs/uploads/" % (base, name), data=b"", method="POST")
        with opener.open(start) as answer:
            where = urllib.parse.urljoin(base, answer.headers["Location"])
        where += ("&" if "?" in where else "?") + "digest=" + digest
        put = urllib.request.Request(where, data=data, method="PUT",
                                     headers={"Content-Type": "application/octet-stream"})
        opener.open(put).close()
    put = urllib.request.Request("%s/v2/%s/manifests/%s" % (base, name, tag), data=image.manifest, method="PUT",
                                 headers={"Content-Type": image.type})
    opener.open(put).close()
    print(fake.digest(image.manifest))


if __name__ == "__main__":
    main()
