"""The wire contract: generated message classes and the table of the service's methods.

`grpc_service_pb2` and `model_config_pb2` are written by `scripts/proto` from the .proto files one
folder up. They live in a descriptor pool of their own, so that other packages which carry the same
contract (tritonclient does) can be loaded beside them in one process.
"""
