#!/usr/bin/env python3
"""A registry that misbehaves on request. The first part of a repository's name says how:
/v2/flaky/app/... answers 500 twice and then well. See BEHAVIOURS below for all of them.

Prints {"port": N, "cdn": N} and serves on loopback until its stdin is closed. Every request of a repository
is kept and can be read at /_log/REPOSITORY: [[method, path, range, authorization], ...].
"""
import base64
import gzip
import hashlib
import http.server
import io
import json
import random
import sys
import tarfile
import threading
import urllib.parse

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
USER, PASSWORD = "ada", "love:lace"  # a colon is allowed in a password

BEHAVIOURS = """
ok index docker nohead nodigest            an image, in several true shapes
token expiring scoped ping private basic   who may read it, and how that is found out
wrongdigest wrongmanifest short long       bytes that are not what they claim to be
cut cutnorange cutbadrange cutalways       the connection closes in the middle of a blob
norange416                                 416 for every Range
missing plain404 denied                    no
limit limitlong flaky broken               not now
redirect loop tofile toinside              a Location
schema1 foreign artifact unknown arm both nodiff big deep wrongsize   manifests nobody should take
badtoken notoken                           token servers
""".split()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dumps(o):
    return json.dumps(o, sort_keys=True).encode()


class Image:
    """Two layers, a config and a manifest, as bytes; the same in every run."""

    def __init__(self, name, arch="amd64", docker=False, layer_type=None, config_type=None, diff_ids=None):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as t:
            info = tarfile.TarInfo("etc/name")
            info.size = len(name)
            t.addfile(info, io.BytesIO(name.encode()))
        plain = [tar.getvalue(), random.Random(name).randbytes(3 << 20)]
        self.layers = [gzip.compress(plain[0], mtime=0), plain[1]]
        types = [OCI + "layer.v1.tar+gzip", OCI + "layer.v1.tar"]
        if docker:
            types = [DOCKER + "image.rootfs.diff.tar.gzip", DOCKER + "image.rootfs.diff.tar"]
        if layer_type:
            types[1] = layer_type
        self.config = dumps({
            "architecture": arch, "os": "linux",
            "config": {"Env": ["PATH=/bin", "NAME=" + name], "Cmd": ["sh"]},
            "rootfs": {"type": "layers",
                       "diff_ids": [digest(p) for p in plain] if diff_ids is None else diff_ids}})
        kind = config_type or (DOCKER + "container.image.v1+json" if docker else OCI + "config.v1+json")
        self.type = DOCKER + "distribution.manifest.v2+json" if docker else OCI + "manifest.v1+json"
        self.manifest = dumps({
            "schemaVersion": 2, "mediaType": self.type,
            "config": {"mediaType": kind, "digest": digest(self.config), "size": len(self.config)},
            "layers": [{"mediaType": t, "digest": digest(d), "size": len(d)}
                       for t, d in zip(types, self.layers)]})
        self.blobs = {digest(b): b for b in [self.config] + self.layers}


