"""One workload of the day-one configuration, in a process of its own: HTTP, gRPC and bytes.

    python -m tests.day_one.workload --service reviews --version v1 --address 127.0.0.31

Prints its HTTP, gRPC and TCP port, then answers everything with who it is and what it was asked.
"""

from __future__ import annotations

import argparse
import json
import socketserver
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="for HTTP; 0 takes a free one")
    options = parser.parse_args()
    me = {"service": options.service, "version": options.version, "address": options.address}
    http = _http(me, options.address, options.port)
    grpc_server, grpc_port = _grpc(me, options.address)
    tcp = _tcp(me, options.address)
    print(http.server_port, grpc_port, tcp.server_address[1], flush=True)
    http.serve_forever()
    grpc_server.stop(None)


def _http(me: dict[str, str], address: str, port: int) -> ThreadingHTTPServer:
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # one packet an answer

        def answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            if self.path == "/log":
                self._send(200, log)
                return
            log.append(f"{self.command} {self.headers['host']} {self.path}")
            if "/slow" in self.path:
                time.sleep(8)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = {"method": self.command, "path": self.path, "body": body.decode()}
            self._send(200, {**me, **asked, "headers": headers})

        def _send(self, status: int, answer: Any) -> None:
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_OPTIONS = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    return Server((address, port), Handler)


def _grpc(me: dict[str, str], address: str) -> tuple[grpc.Server, int]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
                metadata = {str(name): str(value) for name, value in context.invocation_metadata()}
                return json.dumps({**me, "path": details.method, "headers": metadata}).encode()

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Handler()])
    port = server.add_insecure_port(f"{address}:0")
    server.start()
    return server, port


def _tcp(me: dict[str, str], address: str) -> socketserver.ThreadingTCPServer:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(f"{me['service']} {me['version']}\n".encode())
            while data := self.request.recv(65536):
                self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    main()
