"""Embeddings over HTTP: POST {"texts": [...]} to /embed."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastembed import TextEmbedding

# Before the port is open: whoever finds it open finds the model loaded.
model = TextEmbedding(os.environ["MODEL_NAME"], cache_dir=os.environ["MODEL_DIR"], local_files_only=True)
list(model.embed(["warm up"]))


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer(*((200, {"status": "ok"}) if self.path == "/health" else (404, {"error": "not found"})))

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", 0))
            texts = json.loads(self.rfile.read(min(length, 1 << 20)))["texts"]
            self.answer(200, {"vectors": [v.tolist() for v in model.embed(texts)]})
        except (ValueError, KeyError, TypeError) as e:
            self.answer(400, {"error": str(e)})


ThreadingHTTPServer(("", 8080), Handler).serve_forever()