class Repo:
    def __init__(self, name):
        self.name = name
        self.how = name.split("/")[0]
        self.log = []
        self.count = {}
        self.lock = threading.Lock()
        h = self.how
        image = Image(
            name, arch="arm64" if h == "arm" else "amd64", docker=h == "docker",
            layer_type={"foreign": DOCKER + "image.rootfs.foreign.diff.tar.gzip",
                        "unknown": "application/vnd.wasm.content.layer.v1+wasm"}.get(h),
            config_type="application/vnd.cncf.helm.config.v1+json" if h == "artifact" else None,
            diff_ids=[] if h == "nodiff" else None)
        self.blobs = dict(image.blobs)
        self.manifests = {digest(image.manifest): (image.type, image.manifest)}
        self.top = (image.type, image.manifest)
        if h in ("index", "docker", "deep", "wrongsize"):
            self.make_index(image)
        if h == "schema1":
            self.top = (DOCKER + "distribution.manifest.v1+prettyjws",
                        dumps({"schemaVersion": 1, "name": name, "fsLayers": []}))
        if h == "both":
            m = json.loads(image.manifest)
            m["manifests"] = []
            self.top = (image.type, dumps(m))
        if h == "big":
            self.top = (image.type, b" " * (5 << 20))
        self.manifests[digest(self.top[1])] = self.top
        self.big = max(image.blobs, key=lambda d: len(image.blobs[d]))

    def make_index(self, image):
        other = Image(self.name, arch="arm64")
        self.manifests[digest(other.manifest)] = (other.type, other.manifest)
        docker = self.how == "docker"

        def entry(i, arch, **more):
            off = 1 if self.how == "wrongsize" else 0
            return dict({"mediaType": i.type, "digest": digest(i.manifest), "size": len(i.manifest) + off,
                         "platform": {"os": "linux", "architecture": arch}}, **more)
        attest = entry(other, "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"})
        attest["platform"]["os"] = "unknown"
        kind = DOCKER + "distribution.manifest.list.v2+json" if docker else OCI + "index.v1+json"
        top = dumps({"schemaVersion": 2, "mediaType": kind,
                     "manifests": [attest, entry(other, "arm64"), entry(image, "amd64")]})
        for _ in range(4 if self.how == "deep" else 0):
            self.manifests[digest(top)] = (kind, top)
            top = dumps({"schemaVersion": 2, "mediaType": kind,
                         "manifests": [{"mediaType": kind, "digest": digest(top), "size": len(top),
                                        "platform": {"os": "linux", "architecture": "amd64"}}]})
        self.top = (kind, top)

    def nth(self, key):
        """0, 1, 2... for each call with the same key."""
        with self.lock:
            n = self.count.get(key, 0)
            self.count[key] = n + 1
            return n


REPOS = {}
REPOS_LOCK = threading.Lock()
PORTS = {}


