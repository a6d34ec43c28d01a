"""The descriptor pool that the generated modules share, apart from protobuf's default one."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
