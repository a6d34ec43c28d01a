"""Models as applications of Ray Serve. The only module that builds what Ray runs."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve
from ray.serve import Application

from ds_serve.cluster.plan import Job
from ds_serve.cluster.replica import Replica

POLICY = "ds_serve.cluster.scaling:by_requests"

LEAVE = 3.0
"""Seconds from a replica's last listing to its end: the gateways look twice a second."""

LAST = 15.0
"""Seconds more than the drain time after which Ray ends a replica by force."""

CALLS = 1000
SURGE = 25
"""Per cent of replicas, one at least, that there are more of while a model is replaced."""

LONGEST = 30.0


def application(job: Job, revision: str) -> Application:
    """What Ray Serve runs for a model."""
    deployment = serve.deployment(
        name=job.name,
        ray_actor_options={
            "num_cpus": job.cpus,
            "num_gpus": job.gpus,
            "resources": job.resources,
        },
        max_ongoing_requests=CALLS,
        autoscaling_config={
            "min_replicas": job.least,
            "max_replicas": job.most,
            "target_ongoing_requests": job.requests,
            "look_back_period_s": min(LONGEST, max(1.0, job.up)),
            "upscale_delay_s": job.up,
            "downscale_delay_s": job.down,
            "policy": {"policy_function": POLICY},
        },
        max_surge_percent=SURGE,
        graceful_shutdown_wait_loop_s=LEAVE,
        graceful_shutdown_timeout_s=LEAVE + job.drain + LAST,
    )(Replica)
    hide = not job.gpus and not job.spans
    return deployment.bind(job.model, job.arguments, "", job.base, job.drain, revision, hide)


def deploy(jobs: Sequence[tuple[Job, str]]) -> None:
    """Ask for these in their revisions, beside what else there is; returns before they are ready.
    Ray replaces all replicas of what it has, whether that is another or not.
    """
    targets = [
        serve.RunTarget(application(job, revision), name=job.application, route_prefix=None)
        for job, revision in jobs
    ]
    serve.run_many(
        targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
