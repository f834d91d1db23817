#!/usr/bin/env python3
"""Reads content through the node of this machine: read.py SOCKET PROTO_DIR URL > content

Needs grpcio and grpcio-tools; the stubs are made from the proto files when it starts.
"""
import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc

socket, proto, url = sys.argv[1:4]
with tempfile.TemporaryDirectory() as stubs:
    files = [str(f) for f in pathlib.Path(proto).glob("dragonfly/v1/*.proto")]
    options = [f"-I{proto}", f"--python_out={stubs}", f"--grpc_python_out={stubs}"]
    if protoc.main(["protoc", *options, *files]) != 0:
        sys.exit("the proto files do not compile")
    sys.path.insert(0, stubs)
    from dragonfly.v1 import common_pb2, node_pb2, node_pb2_grpc

# The authority is for form: a path would be no valid one.
options = [("grpc.default_authority", "localhost")]
with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
    node = node_pb2_grpc.NodeStub(channel)
    request = node_pb2.DownloadRequest(source=common_pb2.Source(url=url))
    for chunk in node.Read(request):
        if chunk.HasField("failure"):
            sys.exit(f"{url}: {chunk.failure.message}")
        sys.stdout.buffer.write(chunk.data)
