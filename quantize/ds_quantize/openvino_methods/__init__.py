"""Handlers of the methods on OpenVINO folders, over NNCF."""

from ds_engines import no_telemetry

no_telemetry.decline()  # here, as NNCF asks when it is imported