def repo(name):
    with REPOS_LOCK:
        if name not in REPOS:
            REPOS[name] = Repo(name)
        return REPOS[name]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", kind="application/json", headers=(), length=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for k, v in headers:
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code, message, headers=()):
        self.answer(status, dumps({"errors": [{"code": code, "message": message, "detail": {}}]}), headers=headers)

    def do_HEAD(self):
        self.route()

    def do_GET(self):
        self.route()

    def route(self):
        url = urllib.parse.urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if parts[0] == "_log":
            return self.answer(200, dumps(repo("/".join(parts[1:])).log))
        if url.path == "/v2/":
            return self.error(401, "UNAUTHORIZED", "who are you", self.challenge("ping/app"))
        if parts[0] == "token":
            return self.token(urllib.parse.parse_qs(url.query))
        if parts[0] != "v2" or len(parts) < 5:
            return self.error(404, "NAME_UNKNOWN", "no such thing")
        r = repo("/".join(parts[1:-2]))
        with r.lock:
            r.log.append([self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")])
        if not self.allowed(r) or self.refused(r, parts[-2]):
            return None
        if parts[-2] == "manifests":
            return self.manifest(r, parts[-1])
        return self.blob(r, parts[-1])

    # --- who may ---

    def challenge(self, name, more=""):
        realm = "http://127.0.0.1:%d/token" % PORTS["port"]
        if name.startswith("badtoken"):
            realm = "ftp://127.0.0.1/token"
        return [("WWW-Authenticate",
                 'Bearer realm="%s",service="fake, registry",scope="repository:%s:pull"%s' % (realm, name, more))]

    def token(self, query):
        scope = query.get("scope", [""])[0]
        name = scope.split(":")[1] if scope.count(":") == 2 else ""
        r = repo(name)
        basic = "Basic " + base64.b64encode(("%s:%s" % (USER, PASSWORD)).encode()).decode()
        with r.lock:
            r.log.append(["TOKEN", self.path, None, self.headers.get("Authorization")])
        if query.get("service") != ["fake, registry"]:
            return self.error(400, "SERVICE", "which service?")
        if r.how == "private" and self.headers.get("Authorization") != basic:
            return self.error(401, "UNAUTHORIZED", "incorrect username or password")
        if r.how == "notoken":
            return self.answer(200, dumps({"token": "two\r\nlines"}))
        n = r.nth("token")
        key = "access_token" if r.how == "scoped" else "token"
        return self.answer(200, dumps({key: "tok-%s-%d" % (name.replace("/", "."), n), "expires_in": 60}))

    def allowed(self, r):
        auth = self.headers.get("Authorization") or ""
        if r.how == "basic":
            want = "Basic " + base64.b64encode(("%s:%s" % (USER, PASSWORD)).encode()).decode()
            if auth == want:
                return True
            self.error(401, "UNAUTHORIZED", "authentication required", [("WWW-Authenticate", 'Basic realm="x"')])
            return False
        if r.how not in ("token", "expiring", "scoped", "ping", "private", "badtoken", "notoken", "redirect"):
            return True
        tag = "tok-%s-" % r.name.replace("/", ".")
        ok = auth.startswith("Bearer " + tag)
        more = ""
        if ok and r.how == "expiring":  # every token is good for two requests
            ok = r.nth(auth) < 2
            more = ',error="invalid_token"'
        if ok:
            return True
        headers = [] if r.how == "ping" else self.challenge(r.name, more)
        self.error(401, "UNAUTHORIZED", "authentication required", headers)
        return False

    def refused(self, r, what):
        h = r.how
        if h == "missing":
            self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        elif h == "plain404":
            self.answer(404, b"<html>not here</html>", "text/html")
        elif h == "denied":
            self.error(403, "DENIED", "requested access to the resource is\x1b[31m denied")
        elif h == "limit" and r.nth(what) == 0:
            self.error(429, "TOOMANYREQUESTS", "slow down", [("Retry-After", "7")])
        elif h == "limitlong":
            self.error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit", [("Retry-After", "21600")])
        elif h == "flaky" and r.nth(what) < 2:
            self.error(500, "UNKNOWN", "oh")
        elif h == "broken":
            self.error(503, "UNAVAILABLE", "closed for today")
        else:
            return False
        return True

    # --- what there is ---

    def manifest(self, r, name):
        if self.command == "HEAD" and r.how == "nohead":
            return self.error(405, "UNSUPPORTED", "no HEAD here")
        found = r.top if name == "1" else r.manifests.get(name)
        if found is None:
            return self.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        kind, body = found
        headers = [] if r.how == "nodigest" else [("Docker-Content-Digest", digest(body))]
        if r.how == "wrongmanifest":
            body += b" "
        return self.answer(200, body, kind, headers)

    def blob(self, r, name):
        data = r.blobs.get(name)
        if data is None:
            return self.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if name != r.big:
            return self.answer(200, data, "application/octet-stream")
        where = {"redirect": "http://127.0.0.1:%d/cdn/%s/%s" % (PORTS["cdn"], r.name, name),
                 "loop": self.path, "tofile": "file:///etc/passwd",
                 "toinside": "http://169.254.169.254/latest/meta-data"}.get(r.how)
        if where:
            return self.answer(307, headers=[("Location", where)])
        return self.big_blob(r, data)

    def big_blob(self, r, data):
        h = r.how
        kind = "application/octet-stream"
        start = 0
        asked = self.headers.get("Range")
        if asked and h == "norange416":
            return self.error(416, "RANGE_INVALID", "no ranges here")
        if asked and h != "cutnorange":
            start = int(asked[len("bytes="):-1])
        status, headers = 200, []
        if start:
            shown = start + 5 if h == "cutbadrange" else start
            status = 206
            headers = [("Content-Range", "bytes %d-%d/%d" % (shown, len(data) - 1, len(data)))]
        body = data[start:]
        if h == "wrongdigest":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if h == "short":
            return self.answer(status, body[:1000], kind)
        if h == "long":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body + b"more" * 1000)
            self.close_connection = True
            return None
        cut = None
        if h in ("cut", "cutnorange", "cutbadrange", "norange416") and r.nth("cut") == 0:
            cut = len(body) // 2
        if h == "cutalways":
            cut = 1000
        if cut is not None:
            self.answer(status, body[:cut], kind, headers, length=len(body))
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.answer(status, body, kind, headers)


class Cdn(Handler):
    """Where redirects lead; like S3 it refuses a request that is signed and carries Authorization."""

    def route(self):
        parts = self.path.strip("/").split("/")
        if self.headers.get("Authorization"):
            return self.answer(400, b"only one authentication is allowed", "text/plain")
        data = repo("/".join(parts[1:-1])).blobs.get(parts[-1])
        if data is None:
            return self.answer(404)
        return self.answer(200, data, "application/octet-stream")


def main():
    servers = {}
    for key, handler in (("port", Handler), ("cdn", Cdn)):
        servers[key] = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers[key].daemon_threads = True
        PORTS[key] = servers[key].server_address[1]
        threading.Thread(target=servers[key].serve_forever, daemon=True).start()
    print(json.dumps(PORTS), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
