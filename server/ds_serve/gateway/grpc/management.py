"""The service's methods that run no model: what there is, and what is to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_engines import config_pbtxt
from ds_engines.errors import InvalidRequest, NotFound
from ds_engines.spec import TensorSpec
from ds_proto import grpc_service_pb2 as pb
from ds_serve import __version__
from ds_serve.gateway import cuda_memory, describe
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.regions import Region

UNLOAD_DEPENDENTS = "unload_dependents"


class Management:
    """GRPCInferenceService but ModelInfer and ModelStreamInfer, which a subclass adds."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def ServerLive(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=self.gateway.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:  # noqa: N802
        try:
            ready = self.gateway.answers(request.name, request.version)
        except NotFound:
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=self.gateway.name, version=__version__, extensions=describe.EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest
    ) -> pb.ModelMetadataResponse:
        spec = self.gateway.spec(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=spec.name,
            versions=self.gateway.versions(spec.name),
            platform=spec.platform,
            inputs=[_tensor(tensor) for tensor in spec.inputs],
            outputs=[_tensor(tensor) for tensor in spec.outputs],
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:  # noqa: N802
        spec = self.gateway.spec(request.name, request.version)
        return pb.ModelConfigResponse(config=config_pbtxt.describe(spec))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        """Of the model named, or of every model that is ready."""
        response = pb.ModelStatisticsResponse()
        for spec in describe.asked_for(self.gateway, request.name, request.version):
            counted = await self.gateway.statistics(spec.name, spec.version)
            response.model_stats.append(describe.statistics(spec, counted))
        return response

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        for entry in await self.gateway.control.index(request.ready):
            response.models.add(
                name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
            )
        return response

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        describe.check_repository(request.repository_name)
        config, files = _overrides(request.parameters)
        await self.gateway.control.load(request.model_name, config, files)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        describe.check_repository(request.repository_name)
        dependents = request.parameters[UNLOAD_DEPENDENTS].bool_param
        await self.gateway.control.unload(request.model_name, dependents)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(  # noqa: N802
        self, request: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        for name, region in self.gateway.regions.status(request.name).items():
            response.regions[name].name = name
            response.regions[name].key = region.key
            response.regions[name].offset = region.offset
            response.regions[name].byte_size = region.byte_size
        return response

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, request: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        region = Region(request.name, request.key, request.offset, request.byte_size)
        self.gateway.regions.register(region)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        self.gateway.regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(  # noqa: N802
        self, request: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        response = pb.CudaSharedMemoryStatusResponse()
        for name, region in self.gateway.regions.status(request.name, cuda=True).items():
            response.regions[name].name = name
            response.regions[name].device_id = region.device
            response.regions[name].byte_size = region.byte_size
        return response

    async def CudaSharedMemoryRegister(  # noqa: N802
        self, request: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        cuda_memory.register(
            self.gateway.regions,
            request.name,
            request.raw_handle,
            request.device_id,
            request.byte_size,
        )
        return pb.CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryUnregister(  # noqa: N802
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        self.gateway.regions.unregister(request.name, cuda=True)
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:  # noqa: N802
        changes = {name: list(given.value) or None for name, given in request.settings.items()}
        response = pb.TraceSettingResponse()
        values = await self.gateway.control.trace(request.model_name, changes)
        for name, value in values.items():
            response.settings[name].value.extend(value)
        return response

    async def LogSettings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:  # noqa: N802
        changes = {name: _choice(given) for name, given in request.settings.items()}
        response = pb.LogSettingsResponse()
        for name, value in (await self.gateway.control.log(changes)).items():
            setting = response.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return response


def _overrides(
    parameters: Mapping[str, pb.ModelRepositoryParameter],
) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files that a model is loaded with, in place of its own."""
    config, files = None, {}
    for name, given in parameters.items():
        value = _choice(given)
        if name == describe.CONFIG and isinstance(value, str):
            config = value
        elif name.startswith(describe.FILE) and isinstance(value, bytes):
            files[name.removeprefix(describe.FILE)] = value
        else:
            raise InvalidRequest(
                f"parameter {name!r} of a load holds {type(value).__name__}; there are 'config' "
                "(string_param) and 'file:<path>' (bytes_param)"
            )
    return config, files


def _choice(given: Any) -> Any:
    """The value of the oneof that a setting or parameter is; None where it has none."""
    choice = given.WhichOneof("parameter_choice")
    return None if choice is None else getattr(given, choice)


def _tensor(tensor: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )
